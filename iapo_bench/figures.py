"""The figures: accuracy against length, training curves, and where the time went."""

from collections.abc import Iterable, Mapping, Sequence
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from iapo_bench.errors import UserError
from iapo_bench.files import whole_file
from iapo_bench.tables import BASE, PHASES, Row, read_steps

# Okabe and Ito's colours, which every kind of colour vision can tell apart; without yellow, too faint for a line.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
SMOOTHING = 5

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iapo-bench",  # equal figures, equal files
}


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
    colours = _colours(row.method for row in rows)
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(len(shown), f"{rows[0].model} on {rows[0].dataset}: accuracy against length")
        for ax, k in zip(axes, shown, strict=True):
            for row in rows:
                x, y = row.summary.cells[f"length@{k}"], row.summary.cells[f"pass@{k}"]
                colour = colours[row.method]
                ax.hlines(y.mean, x.lo, x.hi, color=colour, linewidth=1)
                ax.vlines(x.mean, y.lo, y.hi, color=colour, linewidth=1)
                face = "white" if row.method == BASE else colour
                ax.plot(x.mean, y.mean, "o", markersize=6, color=colour, markerfacecolor=face, zorder=3)
            ax.margins(0.12)
            ax.set_xlabel(f"Length@{k} (tokens)")
            ax.set_ylabel(f"Pass@{k}")
            ax.set_title("bars: 95% intervals", loc="left", color="#666666")
        figure.canvas.draw()
        for ax, k in zip(axes, shown, strict=True):
            _label_points(ax, rows, k, colours)
    return figure


def training_curves(runs: Mapping[str, Sequence[Path]]) -> Figure:
    """Share correct and mean length of the training completions, from `train.jsonl`: one line for each method and seed.

    Raises UserError for a file that cannot be read.
    """
    steps = {method: [pd.DataFrame(read_steps(path)) for path in paths] for method, paths in runs.items()}
    colours = _colours(runs)
    panels = (("correct", "share correct"), ("length", "mean length (tokens)"))
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(2, f"Training, running mean over {SMOOTHING} steps")
        for ax, (key, label) in zip(axes, panels, strict=True):
            for number, (method, frames) in enumerate(steps.items()):
                for frame in frames:
                    smooth = frame[key].rolling(SMOOTHING, center=True, min_periods=1).mean()
                    dashes = ("-", "--")[number // len(PALETTE) % 2]
                    ax.plot(
                        frame["completions_total"], smooth, dashes, color=colours[method], linewidth=1.4, label=method
                    )
            ax.set_xlabel("completions generated")
            ax.set_ylabel(label)
        handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside right center")
    return figure


def wallclock_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Training seconds by phase and sampling seconds, a bar for each row of `wallclock_row`."""
    names = [row["method"] for row in rows]
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(2, "Wall-clock", height=1.4 + 0.3 * len(rows))
        left = np.zeros(len(rows))
        for phase, colour in zip(PHASES, PALETTE, strict=False):
            seconds = np.array([row[f"train_seconds_{phase}"] or 0.0 for row in rows])
            axes[0].barh(names, seconds, left=left, color=colour, label=phase, height=0.7)
            left += seconds
        axes[1].barh(names, [row["inference_seconds"] for row in rows], color="#888888", height=0.7)
        for ax, label in zip(axes, ("training (seconds)", "sampling the test problems (seconds)"), strict=True):
            ax.set_xlabel(label)
            ax.invert_yaxis()
            ax.grid(visible=False, axis="y")
        figure.legend(loc="outside right center")
    return figure


def save_figure(figure: Figure, stem: Path) -> None:
    """Write `stem.png` and `stem.svg`, each whole or not at all."""
    with mpl.rc_context(_STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with whole_file(stem.with_name(f"{stem.name}.{kind}")) as partial:
                figure.savefig(partial, format=kind, dpi=200, metadata=metadata)


def _figure(panels: int, title: str, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.0 + 4.0 * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _colours(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method; the base has none of the palette, so the others keep theirs without it."""
    trained = [method for method in methods if method != BASE]
    return {BASE: INK} | {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(trained)}


def _label_points(ax: Axes, rows: Sequence[Row], k: int, colours: Mapping[str, str]) -> None:
    """Write each method's name near its point, where it covers no point, no other name and little of the bars."""
    renderer = ax.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    scale = ax.figure.dpi / 72
    centres, bars = [], []
    for row in rows:
        x, y = row.summary.cells[f"length@{k}"], row.summary.cells[f"pass@{k}"]
        centres.append(ax.transData.transform((x.mean, y.mean)))
        for corners in (((x.lo, y.mean), (x.hi, y.mean)), ((x.mean, y.lo), (x.mean, y.hi))):
            bars.append(Bbox(ax.transData.transform(corners)).padded(scale))
    taken = [Bbox.from_bounds(cx, cy, 0, 0).padded(5 * scale) for cx, cy in centres]
    for row, (cx, cy) in zip(rows, centres, strict=True):
        text = ax.annotate(row.method, (0, 0), fontsize=8)
        size = text.get_window_extent(renderer)
        text.remove()

        def box(radius: float, angle: float, cx=cx, cy=cy, size=size) -> Bbox:
            x = cx + cos(angle) * (radius * scale + size.width / 2)
            y = cy + sin(angle) * (radius * scale + size.height / 2)
            return Bbox.from_bounds(x - size.width / 2, y - size.height / 2, size.width, size.height)

        def cost(place: tuple[float, float], box=box) -> float:
            area = box(*place).padded(scale)
            outside = area.width * area.height - _overlap(area, ax.bbox)
            covered = sum(_overlap(area, other) for other in taken)
            return 100 * (outside + covered) + sum(_overlap(area, bar) for bar in bars) + place[0]

        places = [(radius, step * pi / 8) for radius in (7, 12, 20, 30, 42) for step in range(16)]
        best = min(places, key=cost)
        taken.append(box(*best).padded(scale))
        centre = (taken[-1].x0 + taken[-1].x1) / 2 - cx, (taken[-1].y0 + taken[-1].y1) / 2 - cy
        ax.annotate(
            row.method,
            (row.summary.cells[f"length@{k}"].mean, row.summary.cells[f"pass@{k}"].mean),
            xytext=(centre[0] / scale, centre[1] / scale),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=colours[row.method],
            arrowprops={"arrowstyle": "-", "color": colours[row.method], "linewidth": 0.5} if best[0] > 12 else None,
        )


def _overlap(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return both.width * both.height if both else 0.0
