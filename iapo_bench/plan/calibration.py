"""Measured speed of this machine: rates of finished runs, and their error in predicting other runs."""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iapo_bench.config.tier import TierConfig
from iapo_bench.errors import UserError, damaged
from iapo_bench.files import read_json, read_jsonl
from iapo_bench.models.architectures import Architecture
from iapo_bench.plan.costs import PHASES, Lengths, Work, flops, sampling_work, training_work

COLUMNS = ("completions", "groups", "tokens", *(f"seconds_{phase}" for phase in (*PHASES, "grade", "other")))


@dataclass(frozen=True)
class Run:
    """One training run: the rows of its train.jsonl and, where it was sampled, the content of timing.json."""

    method: str
    rows: list[dict[str, Any]]
    timing: dict[str, Any] | None = None

    @property
    def training_seconds(self) -> float:
        """Total training seconds over all steps and phases."""
        return sum(row[column] for row in self.rows for column in COLUMNS if column.startswith("seconds_"))


@dataclass(frozen=True)
class Rates:
    """FLOP/s by phase, "sampling" being the rollout of an evaluation; `other`: seconds per completion in no phase."""

    flops: dict[str, float]
    other: float

    def training(self, size: Architecture, work: Work) -> float:
        """Predicted seconds."""
        one = flops(size, work)
        return work.completions * (self.other + sum(one[phase] / self._rate(phase) for phase in PHASES))

    def sft(self, size: Architecture, work: Work) -> float:
        """Predicted seconds."""
        return work.completions * flops(size, work)["update"] / self._rate("update")

    def sampling(self, size: Architecture, work: Work) -> float:
        """Predicted seconds."""
        return work.completions * flops(size, work)["rollout"] / self._rate("sampling")

    def _rate(self, phase: str) -> float:
        return self.flops.get(phase) or self.flops["rollout"]


def read_runs(path: Path, tier: TierConfig) -> list[Run]:
    """The runs of a tier: one train.jsonl, or all METHOD/seed*/train.jsonl of a directory.

    Raises UserError when there are none, or for a file that is not a run's.
    """
    files = [path] if path.is_file() else sorted(path.glob("*/seed*/train.jsonl"))
    runs = []
    for file in files:
        method = file.resolve().parent.parent.name
        if method not in {**tier.methods, **tier.ablations}:
            if path.is_file():
                raise UserError(f"{path}: '{method}' is not a method of {tier.tier}: give .../METHOD/seed0/train.jsonl")
            continue
        timing = file.parent / "test" / "timing.json"
        measured = read_json(timing) if timing.is_file() else None
        rows = read_jsonl(file, COLUMNS)
        with damaged(file, "train again"):
            runs.append(Run(method, [{name: float(row[name]) for name in COLUMNS} for row in rows], measured))
    if not runs:
        raise UserError(f"{path} holds no METHOD/seed*/train.jsonl of {tier.tier}: run a training there first")
    return runs


def fit(size: Architecture, tier: TierConfig, runs: list[Run], lengths: Lengths) -> Rates:
    """The rates that the runs achieved, at the lengths that they had."""
    work, time = defaultdict[str, float](float), defaultdict[str, float](float)
    completions = 0
    for run in runs:
        drawn = sum(row["completions"] for row in run.rows)
        length = sum(row["tokens"] for row in run.rows) / max(drawn, 1)
        one_work = training_work(tier, run.method, replace(lengths, completion=length))
        one, trained = flops(size, one_work), sum(row["groups"] for row in run.rows) * one_work.group
        for phase in PHASES:
            work[phase] += one[phase] * (drawn if phase == "rollout" else trained)
            # A phase without work still logs microseconds, which say nothing about a rate.
            time[phase] += sum(row[f"seconds_{phase}"] for row in run.rows) if one[phase] else 0.0
        time["other"] += sum(row["seconds_grade"] + row["seconds_other"] for row in run.rows)
        completions += drawn
        if run.timing:
            sampled = sampling_work(
                tier, 1, replace(lengths, completion=run.timing["tokens"] / run.timing["completions"])
            )
            work["sampling"] += flops(size, sampled)["rollout"] * run.timing["completions"]
            time["sampling"] += run.timing["seconds"]
    rates = {phase: work[phase] / time[phase] for phase in (*PHASES, "sampling") if time[phase] > 0}
    if "rollout" not in rates:
        raise UserError("the runs to calibrate from record no rollout time: give finished runs")
    return Rates(rates, time["other"] / max(completions, 1))


def compare(
    size: Architecture, tier: TierConfig, runs: list[Run], lengths: Lengths, problems: int
) -> list[dict[str, Any]]:
    """Predicted and measured seconds of each run, predicted from the others.

    A single run is predicted from its first half. The predictions take the plan's mean lengths, not the run's.
    """
    table = []
    for i, run in enumerate(runs):
        others = runs[:i] + runs[i + 1 :] or [replace(run, rows=run.rows[: max(1, len(run.rows) // 2)], timing=None)]
        rates = fit(size, tier, others, lengths)
        work = training_work(tier, run.method, lengths)
        work = replace(work, completions=sum(row["completions"] for row in run.rows))
        table.append(_row(run.method, "training", rates.training(size, work), run.training_seconds))
        if run.timing:
            sampled = replace(sampling_work(tier, problems, lengths), completions=run.timing["completions"])
            table.append(_row(run.method, "sampling", rates.sampling(size, sampled), run.timing["seconds"]))
    return table


def _row(method: str, what: str, predicted: float, measured: float) -> dict[str, Any]:
    return {
        "run": method,
        "what": what,
        "predicted s": round(predicted, 1),
        "measured s": round(measured, 1),
        "ratio": round(predicted / max(measured, 1e-9), 2),
    }
