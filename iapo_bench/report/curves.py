"""Accuracy and length while training."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iapo_bench.config.report import Labels
from iapo_bench.report.rows import caution, split_run
from iapo_bench.report.steps import read_steps
from iapo_bench.report.style import LIGHT, MANY, STYLE, Style, label_ends, method_styles, new_figure, save_figure

SMOOTHING = 5
COLUMNS = 6  # of panels, where every method has its own
PANELS = {"correct": "share correct", "length": "mean length (tokens)"}


def make_curves(labels: Labels, runs: dict[str, Path], figure: Path) -> None:
    """Draw accuracy and length of the training completions. `runs`: run directories by METHOD/SEED."""
    logs: dict[str, list[Path]] = {}
    for name, folder in runs.items():
        logs.setdefault(split_run(name)[0], []).append(folder / "train.jsonl")
    save_figure(training_curves(labels, logs), figure)


class Curve(NamedTuple):
    """A smoothed measure of training at X steps: mean, lowest and highest over training seeds."""

    places_X: np.ndarray  # completions generated
    mean_X: np.ndarray
    low_X: np.ndarray
    high_X: np.ndarray
    validation_2V: np.ndarray  # completions generated and mean over training seeds, at the V validated steps


def training_curves(labels: Labels, runs: Mapping[str, Sequence[Path]]) -> Figure:
    """Share correct and mean length of the training completions, from `train.jsonl`: a line for each method.

    With several runs (training seeds) the line is their mean, and the band their range. More than `MANY` methods get a
    panel each, in which the others are grey. Where runs were validated, a thin line with points shows the unsmoothed
    measurements. Raises UserError for a file that cannot be read.
    """
    needed = (*PANELS, "completions_total")
    told = [f"validation_{key}" for key in PANELS]
    steps = {method: [read_steps(path, needed, told) for path in paths] for method, paths in runs.items()}
    several = any(len(frames) > 1 for frames in steps.values())
    title = f"{caution(labels.tier)}{labels.model} on {labels.dataset}, training: centred running mean over "
    title += f"{SMOOTHING} steps"
    title += "; lines: mean over training seeds, bands: their range" if several else ""
    looked = any("validation_correct" in frame for frames in steps.values() for frame in frames)
    title += "; thin lines with points: validation problems" if looked else ""
    found = {label: {method: _curve(frames, key) for method, frames in steps.items()} for key, label in PANELS.items()}
    with mpl.rc_context(STYLE):
        return _small_multiples(found, title) if len(runs) > MANY else _overlaid(found, title)


def _curve(frames: Sequence[pd.DataFrame], key: str) -> Curve:
    smooth = [frame[key].rolling(SMOOTHING, center=True, min_periods=1).mean() for frame in frames]
    # With dynamic sampling a step's number of completions differs between runs: interpolate to the first run's.
    places = frames[0]["completions_total"].to_numpy()
    runs_SX = np.array([np.interp(places, f["completions_total"], y) for f, y in zip(frames, smooth, strict=True)])
    return Curve(places, runs_SX.mean(axis=0), runs_SX.min(axis=0), runs_SX.max(axis=0), _validation(frames, key))


def _validation(frames: Sequence[pd.DataFrame], key: str) -> np.ndarray:
    """Mean over the validated runs, interpolated to the steps of the first of them, (2, V)."""
    name, x = f"validation_{key}", "completions_total"
    seen = [frame.dropna(subset=name) for frame in frames if name in frame]
    if not seen:
        return np.empty((2, 0))
    places = seen[0][x].to_numpy()
    return np.array([places, np.mean([np.interp(places, frame[x], frame[name]) for frame in seen], axis=0)])


def _overlaid(found: Mapping[str, Mapping[str, Curve]], title: str) -> Figure:
    figure, axes = new_figure(2, title, height=2.6)
    for ax, (label, curves) in zip(axes, found.items(), strict=True):
        styles = method_styles(curves)
        for method, curve in curves.items():
            _draw(ax, curve, styles[method], method)
        ax.set_xlabel("completions generated")
        ax.set_ylabel(label)
        ends = {method: (curve.places_X[-1], curve.mean_X[-1]) for method, curve in curves.items()}
        ax.set_xlim(0, 1.2 * max(x for x, _ in ends.values()))
        label_ends(ax, ends, styles)
    return figure


def _small_multiples(found: Mapping[str, Mapping[str, Curve]], title: str) -> Figure:
    rows = -(-len(next(iter(found.values()))) // COLUMNS)
    figure, axes = new_figure(COLUMNS, title, height=0.5 + 2 * rows * 0.85, heights=[1] * (2 * rows))
    for part, (label, curves) in enumerate(found.items()):
        styles, mine = method_styles(curves), axes[part * rows * COLUMNS : (part + 1) * rows * COLUMNS]
        for place, (ax, method) in enumerate(itertools.zip_longest(mine, curves)):
            if method is None:
                ax.remove()
                continue
            for other in curves.values():
                ax.plot(other.places_X, other.mean_X, color=LIGHT, linewidth=0.6)
            _draw(ax, curves[method], styles[method], method)
            ax.sharey(mine[0])
            ax.set_title(method, color=styles[method].colour, pad=2)
            ax.locator_params(nbins=3)
            ax.tick_params(labelleft=place % COLUMNS == 0, labelbottom=place + COLUMNS >= len(curves))
        mine[COLUMNS * (rows // 2)].set_ylabel(label)
    figure.supxlabel("completions generated", fontsize=STYLE["axes.labelsize"])
    return figure


def _draw(ax: Axes, curve: Curve, look: Style, method: str) -> None:
    ax.plot(curve.places_X, curve.mean_X, color=look.colour, linestyle=look.dashes, linewidth=1.4, label=method)
    if (curve.high_X > curve.low_X).any():
        ax.fill_between(curve.places_X, curve.low_X, curve.high_X, color=look.colour, alpha=0.13, linewidth=0)
    if curve.validation_2V.size:
        ax.plot(*curve.validation_2V, color=look.colour, linestyle=look.dashes, linewidth=0.7, marker=".", markersize=3)
