"""Rows of a table: a method's summary, its test problems, and the source of its settings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from iapo_bench.config.report import BASE, Labels, RowJob
from iapo_bench.errors import UserError, damaged
from iapo_bench.evaluate.intervals import Estimate, estimate
from iapo_bench.evaluate.metrics import Samples, Summary, Tally, read_grades
from iapo_bench.files import read_csv, whole_file, write_json
from iapo_bench.report.steps import read_json, read_steps

# Ways to shorten the base without training it, made of its own samples by `iapo_bench.report.controls`.
CONTROLS = ("base_cut", "base_shortest")

# The environment that can change a result's last digits; a table says where its rows differ in it.
ENVIRONMENT = ("engine", "hardware", "instruction_set", "torch", "transformers")

_UPDATES = ("updates", "updates_moved")
LABELS = ("model", "dataset", "method", "tier", "profile", "selection")


@dataclass(frozen=True)
class Row:
    """One line of the table: a method's summary, its counts by problem, what it was measured on, and how its settings
    were chosen."""

    model: str
    dataset: str
    method: str
    tier: str
    profile: str
    selection: str
    summary: Summary
    tally: Tally
    parent: str = ""  # the method that a variant varies
    settings: dict[str, Any] = field(default_factory=dict)  # that decided its training and samples
    environment: dict[str, list[str]] = field(default_factory=dict)  # its samples' values of each of `ENVIRONMENT`
    updates: int = 0  # of all its training runs, where their logs were given
    updates_moved: int = 0  # those that moved the weights

    @property
    def trained(self) -> bool:
        """False for the base and its controls."""
        return self.method != BASE and self.method not in CONTROLS

    @property
    def name(self) -> str:
        """The row's name in tables and figures: the method, and its profile unless that is `paper` or in the name."""
        told = not self.trained or self.profile in ("", "paper") or self.method.endswith(self.profile)
        return self.method if told else f"{self.method} ({self.profile})"

    @property
    def idleness(self) -> str:
        """Empty if every update moved the weights, else "4 of 80 updates moved the weights"."""
        idle = self.updates_moved < self.updates
        return f"{self.updates_moved} of {self.updates} updates moved the weights" if idle else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: labels and summary on one level. The counts have a file of their own."""
        labels = (*LABELS, "parent", "settings", "environment", *_UPDATES)
        return {label: getattr(self, label) for label in labels} | self.summary.to_dict()

    @classmethod
    def from_dict(cls, content: dict[str, Any], tally: Tally) -> Self:
        """The inverse of `to_dict`. Raises KeyError or ValueError for anything else."""
        told = {label: content[label] for label in (*LABELS, "parent", "settings", "environment")}
        told |= {name: int(content.get(name, 0)) for name in _UPDATES}
        if not all(isinstance(told[label], str) for label in (*LABELS, "parent")):
            raise ValueError("a label must be text")
        TypeAdapter(dict[str, list[str]]).validate_python(told["environment"])
        summary = Summary.from_dict(content)
        accuracy = tally.values("pass@1").mean()
        if summary.train_seeds != [*tally.train_seeds] or not np.isclose(summary.accuracy, accuracy):
            raise ValueError("the counts by problem beside it come from other grades")
        return cls(**told, summary=summary, tally=tally)

    def write(self, path: Path) -> None:
        """Write the summary to `path` and the counts by problem beside it, as parquet; `read_rows` reads both."""
        with whole_file(path.with_suffix(".parquet")) as counts:
            self.tally.to_parquet(counts)
        write_json(path, self.to_dict())


def split_run(name: str) -> tuple[str, str]:
    """Method and training seed of a run's name, METHOD/SEED, or ("base", ""). Raises UserError for any other name."""
    method, _, seed = name.partition("/")
    if not method or (method == BASE) != (not seed):
        raise UserError(f"'{name}' is not the name of a run: write METHOD/SEED=DIR, or {BASE}=DIR")
    return method, seed


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """The rows in summary files, in the order given, with the counts beside them.

    Raises UserError, with the path, for a file that holds none.
    """
    rows: dict[tuple[str, ...], Row] = {}
    for path in paths:
        content = read_json(path)
        tally = Tally.from_parquet(path.with_suffix(".parquet"))
        with damaged(path, "measure again"):
            row = Row.from_dict(content, tally)
        if (key := (row.model, row.dataset, row.tier, row.name)) in rows:
            raise UserError(f"{path}: second summary of {row.name} on {row.dataset}: leave one out")
        rows[key] = row
    return list(rows.values())


def change(row: Row, before: Row, measure: str, *, seeds: bool = True) -> Estimate:
    """`row` minus `before`, paired by problem; with `seeds`, over training seeds too where there are several.

    Raises UserError for rows that answered different problems.
    """
    if row.tally.problems != before.tally.problems:
        raise UserError(f"{row.name} and {before.name} have samples of different problems: sample the same problems")
    return estimate(row.tally.values(measure), before.tally.values(measure), seeds=seeds)


def measure(job: RowJob, grades: dict[int, Path], out: Path, logs: Iterable[Path] = ()) -> None:
    """Write one row's summary and its counts by problem; `grades` holds its grades by training seed, `logs` are the
    `train.jsonl` of its runs."""
    steps = [read_steps(log, (), _UPDATES) for log in logs]
    updates, moved = (int(sum(frame[name].sum() for frame in steps if name in frame)) for name in _UPDATES)
    samples = Samples.of({seed: read_grades(path) for seed, path in grades.items()})
    timings = [timing for path in grades.values() if (timing := path.with_name("timing.json")).is_file()]
    row = Row(
        **job.labels.model_dump(),
        method=job.method,
        profile=job.profile,
        selection=job.selection,
        summary=samples.summary(job.ks),
        tally=samples.tally(),
        parent=job.parent,
        settings=job.settings,
        environment=_environment([read_json(timing) for timing in timings]),
        updates=updates,
        updates_moved=moved,
    )
    row.write(out)


def read_published(path: Path) -> pd.DataFrame:
    """Published cells, a row for each model, dataset and method. Raises UserError for a repeated row, a cell that is no
    number, and a mean without its deviation."""
    hint = "a row for each model, dataset and method, with numbers"
    keys = dict.fromkeys(("model", "dataset", "method"), str)
    cells = [str(column) for column in read_csv(path, keys, hint) if "@" in str(column)]
    needed = list(cells)
    for cell in cells:
        measure, _, k = cell.partition("@")
        # The deviation of a ratio follows from those of its parts.
        needed += [f"pass@{k}", f"length@{k}"] if measure == "ratio" else [f"{cell.removesuffix('_std')}_std"]
    frame = read_csv(path, {**keys, **dict.fromkeys(needed, float)}, hint)
    if (twice := frame.duplicated([*keys])).any():
        raise UserError(f"{path}: '{frame['method'][twice].iloc[0]}' is repeated for the same model: {hint}")
    return frame


def _environment(timings: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The distinct values of each of `ENVIRONMENT`, as `sample` wrote them."""
    found = {part: sorted({str(timing[part]) for timing in timings if part in timing}) for part in ENVIRONMENT}
    return {part: values for part, values in found.items() if values}


def parents(rows: Iterable[Row]) -> dict[str, str]:
    """The method behind each row's name, for `method_styles`."""
    return {row.name: row.parent or row.method for row in rows}


def caution(tier: str) -> str:
    """The opening words of a tier's figures and tables: on a smoke tier, a warning that its numbers mean nothing."""
    return "Smoke tier: every step is real, but these numbers mean nothing. " if tier.startswith("smoke") else ""


def opening(shown: Labels | Row, what: str) -> list[str]:
    """The heading of a document on one model and dataset, and on a smoke tier its caution."""
    warning = caution(shown.tier).strip()
    return [f"# {shown.model} on {shown.dataset}: {what}", *([f"**{warning}**"] if warning else [])]


def run_names(table: pd.DataFrame) -> pd.Series:
    """A run's method, and its training seed where a method has several."""
    seeds = table.groupby("method")["train_seed"].transform("nunique")
    return table["method"].where(seeds < 2, table["method"] + "/" + table["train_seed"].astype(str))
