"""What each part of a method does, and what the released code's departures do: variants against what they vary."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from iapo_bench.errors import UserError
from iapo_bench.report.paired import PANELS, change, counts, draw_changes
from iapo_bench.report.rows import Row, caution, parents, read_rows
from iapo_bench.report.style import STYLE, method_styles, new_figure, save_figure
from iapo_bench.report.table1 import write_table

FACETS = ("without a part", "released against paper")


def make_ablations(summaries: Sequence[Path], *, out: Path, figure: Path) -> None:
    """Write the table of variants and what they vary (`out`, CSV, and its other forms beside it), and the figure."""
    rows = read_rows(summaries)
    drawing = ablations_figure(rows)
    write_table(rows, summaries, out, published=None)
    save_figure(drawing, figure)


def facet(row: Row, parent: Row) -> str:
    """What a variant shows: another profile of its parent, or a part that it lacks."""
    return FACETS[row.profile != parent.profile]


def ablations_figure(rows: Sequence[Row]) -> Figure:
    """Each variant's change from its parent in Pass@1 and in length, paired by problem: a row of panels for the parts
    of methods, one for released against paper. Raises UserError when there is no variant beside its parent."""
    found = {row.method: row for row in rows}
    variants = [row for row in rows if row.trained and row.parent != row.method and row.parent in found]
    pairs = [(row, found[row.parent]) for row in variants]
    groups = {name: [pair for pair in pairs if facet(*pair) == name] for name in FACETS}
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        raise UserError("there is no variant beside the method that it varies: measure both")
    styles = method_styles((row.name for row in rows), parents(rows))
    first = variants[0]
    title = f"{caution(first.tier)}{first.model} on {first.dataset}: variants less what they vary, "
    title += counts(first, variants)
    heights = [len(group) + 1.2 for group in groups.values()]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(2, title, height=0.9 + 0.2 * sum(heights), wide=False, heights=heights)
        for place, (name, group) in enumerate(groups.items()):
            for ax, panel in zip(axes[2 * place : 2 * place + 2], PANELS, strict=True):
                draw_changes(ax, {row.name: change(row, parent, panel.measure) for row, parent in group}, panel, styles)
                if place == len(groups) - 1:
                    ax.set_xlabel(f"{panel.label}, {panel.unit}\n({panel.better})")
            axes[2 * place].set_title(name, loc="left")
            axes[2 * place + 1].tick_params(labelleft=False)
    return figure
