"""Accuracy against length, a point for each row."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iapo_bench.errors import UserError
from iapo_bench.report.rows import Row, caution, parents
from iapo_bench.report.style import MANY, STYLE, Style, method_styles, new_figure, plot_point


class Cross(NamedTuple):
    """A point with its 95% intervals: (mean, lower bound, upper bound) along each axis."""

    x: tuple[float, float, float]
    y: tuple[float, float, float]


def bar(mean: float, lo: float, hi: float) -> tuple[float, float, float]:
    """(mean, lower, upper); the mean stands in for bounds that are NaN, as with a single problem."""
    return (mean, mean, mean) if np.isnan(lo) else (mean, lo, hi)


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
    styles = method_styles((row.name for row in rows), parents(rows))
    title = f"{rows[0].model} on {rows[0].dataset}: accuracy against length, 95% intervals"
    with mpl.rc_context(STYLE):
        height = 4.0 if len(rows) > MANY else 2.6
        figure, axes = new_figure(len(shown), caution(rows[0].tier) + title, height=height, wide=len(shown) > 1)
        found = [{row.name: _cross(row, k) for row in rows} for k in shown]
        for ax, k, crosses in zip(axes, shown, found, strict=True):
            draw_crosses(ax, crosses, styles)
            ax.margins(0.12)
            ax.set_xlabel(f"Length@{k} (tokens)")
            ax.set_ylabel(f"Pass@{k}")
        figure.canvas.draw()
        for ax, crosses in zip(axes, found, strict=True):
            label_crosses(ax, crosses, styles)
    return figure


def _cross(row: Row, k: int) -> Cross:
    length, passes = row.summary.cells[f"length@{k}"], row.summary.cells[f"pass@{k}"]
    return Cross(*(bar(cell.mean, cell.lo, cell.hi) for cell in (length, passes)))


def draw_crosses(ax: Axes, crosses: Mapping[str, Cross], styles: Mapping[str, Style]) -> None:
    """Draw each point with its bars."""
    for name, (x, y) in crosses.items():
        ax.hlines(y[0], *x[1:], color=styles[name].colour, linewidth=0.8)
        ax.vlines(x[0], *y[1:], color=styles[name].colour, linewidth=0.8)
        plot_point(ax, x[0], y[0], styles[name])


def label_crosses(ax: Axes, crosses: Mapping[str, Cross], styles: Mapping[str, Style]) -> None:
    """Write each name near its point, clear of points and other names and mostly of bars; call it after everything is
    drawn. A name without room nearby stands further off, at the end of a thin line.
    """
    pixel = ax.figure.dpi / 72  # pixels per typographic point
    at = [np.array(ax.transData.transform((x[0], y[0]))) for x, y in crosses.values()]
    bars = []
    for x, y in crosses.values():
        for ends in (((x[1], y[0]), (x[2], y[0])), ((x[0], y[1]), (x[0], y[2]))):
            bars.append(ax.transData.transform(ends) + np.array([[-pixel], [pixel]]))
    markers = [_box(centre, 10 * pixel) for centre in at]
    frame = [ax.bbox.get_points()]
    labels: list[np.ndarray] = []

    for (name, (x, y)), centre in zip(crosses.items(), at, strict=True):
        text = ax.text(0, 0, name, fontsize=7)
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
        colour = styles[name].colour
        ax.annotate(
            name,
            (x[0], y[0]),
            xytext=tuple(offset / pixel),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5} if far else None,
        )


def _box(centre: np.ndarray, size: np.ndarray | float) -> np.ndarray:
    """Lower left and upper right corner, (2, 2), in pixels."""
    return np.array([centre - size / 2, centre + size / 2])


def _overlap(box: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """The area of `box` that others cover, in square pixels, summed over `others`."""
    corners = np.array(others).reshape(-1, 2, 2)
    sides = np.minimum(box[1], corners[:, 1]) - np.maximum(box[0], corners[:, 0])
    return float(sides.clip(min=0).prod(axis=1).sum())
