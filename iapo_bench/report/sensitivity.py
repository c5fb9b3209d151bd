"""Effect of two options of a method, on a grid, on the validation split."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from iapo_bench.config.report import BASE
from iapo_bench.config.tune import SensitivityJob
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import read_grades, summarise
from iapo_bench.report.comparisons import KINDS
from iapo_bench.report.document import Block, Table, ranged, write_document
from iapo_bench.report.rows import caution, opening
from iapo_bench.report.style import GREY, INK, STYLE, new_figure, save_figure
from iapo_bench.report.tuning import pick

_INTERVAL = (("", "mean"), ("_lo", "lo"), ("_hi", "hi"))


def make_sensitivity(job: SensitivityJob, base: Path, grades: Sequence[Path], *, out: Path, figure: Path) -> None:
    """Write the measures at each point of the tier's grid with intervals (`out`, CSV; .md, .tex and .html beside it),
    and heat maps. `grades`: one file per point, in the grid's order."""
    points = job.sensitivity.points()
    if len(grades) != len(points):
        raise UserError(f"the grid has {len(points)} points, not {len(grades)}: give one file of grades per point")
    k = job.k
    ks = sorted({1, k})
    measures = [f"{measure}@{i}" for measure, i in (("pass", 1), ("pass", k), ("length", k), ("ratio", k))]
    rows: list[dict[str, Any]] = []
    for name, point, path in [
        (BASE, {}, base),
        *zip([job.sensitivity.method] * len(points), points, grades, strict=True),
    ]:
        summary = summarise({0: read_grades(path)}, ks)
        cells = {measure: summary.cells[measure] for measure in measures}
        rows.append(
            {"method": name, **point}
            | {f"{m}{end}": getattr(cell, part) for m, cell in cells.items() for end, part in _INTERVAL}
            | {"n_problems": summary.n_problems, "n_samples": summary.n_samples}
        )
    frame = pd.DataFrame(rows)
    scores = [{"pass": row[f"pass@{k}"], "ratio": row[f"ratio@{k}"]} for row in rows]
    chosen = pick(scores[1:], scores[0]["pass"] - job.tolerance)
    labels = job.labels
    title = (
        f"{caution(labels.tier)}{job.sensitivity.method}: {labels.model} on {labels.dataset}, {_split(frame)}; framed: "
        "what the tuning rule picks; hatched: lost more than half of the base's Pass@1"
    )
    drawing = sensitivity_maps(frame, list(job.sensitivity.grid), measures, title=title, chosen=chosen)
    write_document(out, frame, sensitivity_blocks(job, frame, measures, chosen))
    save_figure(drawing, figure)


def sensitivity_blocks(job: SensitivityJob, frame: pd.DataFrame, measures: Sequence[str], chosen: int) -> list[Block]:
    """The grid for readers, from the rows of `make_sensitivity`; the grid's point `chosen` is bold."""
    bold = [i == chosen + 1 for i in range(len(frame))]
    columns = {"point": [BASE, *(_point(line, job.sensitivity.grid) for _, line in frame.iloc[1:].iterrows())]}
    for measure in measures:
        ends_R3 = _scale(measure) * frame[[measure, f"{measure}_lo", f"{measure}_hi"]].to_numpy(float)
        columns[_heading(measure)] = [ranged(*ends, form=KINDS[measure.partition("@")[0]].digits) for ends in ends_R3]
    shown = {
        name: [f"**{text}**" if strong else text for text, strong in zip(texts, bold, strict=True)]
        for name, texts in columns.items()
    }
    return [
        *opening(job.labels, f"{job.sensitivity.method} over two options"),
        Table(shown, f"The {_split(frame)}; 95% intervals over problems. **Bold**: what the tuning rule picks."),
    ]


def _split(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    return f"validation split, {first['n_problems']} problems \N{MULTIPLICATION SIGN} {first['n_samples']} samples"


def _point(line: pd.Series, options: Iterable[str]) -> str:
    return ", ".join(f"{option} {line[option]:g}" for option in options)


def _scale(measure: str) -> int:
    return 1000 if measure.startswith("ratio") else 1


def _heading(measure: str) -> str:
    return measure.capitalize() + (" \N{MULTIPLICATION SIGN} 10³" if measure.startswith("ratio") else "")


def sensitivity_maps(
    table: pd.DataFrame, options: Sequence[str], measures: Sequence[str], *, title: str, chosen: int
) -> Figure:
    """A heat map for each measure over two options, from the rows of `make_sensitivity`: the base's, then the grid's.

    The colour says how far a point is from the base, blue for the better and red for the worse side; its range ignores
    the points that lost more than half of the base's Pass@1, which are hatched. The grid's point `chosen` is framed.
    """
    base, grid = table[table["method"] == BASE].iloc[0], table[table["method"] != BASE].reset_index(drop=True)
    collapsed = grid[measures[0]] < base[measures[0]] / 2
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(len(measures), title, height=2.6)
        for ax, measure in zip(axes, measures, strict=True):
            _draw_map(ax, grid, options, measure, float(base[measure]), collapsed, chosen)
        axes[0].set_ylabel(options[0])
    return figure


def _draw_map(
    ax: Axes, grid: pd.DataFrame, options: Sequence[str], measure: str, base: float, collapsed: pd.Series, chosen: int
) -> None:
    rows, columns = (sorted(grid[option].unique()) for option in options)
    places = [(rows.index(y), columns.index(x)) for y, x in zip(grid[options[0]], grid[options[1]], strict=True)]
    values = np.full((len(rows), len(columns)), np.nan)
    for place, value in zip(places, grid[measure], strict=True):
        values[place] = value
    away = (grid[measure] - base).abs()
    reach = max(float((away if collapsed.all() else away[~collapsed]).max()), 1e-9)
    colours = mpl.colormaps["RdBu_r" if measure.startswith("length") else "RdBu"]
    image = ax.imshow(values, cmap=colours, vmin=base - reach, vmax=base + reach, origin="lower", alpha=0.85)
    key = ax.figure.colorbar(image, ax=ax, location="bottom", shrink=0.9, aspect=25, pad=0.03)
    ends = [base - reach, base, base + reach]
    if measure.startswith("pass"):
        ends = [max(ends[0], 0), base, min(ends[2], 1)]
        key.ax.set_xlim(ends[0], ends[2])
    key.set_ticks(ends, labels=[_text(measure, ends[0]), "base", _text(measure, ends[2])])
    for i, (row, column) in enumerate(places):
        strong = abs(values[row, column] - base) > 0.6 * reach
        look: dict[str, Any] = {"color": "white" if strong else INK}
        if collapsed[i]:
            ax.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="white", hatch="////", edgecolor=GREY, lw=0)
            )
            look = {"color": INK, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}}
        ax.text(column, row, _text(measure, values[row, column]), ha="center", va="center", fontsize=7, **look)
    row, column = places[chosen]
    ax.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.6))
    ax.set_xticks(range(len(columns)), [f"{x:g}" for x in columns])
    ax.set_yticks(range(len(rows)), [f"{y:g}" for y in rows])
    ax.set_xlabel(options[1])
    ax.set_title(f"{_heading(measure)}\n(base {_text(measure, base)})")
    ax.grid(visible=False)
    ax.tick_params(length=0)


def _text(measure: str, value: float) -> str:
    if measure.startswith("pass"):
        return f"{value:.3f}".removeprefix("0")
    return f"{value * _scale(measure):.1f}"
