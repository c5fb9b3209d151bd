"""Reliable wall-clock: every row in turn, alone on the machine, several times."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iapo_bench.config.timing import TimingJob
from iapo_bench.evaluate.intervals import estimate
from iapo_bench.evaluate.sample import sample
from iapo_bench.files import read_json, read_jsonl, whole_file
from iapo_bench.machine.provenance import write_provenance
from iapo_bench.report.document import Block, Table, ranged, write_document
from iapo_bench.report.rows import opening
from iapo_bench.train.run import train


def time_rows(job: TimingJob, runs: Mapping[str, Path], *, base: Path, data: Path, out: Path) -> None:
    """Time a short sampling of every run, and a short training of each trained row, and write the seconds (`out`, CSV;
    .md, .tex and .html beside it).

    `runs`: run folders with `model/`, by METHOD/SEED or base. Each round starts with another row, so that a machine
    that slows down affects all rows alike. Seconds are those of the engine and of the training steps after the first;
    loading is left out. Intervals are over rounds.
    """
    measured: list[dict[str, Any]] = []
    names = list(runs)
    for round_ in range(job.rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            measured.append({"run": name, "round": round_} | _time(job, name, runs[name], base, data))
    frame = pd.DataFrame(measured)
    rows = [{"run": name, "rounds": job.rounds} | _summary(frame[frame["run"] == name]) for name in names]
    table = pd.DataFrame(rows)
    write_document(out, table, timing_blocks(job, table))
    with whole_file(out.with_suffix(".rounds.csv")) as rounds:
        frame.to_csv(rounds, index=False, float_format="%.6g")
    write_provenance(
        out.with_suffix(".provenance.json"),
        config=job.model_dump(mode="json"),
        inputs=[file for folder in runs.values() for file in sorted((folder / "model").glob("*.safetensors"))],
        seeds={},
    )


def _time(job: TimingJob, name: str, run: Path, base: Path, data: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        sample(job.sample, model=run / "model", data=data, out=Path(folder) / "test")
        timing = read_json(Path(folder) / "test" / "timing.json")
        found = {"sample_ms_per_completion": 1000 * timing["seconds"] / timing["completions"]}
        found["sample_tokens_per_second"] = timing["tokens"] / timing["seconds"]
        if training := job.train.get(name.partition("/")[0]):
            train(training, base=base, data=data, out=Path(folder) / "run")
            steps = pd.DataFrame(read_jsonl(Path(folder) / "run" / "train.jsonl", ())[1:])
            phases = steps.filter(regex="^seconds_")
            found["train_ms_per_completion"] = 1000 * phases.to_numpy().sum() / steps["completions"].sum()
            for phase in phases:
                each = 1000 * phases[phase].sum() / steps["completions"].sum()
                found[f"train_{str(phase).removeprefix('seconds_')}_ms"] = each
    return found


def timing_blocks(job: TimingJob, table: pd.DataFrame) -> list[Block]:
    """The times for readers, from the means of `time_rows`."""
    shown = {"sample_ms_per_completion": "sampling", "train_ms_per_completion": "training"}
    phases = [name for name in table if str(name).startswith("train_") and str(name).endswith("_ms")]
    shown |= {str(name): str(name).removeprefix("train_").removesuffix("_ms") for name in phases}
    columns = {"run": table["run"].tolist()}
    for name, heading in shown.items():
        if name in table:
            columns[heading] = [
                ranged(*ends, form="#.3g") for ends in table[[name, f"{name}_lo", f"{name}_hi"]].to_numpy()
            ]
    return [
        *opening(job.labels, "every row timed alone, in turn"),
        Table(columns, f"Milliseconds a completion, mean of {job.rounds} rounds and its 95% interval."),
    ]


def _summary(rounds: pd.DataFrame) -> dict[str, float]:
    found: dict[str, float] = {}
    for column in rounds.columns.drop(["run", "round"]):
        mean = estimate(rounds[column].to_numpy(float)[None], seeds=False)
        known = not np.isnan(mean.value)
        lo, hi = mean.interval if known else (np.nan, np.nan)
        found |= {str(column): mean.value, f"{column}_lo": lo, f"{column}_hi": hi}
    return found
