"""The table, for machines (CSV) and for readers (Markdown), and accuracy against length."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import MEASURES, Cell
from iapo_bench.files import whole_file
from iapo_bench.machine.provenance import write_provenance
from iapo_bench.report.rows import BASE, LABELS, Row, read_rows
from iapo_bench.report.style import STYLE, Style, method_styles, new_figure, save_figure
from iapo_bench.worlds.grading import Outcome

_PUBLISHED_KS = (16, 32)


def make_table(summaries: Sequence[Path], *, published: Path | None, out: Path, figure: Path) -> None:
    """Write the table (`out`, and Markdown beside it), its figure, and where its cells come from."""
    rows = read_rows(summaries)
    write_table(rows, out, out.with_suffix(".md"), published)
    save_figure(accuracy_length(rows), figure)
    write_provenance(
        out.with_suffix(".provenance.json"),
        config={
            row.name: json.loads(path.read_text()).get("settings") for row, path in zip(rows, summaries, strict=True)
        },
        inputs=list(summaries),
        seeds={row.name: {"train": row.summary.train_seeds, "sampling": row.summary.sampling_seeds} for row in rows},
        extra={
            "outcomes": {row.name: row.summary.outcomes for row in rows},
            "truncated": {row.name: row.summary.truncated for row in rows},
        },
    )


def write_table(rows: Sequence[Row], csv: Path, markdown: Path, published: Path | None = None) -> None:
    """Write both forms of the table, each whole or not at all; `published` is a CSV file of published cells."""
    frame = table_frame(rows)
    text = table_markdown(rows, pd.read_csv(published) if published else None)
    with whole_file(csv) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g")
    with whole_file(markdown) as partial:
        partial.write_text(text)


def table_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The table, rows in the order given.

    Columns: those of the published table (empty where a k was not measured), the other ks, what stands behind a row,
    and the bounds of the 95% intervals.
    """
    if not rows:
        raise UserError("there are no summaries to make a table of")
    measured = sorted({k for row in rows for k in row.summary.ks})
    lines = []
    for row in rows:
        cells, summary = row.summary.cells, row.summary
        line: dict[str, Any] = {label: getattr(row, label) for label in LABELS}
        for key, cell in cells.items():
            line |= {key: cell.mean, f"{key}_std": cell.std, f"{key}_lo": cell.lo, f"{key}_hi": cell.hi}
        line |= {"n_problems": summary.n_problems, "n_samples": summary.n_samples, "train_seeds": _train_seeds(row)}
        lines.append(line)
    columns = [
        *("model", "dataset", "method"),
        *_value_columns(_PUBLISHED_KS),
        *_value_columns([k for k in measured if k not in _PUBLISHED_KS]),
        *("tier", "profile", "n_problems", "n_samples", "train_seeds", "selection"),
        *(f"{measure}@{k}_{bound}" for measure in MEASURES for k in measured for bound in ("lo", "hi")),
    ]
    return pd.DataFrame(lines, columns=columns)


def table_markdown(rows: Sequence[Row], published: pd.DataFrame | None = None) -> str:
    """The table for readers: one part for each model, dataset and set of problems, and what stands behind its cells."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.dataset, row.tier, row.summary.n_problems), []).append(row)
    return "\n".join([*(_part(group, published) for group in groups.values()), _HOW_TO_READ])


def _value_columns(ks: Iterable[int]) -> list[str]:
    spread = [f"{measure}@{k}{suffix}" for measure in ("pass", "length") for k in ks for suffix in ("", "_std")]
    return [*spread, *(f"ratio@{k}" for k in ks)]


def _train_seeds(row: Row) -> str:
    return "" if row.method == BASE else " ".join(map(str, row.summary.train_seeds))


_HOW_TO_READ = """\
Cells are means over training seeds x sampling seeds, with a 95% interval from a bootstrap over problems (and over
training seeds, where there are several). With one training seed the interval says nothing about what another training
run would give. **Bold** is the best of a column together with everything whose interval overlaps the best one's; where
that is every method, nothing is bold. All methods answer the same problems, so overlap errs on the side of a tie.
Published cells are mean ± standard deviation over runs. TIMEOUT and ERROR are completions that grading could not judge;
they count as not correct. Length and ratio at every k and the standard deviations are in the CSV file beside this one.
"""


def _part(rows: list[Row], published: pd.DataFrame | None) -> str:
    first = rows[0]
    common = set.intersection(*(set(row.summary.ks) for row in rows))
    if not common:
        raise UserError(f"no k was measured for every method on {first.dataset}: measure them with the same ks")
    keys = [f"pass@{k}" for k in sorted(common)] + [f"length@{max(common)}", f"ratio@{max(common)}"]
    columns: dict[str, list[str]] = {"method": [row.name for row in rows]}
    for key in keys:
        cells = [row.summary.cells[key] for row in rows]
        best = _best(cells, smaller=key.startswith("length"))
        texts = [_text(key, cell) for cell in cells]
        columns[key.capitalize()] = [f"**{text}**" if i in best else text for i, text in enumerate(texts)]
        if any(beside := [_published_text(published, row, key) for row in rows]):
            columns[f"{key.capitalize()}, published"] = beside
    return "\n".join(
        [
            f"## {first.model} on {first.dataset} (tier {first.tier})\n",
            _markdown(columns),
            f"\nWhat stands behind a cell ({first.summary.n_problems} problems; counts are completions):\n",
            _markdown(_evidence(rows)),
            "",
        ]
    )


def _evidence(rows: list[Row]) -> dict[str, list[str]]:
    summaries = [row.summary for row in rows]
    return {
        "method": [row.name for row in rows],
        "estimator": [summary.estimator for summary in summaries],
        "samples": [str(summary.n_samples) for summary in summaries],
        "sampling seeds": [" ".join(map(str, summary.sampling_seeds)) for summary in summaries],
        "training seeds": [_train_seeds(row) for row in rows],
        "settings chosen by": ["" if row.method == BASE else row.selection for row in rows],
        **{outcome: [f"{summary.outcomes[outcome]:,}" for summary in summaries] for outcome in Outcome},
        "truncated": [f"{summary.truncated:.1%}" for summary in summaries],
    }


def _best(cells: list[Cell], *, smaller: bool) -> set[int]:
    """The best cell and all that cannot be told from it; none when that is all of them."""
    best = (min if smaller else max)(cells, key=lambda cell: cell.mean)
    alike = {i for i, cell in enumerate(cells) if cell.lo <= best.hi and best.lo <= cell.hi}
    return alike if len(alike) < len(cells) else set()


def _number(key: str, value: float) -> str:
    return {"pass": f"{value:.3f}", "length": f"{value:.1f}", "ratio": f"{value:#.3g}"}[key.split("@")[0]]


def _text(key: str, cell: Cell) -> str:
    return f"{_number(key, cell.mean)} [{_number(key, cell.lo)}, {_number(key, cell.hi)}]"


def _published_text(published: pd.DataFrame | None, row: Row, key: str) -> str:
    if published is None or key not in published:
        return ""
    same = (published[["model", "dataset", "method"]] == [row.model, row.dataset, row.method]).all(axis=1)
    if not same.any():
        return ""
    found = published[same].iloc[0]
    spread = f" ± {found[f'{key}_std']:g}" if f"{key}_std" in published else ""
    return f"{found[key]:g}{spread}"


def _markdown(columns: dict[str, list[str]]) -> str:
    return tabulate(columns, headers="keys", tablefmt="github", disable_numparse=True)


def accuracy_length(rows: Sequence[Row]) -> Figure:
    """Pass@k against Length@k with 95% intervals, at the smallest and the largest k that every row has.

    Raises UserError when the rows are of several models or datasets, or share no k.
    """
    if len({(row.model, row.dataset) for row in rows}) != 1:
        raise UserError("a figure compares methods on one model and dataset: draw one for each")
    ks = set.intersection(*(set(row.summary.ks) for row in rows))
    if not ks:
        raise UserError("no k was measured for every method: measure them with the same ks")
    shown = sorted({min(ks), max(ks)})
    styles = method_styles(row.name for row in rows)
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(
            len(shown), f"{rows[0].model} on {rows[0].dataset}: accuracy against length, 95% intervals"
        )
        for ax, k in zip(axes, shown, strict=True):
            for row in rows:
                x, y = row.summary.cells[f"length@{k}"], row.summary.cells[f"pass@{k}"]
                colour, marker = styles[row.name].colour, styles[row.name].marker
                ax.hlines(y.mean, x.lo, x.hi, color=colour, linewidth=1)
                ax.vlines(x.mean, y.lo, y.hi, color=colour, linewidth=1)
                face = "white" if row.method == BASE else colour
                ax.plot(x.mean, y.mean, marker, markersize=6, color=colour, markerfacecolor=face, zorder=3)
            ax.margins(0.12)
            ax.set_xlabel(f"Length@{k} (tokens)")
            ax.set_ylabel(f"Pass@{k}")
        figure.canvas.draw()
        for ax, k in zip(axes, shown, strict=True):
            _label_points(ax, rows, k, styles)
    return figure


def _label_points(ax: Axes, rows: Sequence[Row], k: int, styles: Mapping[str, Style]) -> None:
    """Write each row's name near its point, where it covers no point, no other name and little of the bars.

    A name that finds no room close by stands further off, at the end of a thin line.
    """
    points = [(row.summary.cells[f"length@{k}"], row.summary.cells[f"pass@{k}"]) for row in rows]
    pixel = ax.figure.dpi / 72  # a point in pixels
    at = [np.array(ax.transData.transform((x.mean, y.mean))) for x, y in points]
    bars = []
    for x, y in points:
        for ends in (((x.lo, y.mean), (x.hi, y.mean)), ((x.mean, y.lo), (x.mean, y.hi))):
            bars.append(ax.transData.transform(ends) + np.array([[-pixel], [pixel]]))
    markers = [_box(centre, 10 * pixel) for centre in at]
    frame = [ax.bbox.get_points()]
    labels: list[np.ndarray] = []

    for row, centre, (x, y) in zip(rows, at, points, strict=True):
        text = ax.text(0, 0, row.name, fontsize=8)
        size = np.array(text.get_window_extent().size)
        text.remove()
        best = float("inf")
        for radius in (7, 12, 20, 30, 42, 56):
            for angle in np.arange(16) * np.pi / 8:
                shift = np.array([np.cos(angle), np.sin(angle)]) * (radius * pixel + size / 2)
                box = _box(centre + shift, size + 2 * pixel)
                line = [_box(centre + shift * t, 2 * pixel) for t in (0.2, 0.4, 0.6, 0.8)]
                outside = _overlap(box, [box]) - _overlap(box, frame)
                hidden = _overlap(box, markers + labels) + sum(_overlap(dot, labels) for dot in line)
                cost = 100 * (outside + hidden) + _overlap(box, bars) + radius
                if cost < best:
                    best, offset, label, far = cost, shift, box, radius > 12
        labels.append(label)
        colour = styles[row.name].colour
        ax.annotate(
            row.name,
            (x.mean, y.mean),
            xytext=tuple(offset / pixel),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5} if far else None,
        )


def _box(centre: np.ndarray, size: np.ndarray | float) -> np.ndarray:
    """Lower left and upper right corner, (2, 2), in pixels."""
    return np.array([centre - size / 2, centre + size / 2])


def _overlap(box: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """The area of `box` that others cover, in square pixels, counted once for each."""
    corners = np.array(others).reshape(-1, 2, 2)
    sides = np.minimum(box[1], corners[:, 1]) - np.maximum(box[0], corners[:, 0])
    return float(sides.clip(min=0).prod(axis=1).sum())
