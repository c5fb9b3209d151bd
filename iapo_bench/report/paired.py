"""The main figure: each method's change from the base, paired by problem, in accuracy and in length."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iapo_bench.config.report import BASE
from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import Estimate
from iapo_bench.report.rows import Row, caution, change, parents, read_rows
from iapo_bench.report.style import GREY, STYLE, Style, method_styles, new_figure, plot_point, save_figure


class Panel(NamedTuple):
    """A measure as an axis shows it."""

    measure: str
    label: str
    factor: float
    unit: str
    better: str


PANELS = (
    Panel("pass@1", "Pass@1", 100, "points", "right is better"),
    Panel("length", "Length", 1, "tokens", "left is shorter"),
)
# A change beyond this many times the median interval end would squeeze the others: it is named at the edge instead.
OUTLIER = 4


def make_paired(summaries: Sequence[Path], figure: Path) -> None:
    """Draw the change from the base of every trained row."""
    save_figure(paired_figure(read_rows(summaries)), figure)


def paired_figure(rows: Sequence[Row]) -> Figure:
    """A line for each method: its change from the base in Pass@1 and in length, with 95% intervals.

    Raises UserError without a base or a trained row.
    """
    base = next((row for row in rows if row.method == BASE), None)
    trained = [row for row in rows if row.trained]
    if base is None or not trained:
        raise UserError("the figure of changes needs the base's summary and at least one method's")
    styles = method_styles((row.name for row in rows), parents(rows))
    title = f"{caution(base.tier)}{base.model} on {base.dataset}: change from the base, {counts(base, trained)}"
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(2, title, height=1.3 + 0.19 * len(trained), wide=False)
        for ax, panel in zip(axes, PANELS, strict=True):
            draw_changes(ax, {row.name: change(row, base, panel.measure) for row in trained}, panel, styles)
            before = panel.factor * base.tally.values(panel.measure).mean()
            ax.set_xlabel(f"{panel.label}, {panel.unit}\n(base {before:.1f};\n{panel.better})")
        axes[1].tick_params(labelleft=False)
    return figure


def counts(first: Row, trained: Sequence[Row]) -> str:
    """Problems, samples and training seeds behind a figure, and what its bars are, for its title."""
    seeds = sorted({len(row.tally.train_seeds) for row in trained})
    samples = first.tally.n_samples * len(first.tally.sampling_seeds)
    return (
        f"{len(first.tally.problems)} problems \N{MULTIPLICATION SIGN} {samples} samples, "
        f"{' to '.join(map(str, seeds))} training seed{'' if seeds == [1] else 's'}; bars: 95%, paired"
    )


def draw_changes(ax: Axes, found: Mapping[str, Estimate], panel: Panel, styles: Mapping[str, Style]) -> None:
    """A row for each name: its change and its interval. An outlier is named at the edge that it lies beyond."""
    values = {name: panel.factor * difference.value for name, difference in found.items()}
    ends = [abs(panel.factor * end) for difference in found.values() for end in difference.interval]
    reach = OUTLIER * float(np.median(ends))
    ax.axvline(0, color=GREY, linewidth=1, zorder=1)
    for place, (name, difference) in enumerate(found.items()):
        look = styles[name]
        if abs(values[name]) > reach:
            left = values[name] < 0
            text = f"{values[name]:+.1f}".replace("-", "\N{MINUS SIGN}")
            ax.annotate(
                f"\N{LEFTWARDS ARROW} {text}" if left else f"{text} \N{RIGHTWARDS ARROW}",
                (0 if left else 1, place),
                xycoords=("axes fraction", "data"),
                ha="left" if left else "right",
                va="center",
                fontsize=7,
                color=look.colour,
            )
            continue
        lo, hi = (panel.factor * end for end in difference.interval)
        ax.hlines(place, lo, hi, color=look.colour, linewidth=1.6)
        for end in (lo, hi):  # visible beside a marker wider than the interval, too
            ax.plot([end, end], [place - 0.27, place + 0.27], color=look.colour, linewidth=1)
        plot_point(ax, values[name], place, look)
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_yticks(range(len(found)), list(found))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False, axis="y")
