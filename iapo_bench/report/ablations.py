"""Effect of each part of a method, and of the released code's departures: variants against the method."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import holm
from iapo_bench.report.comparisons import KINDS, p_text
from iapo_bench.report.document import Block, Table, ranged
from iapo_bench.report.paired import PANELS, counts, draw_changes
from iapo_bench.report.rows import Row, caution, change, opening, parents, read_rows
from iapo_bench.report.style import STYLE, method_styles, new_figure, save_figure
from iapo_bench.report.table1 import table_blocks, table_frame, write_table

FACETS = ("without a part", "released against paper")


def make_ablations(summaries: Sequence[Path], *, out: Path, figure: Path) -> None:
    """Write the table of variants and their parents (`out`, CSV; .md, .tex and .html beside it), and the figure."""
    rows = read_rows(summaries)
    changes, drawing = changes_table(rows), ablations_figure(rows)
    frame = table_frame(rows).merge(changes.drop(columns="row"), on="method", how="left")
    write_table(rows, summaries, out, frame, [*change_blocks(rows[0], changes), *table_blocks(rows)])
    save_figure(drawing, figure)


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Each variant with its parent. Raises UserError when no variant has its parent among the rows."""
    found = {row.method: row for row in rows}
    pairs = [
        (row, found[row.parent]) for row in rows if row.trained and row.parent != row.method and row.parent in found
    ]
    if not pairs:
        raise UserError("no variant has its original method among the summaries: measure both")
    return pairs


def changes_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Each variant minus its parent, paired by problem: one row per variant, and for Pass@1 and length the difference,
    the bounds of its 95% interval, and the p-value of "no difference" with Holm's correction over variants."""
    pairs = _pairs(rows)
    table = pd.DataFrame(
        [
            {"row": row.name, "method": row.method, "against": parent.name, "shows": facet(row, parent)}
            for row, parent in pairs
        ]
    )
    for panel in PANELS:
        found = [change(row, parent, panel.measure) for row, parent in pairs]
        table[f"{panel.measure}_change"] = [difference.value for difference in found]
        for i, end in enumerate(("lo", "hi")):
            table[f"{panel.measure}_change_{end}"] = [difference.interval[i] for difference in found]
        table[f"{panel.measure}_p_holm"] = holm([difference.p for difference in found])
    return table


def change_blocks(first: Row, changes: pd.DataFrame) -> list[Block]:
    """The differences for readers."""
    columns = {name: changes[name].tolist() for name in ("row", "against", "shows")}
    for panel in PANELS:
        ends = changes[[f"{panel.measure}_change{end}" for end in ("", "_lo", "_hi")]].to_numpy()
        digits = KINDS[panel.measure.partition("@")[0]].digits
        columns[panel.label] = [ranged(*line, form=f"+{digits}") for line in ends]
        columns[f"{panel.label}, p"] = [p_text(p) for p in changes[f"{panel.measure}_p_holm"]]
    return [
        *opening(first, "variants less what they vary"),
        Table(columns, "Differences paired by problem, with 95% intervals; p corrected for the variants (Holm)."),
    ]


def facet(row: Row, parent: Row) -> str:
    """The facet of a variant: another profile of its parent, or its parent without a part."""
    return FACETS[row.profile != parent.profile]


def ablations_figure(rows: Sequence[Row]) -> Figure:
    """Each variant's change from its parent in Pass@1 and in length, paired by problem: a row of panels for the parts
    of methods, one for released against paper. Raises UserError when no variant has its parent among the rows."""
    pairs = _pairs(rows)
    variants = [row for row, _ in pairs]
    groups = {name: [pair for pair in pairs if facet(*pair) == name] for name in FACETS}
    groups = {name: group for name, group in groups.items() if group}
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
