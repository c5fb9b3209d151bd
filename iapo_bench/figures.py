"""The figures: accuracy against length, training curves, where the time went, and what tokens are for."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from iapo_bench.errors import UserError
from iapo_bench.files import whole_file
from iapo_bench.tables import BASE, PHASES, Row, read_steps

# Okabe and Ito's colours, which every kind of colour vision can tell apart; without yellow, too faint for a line.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
SMOOTHING = 5
# Roles of tokens, apart from the methods' colours: needed dark, what could go lighter.
ROLE_COLOURS = {"needed": "#3D4852", "check": "#7A93AC", "restatement": "#B3C6D6", "filler": "#E3DCCB"}
SCORE_LABELS = {
    "early_exit": "early exit",
    "early_exit_statement": "early exit,\nstatement",
    "next_token": "next token,\ndifference",
    "next_token_entropy": "next token,\nentropy",
    "position": "position",
}

_STYLE: Any = {
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


class _Style(NamedTuple):
    colour: str
    marker: str
    dashes: str


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
    styles = _styles(row.name for row in rows)
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(
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


def training_curves(runs: Mapping[str, Sequence[Path]]) -> Figure:
    """Share correct and mean length of the training completions, from `train.jsonl`: a line for each method.

    Of several runs (training seeds) it is their mean, in a band from the lowest to the highest. Raises UserError for a
    file that cannot be read.
    """
    steps = {method: [pd.DataFrame(read_steps(path)) for path in paths] for method, paths in runs.items()}
    styles = _styles(runs)
    panels = (("correct", "share correct"), ("length", "mean length (tokens)"))
    with mpl.rc_context(_STYLE):
        several = any(len(frames) > 1 for frames in steps.values())
        title = f"Training, centred running mean over {SMOOTHING} steps"
        figure, axes = _figure(2, title + ("; lines: mean over training seeds, bands: their range" if several else ""))
        for ax, (key, label) in zip(axes, panels, strict=True):
            for method, frames in steps.items():
                style = styles[method]
                smooth = [frame[key].rolling(SMOOTHING, center=True, min_periods=1).mean() for frame in frames]
                # Steps of a run that draws again for dropped groups lie elsewhere than another's.
                places = frames[0]["completions_total"]
                runs_SX = np.array(
                    [np.interp(places, f["completions_total"], y) for f, y in zip(frames, smooth, strict=True)]
                )
                ax.plot(
                    places,
                    runs_SX.mean(axis=0),
                    color=style.colour,
                    linestyle=style.dashes,
                    linewidth=1.4,
                    label=method,
                )
                if len(frames) > 1:
                    low, high = runs_SX.min(axis=0), runs_SX.max(axis=0)
                    ax.fill_between(places, low, high, color=style.colour, alpha=0.13, linewidth=0)
            ax.set_xlabel("completions generated")
            ax.set_ylabel(label)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def wallclock_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Training seconds by phase and sampling seconds, a bar for each row of `wallclock_row`."""
    places = range(len(rows))
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(2, "Wall-clock", height=1.4 + 0.3 * len(rows))
        left = np.zeros(len(rows))
        for phase, colour in zip(PHASES, PALETTE, strict=False):
            seconds = np.array([row[f"train_seconds_{phase}"] or 0.0 for row in rows])
            axes[0].barh(places, seconds, left=left, color=colour, label=phase, height=0.7)
            left += seconds
        totals = [f"{seconds:.0f}" if seconds else "not trained" for seconds in left]
        axes[0].bar_label(axes[0].containers[-1], totals, padding=3, color=INK)  # type: ignore[arg-type]
        sampling = axes[1].barh(places, [row["inference_seconds"] for row in rows], color="#888888", height=0.7)
        axes[1].bar_label(sampling, fmt="%.0f", padding=3, color=INK)
        axes[1].tick_params(labelleft=False)
        for ax, label in zip(axes, ("training (seconds)", "sampling the test problems (seconds)"), strict=True):
            ax.set_xlabel(label)
            ax.set_yticks(places, _run_names(pd.DataFrame(rows)))
            ax.invert_yaxis()
            ax.margins(x=0.12)
            ax.grid(visible=False, axis="y")
        figure.legend(loc="outside right center", title="training phase")
    return figure


def informativeness_roles(aucs: pd.DataFrame, roles: pd.DataFrame) -> Figure:
    """How well each score ranks needed above redundant tokens (AUC, 95% interval), and tokens a completion by role.

    `aucs` and `roles` are the two tables of `iapo_bench.roles`: a point and a bar for each run, a colour for each
    method. A score that found nothing to rank has no point.
    """
    aucs = aucs[aucs["needed_against"] == "redundant"].assign(run=_run_names(aucs))
    roles = roles.assign(run=_run_names(roles))
    methods = dict(zip(roles["run"], roles["method"], strict=True))
    runs, styles = list(methods), _styles(dict.fromkeys(methods.values()))
    scores = [score for score in SCORE_LABELS if score in set(aucs["score"])]
    with mpl.rc_context(_STYLE):
        title = f"{aucs['model'].iloc[0]} on {aucs['dataset'].iloc[0]}: what tokens tell, and what they are for"
        figure, (left, right) = _figure(2, title, height=3.4 + 0.16 * len(runs))
        left.axhline(0.5, color="#888888", linewidth=1, linestyle="--", zorder=1)
        for i, run in enumerate(runs):
            mine = aucs[aucs["run"] == run].set_index("score").loc[scores]
            places = np.arange(len(scores)) + (i - (len(runs) - 1) / 2) * 0.7 / len(runs)
            method = methods[run]
            colour, marker = styles[method].colour, styles[method].marker
            left.vlines(places, mine["auc_lo"], mine["auc_hi"], color=colour, linewidth=1.2)
            face = "white" if run == BASE else colour
            left.plot(places, mine["auc"], marker, color=colour, markerfacecolor=face, markersize=5, label=method)
        left.set_xticks(range(len(scores)), [SCORE_LABELS[score] for score in scores])
        left.set_ylabel("AUC, needed against redundant (0.5: chance)")
        left.grid(visible=False, axis="x")
        start = np.zeros(len(runs))
        for role, colour in ROLE_COLOURS.items():
            tokens = roles[roles["role"] == role].set_index("run")["tokens"].reindex(runs).to_numpy(float)
            right.barh(runs, tokens, left=start, color=colour, edgecolor="white", height=0.7, label=role)
            start += tokens
        right.bar_label(right.containers[-1], [f"{total:.1f}" for total in start], padding=3, color=INK)  # type: ignore[arg-type]
        right.invert_yaxis()
        right.margins(x=0.12)
        right.grid(visible=False)
        right.set_xlabel("tokens a completion")
        for ax in (left, right):
            once = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
            place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 4}
            ax.legend(once.values(), once.keys(), columnspacing=1.2, handletextpad=0.5, **place)
    return figure


def sensitivity_maps(table: pd.DataFrame, options: Sequence[str], measures: Sequence[str], *, title: str) -> Figure:
    """A heat map for each measure over two options, from the rows of `make_sensitivity`: the base's, then the grid's.

    The colour says how far a point is from the base, blue for the better and red for the worse side.
    """
    base, grid = table[table["method"] == BASE].iloc[0], table[table["method"] != BASE]
    across, up = options[1], options[0]
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(len(measures), title, height=3.4, width=3.0)
        for ax, measure in zip(axes, measures, strict=True):
            values = grid.pivot_table(index=up, columns=across, values=measure)
            lengths = measure.startswith("length")
            reach = max(float(np.nanmax(np.abs(values.to_numpy() - base[measure]))), 1e-9)
            colours = mpl.colormaps["RdBu_r" if lengths else "RdBu"]
            ax.imshow(
                values, cmap=colours, vmin=base[measure] - reach, vmax=base[measure] + reach, origin="lower", alpha=0.85
            )
            for (row, column), value in np.ndenumerate(values.to_numpy()):
                strong = abs(value - base[measure]) > 0.6 * reach
                ax.text(
                    column, row, f"{value:.3g}", ha="center", va="center", color="white" if strong else INK, fontsize=8
                )
            ax.set_xticks(range(len(values.columns)), [f"{x:g}" for x in values.columns])
            ax.set_yticks(range(len(values.index)), [f"{y:g}" for y in values.index])
            ax.set_xlabel(across)
            ax.set_ylabel(up)
            ax.set_title(f"{measure.capitalize()} (base {base[measure]:.3g})")
            ax.grid(visible=False)
    return figure


def _run_names(table: pd.DataFrame) -> pd.Series:
    """A run's method, and its training seed where a method has several."""
    seeds = table.groupby("method")["train_seed"].transform("nunique")
    return table["method"].where(seeds < 2, table["method"] + "/" + table["train_seed"].astype(str))


def save_figure(figure: Figure, stem: Path) -> None:
    """Write `stem.png` and `stem.svg`, each whole or not at all."""
    with mpl.rc_context(_STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with whole_file(stem.with_name(f"{stem.name}.{kind}")) as partial:
                figure.savefig(partial, format=kind, dpi=200, metadata=metadata)


def _figure(panels: int, title: str, height: float = 3.6, width: float = 4.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.0 + width * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _styles(methods: Iterable[str]) -> dict[str, _Style]:
    """A look for each method; the base takes none of the palette, so the others look the same without it."""
    styles = {BASE: _Style(INK, "o", ":")}
    for i, method in enumerate(method for method in methods if method != BASE):
        cycle, colour = divmod(i, len(PALETTE))
        styles[method] = _Style(PALETTE[colour], "osD^"[cycle % 4], ("-", "--", "-.", ":")[cycle % 4])
    return styles


def _label_points(ax: Axes, rows: Sequence[Row], k: int, styles: Mapping[str, _Style]) -> None:
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
