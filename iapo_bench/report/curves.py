"""Accuracy and length while training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iapo_bench.config.report import Labels
from iapo_bench.report.rows import caution, split_run
from iapo_bench.report.steps import read_steps
from iapo_bench.report.style import STYLE, Style, label_ends, method_styles, new_figure, save_figure

SMOOTHING = 5


def make_curves(labels: Labels, runs: dict[str, Path], figure: Path) -> None:
    """Draw accuracy and length of the training completions of each run, named METHOD/SEED; a method's look alike."""
    logs: dict[str, list[Path]] = {}
    for name, folder in runs.items():
        logs.setdefault(split_run(name)[0], []).append(folder / "train.jsonl")
    save_figure(training_curves(labels, logs), figure)


def training_curves(labels: Labels, runs: Mapping[str, Sequence[Path]]) -> Figure:
    """Share correct and mean length of the training completions, from `train.jsonl`: a line for each method.

    Of several runs (training seeds) it is their mean, in a band from the lowest to the highest. Where a run looked at
    validation problems, a thin line with points shows that, as measured. Raises UserError for a file that cannot be
    read.
    """
    steps = {method: [pd.DataFrame(read_steps(path)) for path in paths] for method, paths in runs.items()}
    styles = method_styles(runs)
    panels = (("correct", "share correct"), ("length", "mean length (tokens)"))
    looked = any("validation_correct" in frame for frames in steps.values() for frame in frames)
    with mpl.rc_context(STYLE):
        several = any(len(frames) > 1 for frames in steps.values())
        title = f"{caution(labels.tier)}{labels.model} on {labels.dataset}, training: centred running mean over "
        title += f"{SMOOTHING} steps"
        title += "; lines: mean over training seeds, bands: their range" if several else ""
        title += "; thin lines with points: validation problems" if looked else ""
        figure, axes = new_figure(2, title, height=2.6)
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
            ends = {str(line.get_label()): tuple(np.asarray(line.get_xydata())[-1]) for line in ax.lines}
            for method, frames in steps.items():
                _draw_validation(ax, frames, f"validation_{key}", styles[method])
            ax.set_xlim(0, 1.2 * max(x for x, _ in ends.values()))
            label_ends(ax, ends, styles)
    return figure


def _draw_validation(ax: Axes, frames: Sequence[pd.DataFrame], key: str, style: Style) -> None:
    """The mean over the runs that looked, where the first of them did."""
    seen = [frame.dropna(subset=key) for frame in frames if key in frame]
    if not seen:
        return
    places = seen[0]["completions_total"]
    mean = np.mean([np.interp(places, frame["completions_total"], frame[key]) for frame in seen], axis=0)
    ax.plot(places, mean, color=style.colour, linestyle=style.dashes, linewidth=0.7, marker=".", markersize=3)
