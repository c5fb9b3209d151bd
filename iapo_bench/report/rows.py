"""Rows of a table: a method's summary, what it was measured on, and how its settings were chosen."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from iapo_bench.config.report import RowJob
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Summary, read_grades, summarise
from iapo_bench.files import whole_file
from iapo_bench.report.steps import read_json

BASE = "base"

LABELS = ("model", "dataset", "method", "tier", "profile", "selection")


@dataclass(frozen=True)
class Row:
    """One line of the table: a method's summary, what it was measured on, and how its settings were chosen."""

    model: str
    dataset: str
    method: str
    tier: str
    profile: str
    selection: str
    summary: Summary

    @property
    def name(self) -> str:
        """What tables and figures call the row: the method, and its profile unless that is the paper's or named so."""
        told = self.method == BASE or self.profile == "paper" or self.method.endswith(self.profile)
        return self.method if told else f"{self.method} ({self.profile})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: the labels and the summary on one level."""
        return {label: getattr(self, label) for label in LABELS} | self.summary.to_dict()

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises UserError when a key is missing."""
        if missing := [label for label in LABELS if label not in content]:
            raise UserError(f"a summary without '{missing[0]}': measure again")
        return cls(**{label: content[label] for label in LABELS}, summary=Summary.from_dict(content))


def split_run(name: str) -> tuple[str, str]:
    """Method and training seed of a run's name, METHOD/SEED, or "base" and nothing. Raises UserError for another."""
    method, _, seed = name.partition("/")
    if not method or (method == BASE) != (not seed):
        raise UserError(f"'{name}' is not the name of a run: write METHOD/SEED=DIR, or {BASE}=DIR")
    return method, seed


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """The rows in summary files, in the order given. Raises UserError, with the path, for a file that holds none."""
    rows = []
    for path in paths:
        try:
            rows.append(Row.from_dict(read_json(path)))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return rows


def measure(job: RowJob, grades: dict[int, Path], out: Path) -> None:
    """Write one row's summary; `grades` holds its grades by training seed."""
    summary = summarise({seed: read_grades(path) for seed, path in grades.items()}, job.ks)
    row = Row(
        **job.labels.model_dump(), method=job.method, profile=job.profile, selection=job.selection, summary=summary
    )
    with whole_file(out) as partial:
        partial.write_text(json.dumps({**row.to_dict(), "settings": job.settings}, indent=2) + "\n")


def run_names(table: pd.DataFrame) -> pd.Series:
    """A run's method, and its training seed where a method has several."""
    seeds = table.groupby("method")["train_seed"].transform("nunique")
    return table["method"].where(seeds < 2, table["method"] + "/" + table["train_seed"].astype(str))
