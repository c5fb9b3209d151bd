"""Wall-clock by method: training by phase, and sampling."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from iapo_bench.config.report import BASE, Labels
from iapo_bench.errors import damaged
from iapo_bench.report.document import Block, Table, write_document
from iapo_bench.report.rows import caution, opening, run_names, split_run
from iapo_bench.report.steps import read_json, read_steps
from iapo_bench.report.style import INK, NEUTRAL, STYLE, new_figure, save_figure

PHASES = ("rollout", "grade", "signals", "update", "other")


def make_wallclock(labels: Labels, runs: dict[str, Path], *, out: Path, figure: Path) -> None:
    """Write seconds by phase (`out`, CSV; .md, .tex and .html beside it) and their figure for each run, METHOD/SEED or
    "base": a directory with `test/timing.json` and, but for the base, `train.jsonl`."""
    rows = [
        wallclock_row(
            None if name == BASE else folder / "train.jsonl",
            folder / "test" / "timing.json",
            run=name,
            dataset=labels.dataset,
            model=labels.model,
        )
        for name, folder in runs.items()
    ]
    frame = pd.DataFrame(rows)
    drawing = wallclock_bars(labels, rows)
    write_document(out, frame, wallclock_blocks(labels, frame))
    save_figure(drawing, figure)


def wallclock_row(train_jsonl: Path | None, timing_json: Path, *, run: str, dataset: str, model: str) -> dict[str, Any]:
    """Where a run's time went: seconds of training by phase, and of sampling without the engine's warm-up.

    Without `train_jsonl` (the base model) the training columns are empty. Raises UserError for a file that lacks a key.
    """
    method, seed = split_run(run)
    training = _training_time(train_jsonl) if train_jsonl else dict.fromkeys(_TRAINING_COLUMNS)
    timing = read_json(timing_json)
    with damaged(timing_json, "sample again"):
        return {
            "method": method,
            "train_seed": seed,
            "dataset": dataset,
            "model": model,
            **{key: str(timing[key]) for key in ("engine", "hardware", "threads")},
            **training,
            "inference_seconds": timing["seconds"],
            "inference_completions": timing["completions"],
            "inference_tokens": timing["tokens"],
            "inference_tokens_per_second": timing["tokens"] / timing["seconds"],
            "warmup_seconds": timing["warmup_seconds"],
        }


def wallclock_blocks(labels: Labels, frame: pd.DataFrame) -> list[Block]:
    """The seconds for readers, from rows of `wallclock_row`."""
    training = {phase: _seconds(frame[f"train_seconds_{phase}"]) for phase in (*PHASES, "total")}
    columns = {
        "run": run_names(frame).tolist(),
        **training,
        "tokens/s": _seconds(frame["train_tokens_per_second"]),
        "sampling": _seconds(frame["inference_seconds"]),
        "sampling, tokens/s": _seconds(frame["inference_tokens_per_second"]),
    }
    made = "; ".join(
        f"{engine}, {hardware}, {threads} threads"
        for engine, hardware, threads in frame[["engine", "hardware", "threads"]].drop_duplicates().to_numpy()
    )
    return [
        *opening(labels, "where the time went"),
        Table(columns, f"Seconds of training by phase, and of sampling the test problems ({made})."),
        "Other jobs may have shared the machine meanwhile: rows are compared by `time`, which times them alone.",
    ]


def _seconds(values: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else f"{value:,.1f}" if value < 10 else f"{value:,.0f}" for value in values]


_STEP_KEYS = (*(f"seconds_{phase}" for phase in PHASES), "completions", "tokens")

_TRAINING_COLUMNS = (
    "train_seconds_total",
    *(f"train_seconds_{phase}" for phase in PHASES),
    "steps",
    "completions",
    "train_tokens_per_second",
)


def _training_time(path: Path) -> dict[str, Any]:
    steps = read_steps(path, _STEP_KEYS)
    phases = {f"train_seconds_{phase}": float(steps[f"seconds_{phase}"].sum()) for phase in PHASES}
    total = sum(phases.values())
    rest = (len(steps), int(steps["completions"].sum()), float(steps["tokens"].sum() / total))
    return dict(zip(_TRAINING_COLUMNS, (total, *phases.values(), *rest), strict=True))


def wallclock_bars(labels: Labels, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Training seconds by phase and sampling seconds, a bar for each row of `wallclock_row`."""
    places = range(len(rows))
    title = f"{caution(labels.tier)}{labels.model} on {labels.dataset}: where the time went"
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(2, title, height=1.3 + 0.19 * len(rows))
        left = np.zeros(len(rows))
        for phase, colour in zip(PHASES, NEUTRAL, strict=False):
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
            ax.set_yticks(places, run_names(pd.DataFrame(rows)))
            ax.invert_yaxis()
            ax.margins(x=0.12)
            ax.grid(visible=False, axis="y")
        figure.legend(loc="outside right center", title="training phase")
    return figure
