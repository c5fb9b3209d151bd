"""Would you get the same answer? Two results, cell by cell, by a stated margin."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic.fields import FieldInfo
from tabulate import tabulate

from iapo_bench.config.evaluate import EvalConfig
from iapo_bench.config.model import ModelConfig
from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import Section, is_free
from iapo_bench.config.train import TrainConfig
from iapo_bench.config.world import WorldConfig
from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import ALPHA, Estimate, estimate, holm
from iapo_bench.report.results import Results, open_results
from iapo_bench.report.rows import ENVIRONMENT, Row

REPRODUCED, WITHIN, NOT = "reproduced", "within seed variation", "not reproduced"
MEASURES = ("pass", "length", "ratio")
# Settings that may differ between a result and its reference: a reproduction with other seeds shows more.
_FREE = ("seeds", "train_seeds")
_SECTIONS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "evaluate": EvalConfig,
    "model": ModelConfig,
    "world": WorldConfig,
    "prompt": PromptConfig,
}


@dataclass(frozen=True)
class Margins:
    """The largest deviation of a reproduced cell: `points` of Pass@k, a relative `share` of length and ratio."""

    points: float = 0.02
    share: float = 0.03

    def of(self, measure: str, reference: float) -> float:
        """The margin of a cell, in its own unit."""
        return self.points if measure == "pass" else self.share * abs(reference)


def verify(results: Path, against: Path, margins: Margins) -> pd.DataFrame:
    """A row for every cell of the reference: both values, their difference, its 95% interval, and a verdict.

    *Reproduced*: the cells are equal to six digits, or the interval lies within the margin. *Within seed variation*:
    the difference cannot be told from 0 (Holm's correction over cells). Otherwise *not reproduced*. Where both hold
    counts by problem, differences are paired; where only one has several training seeds, the other is taken to vary as
    they do; where neither has, other training seeds count as not reproduced. So does a cell that its own counts by
    problem contradict (`as_counted` is False). Raises UserError, naming the difference, for results of other settings,
    and for cells that the results lack.
    """
    with open_results(results) as ours, open_results(against) as theirs:
        parts = [(ours, theirs), *((ours.on(dataset), theirs.on(dataset)) for dataset in theirs.others)]
        for part in parts:
            _require_alike(ours.file, theirs.file, differing_rows(*part))
        _require_alike(ours.record, theirs.record, differing_settings(ours, theirs))
        lines = [line for part in parts for line in _cells(*part)]
    corrected = holm([line["p"] for line in lines])
    for line, p in zip(lines, corrected, strict=True):
        margin = margins.of(line["cell"].split("@")[0], line["reference"])
        line["margin"] = margin
        equal = f"{line['value']:.6g}" == f"{line['reference']:.6g}"
        inside = line["lo"] >= -margin and line["hi"] <= margin
        if not line["as_counted"]:
            line["verdict"] = NOT
        else:
            line["verdict"] = REPRODUCED if equal or inside else WITHIN if p >= ALPHA else NOT
    return pd.DataFrame(lines)


def _require_alike(ours: Path, theirs: Path, differences: Iterator[str]) -> None:
    if found := list(differences):
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(f"{ours} differs from {theirs}: {'; '.join(found[:5])}{more}: nothing was compared")


def differing_rows(ours: Results, theirs: Results) -> Iterator[str]:
    """The differences between the rows of two tables that make them incomparable, in words."""
    if missing := sorted({*theirs.table["method"]} - {*ours.table["method"]}):
        yield f"rows that are missing{_on(theirs)}: {', '.join(missing)}"
    for _, reference in theirs.table.iterrows():
        row = ours.table[ours.table["method"] == reference["method"]]
        for column in ("model", "dataset", "profile", "n_problems", "n_samples"):
            if not row.empty and str(row.iloc[0][column]) != str(reference[column]):
                yield f"{reference['method']}: {column} {row.iloc[0][column]} against {reference[column]}"
        if not row.empty and (
            lacking := [c for c in _measured(reference) if not np.isfinite(row.iloc[0].get(c, np.nan))]
        ):
            yield f"cells that are missing: {reference['method']} {', '.join(lacking)}"
    rows, others = ours.summaries(), theirs.summaries()
    for side in filter(None, (rows, others)):
        if gone := [name for name in theirs.table["method"] if name not in side]:
            yield f"counts by problem that are missing{_on(theirs)}: {', '.join(gone)}"
    if asked := [name for name in others if name in rows and rows[name].tally.problems != others[name].tally.problems]:
        yield f"other problems: {', '.join(asked)}"


def differing_settings(ours: Results, theirs: Results) -> Iterator[str]:
    """The differences between the settings of two results, in words."""
    settings = [results.provenance.get("config", {}) for results in (ours, theirs)]
    mine, other = (dict(_flat({row: told for row, told in each.items() if row in settings[1]})) for each in settings)
    rows: dict[str, list[str]] = {}
    for key in sorted(mine.keys() | other.keys()):
        row, _, setting = key.partition(".")
        here, there = mine.get(key, default := _default(key)), other.get(key, default)
        if key.split(".")[-1] not in _FREE and not _free(key) and here != there:
            rows.setdefault(f"{setting} {here} against {there}", []).append(row)
    for words, names in rows.items():
        yield f"{words} ({', '.join(names)})"


def _on(results: Results) -> str:
    return f" on {results.also}" if results.also else ""


def _default(key: str) -> Any:
    """The value of a setting in a result older than the setting: its default."""
    field = _field(key)
    return "unset" if field is None or field.is_required() else field.get_default(call_default_factory=True)


def _free(key: str) -> bool:
    """Whether a setting cannot change a result; older results may still record it."""
    field = _field(key)
    return field is not None and is_free(field)


def _field(key: str) -> FieldInfo | None:
    *_, section, name = ["", *key.split(".")]
    return _SECTIONS[section].model_fields.get(name) if section in _SECTIONS else None


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for part, item in value.items():
            yield from _flat(item, f"{key}.{part}" if key else str(part))
    else:
        yield key, value


def _cells(ours: Results, theirs: Results) -> Iterator[dict[str, Any]]:
    rows, others = ours.summaries(), theirs.summaries()
    for _, reference in theirs.table.iterrows():
        method = str(reference["method"])
        row = ours.row(method)
        for cell in _measured(reference):
            counted = _as_counted(cell, row, rows) and _as_counted(cell, reference, others)
            if counted:
                found = _difference(cell, row, reference, rows.get(method), others.get(method))
            else:
                found = Estimate(float(row[cell] - reference[cell]), ((float("nan"), 0),))
            lo, hi = found.interval
            yield {
                "row": f"{method}{_on(theirs)}",
                "cell": cell,
                "value": float(row[cell]),
                "reference": float(reference[cell]),
            } | {
                "difference": found.value,
                "lo": lo,
                "hi": hi,
                "p": found.p,
                "as_counted": counted,
            }


def _measured(line: pd.Series) -> list[str]:
    """The cells of a line that hold a value, such as `pass@16`."""
    kinds = {name: name.partition("@") for name in map(str, line.index)}
    cells = [name for name, (measure, _, k) in kinds.items() if measure in MEASURES and k.isdigit()]
    return [cell for cell in cells if not np.isnan(line[cell])]


def _values(cell: str, row: Row) -> np.ndarray:
    """A cell's values by training seed and problem, (T, P)."""
    return row.tally.values("length" if cell.startswith("length") else cell)


def _as_counted(cell: str, line: pd.Series, rows: Mapping[str, Row]) -> bool:
    """Whether a cell of a table and its interval agree with the row's counts by problem; True without counts."""
    if (row := rows.get(str(line["method"]))) is None:
        return True
    counted = estimate(_values(cell, row), seeds=True)
    lo, hi = np.clip(counted.interval, 0, 1 if cell.startswith("pass") else None)
    told = {cell: counted.value, f"{cell}_lo": lo, f"{cell}_hi": hi}
    return all(np.isclose(line[name], value, rtol=1e-5, equal_nan=True) for name, value in told.items() if name in line)


def _difference(cell: str, row: pd.Series, reference: pd.Series, ours: Row | None, theirs: Row | None) -> Estimate:
    if ours and theirs:
        values = [_values(cell, side) for side in (ours, theirs)]
        found = estimate(*values, seeds=True)
        seeds = sorted(len(side) for side in values)
        if ours.trained and seeds[0] == 1 < seeds[1] and len(found.parts) > 1:
            # Assume that the single training seed varies as the other side's do.
            problems, (variance, df) = found.parts
            return Estimate(found.value, (problems, (variance * (1 + seeds[1]), df)))
        return found
    nothing = float("nan")
    halves = [(line.get(f"{cell}_hi", nothing) - line.get(f"{cell}_lo", nothing)) / 2 for line in (row, reference)]
    variance = sum((half / 1.96) ** 2 for half in halves)
    return Estimate(float(row[cell] - reference[cell]), ((float(variance), float(row["n_problems"] - 1)),))


ONE_SEED = (
    "one training seed on both sides: how far seeds move a result is not known, so other weights count as not "
    "reproduced, be it by another seed or by another processor's rounding; give one side several seeds"
)


def surroundings(results: Path, against: Path) -> str:
    """Possible causes of different trained models, a line each: other engine, processor or versions, single seeds."""
    with open_results(results) as ours, open_results(against) as theirs:
        rows, others = ours.summaries(), theirs.summaries()
    lines = []
    for part in ENVIRONMENT:
        found = [sorted({v for row in side.values() for v in row.environment.get(part, [])}) for side in (rows, others)]
        if all(found) and found[0] != found[1]:
            lines.append(f"{part.replace('_', ' ')}: {', '.join(found[0])} against {', '.join(found[1])}")
    shared = [(row, others[name]) for name, row in rows.items() if row.trained and name in others]
    if shared and all(len(side.tally.train_seeds) == 1 for pair in shared for side in pair):
        lines.append(ONE_SEED)
    return "\n".join(lines)


def report(cells: pd.DataFrame, margins: Margins) -> str:
    """The verdicts for readers: counts, then every cell that is not plainly reproduced."""
    counts = cells["verdict"].value_counts()
    first = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in (REPRODUCED, WITHIN, NOT))
    text = (
        f"{len(cells)} cells: {first} (margin: {margins.points:g} in Pass@k, {margins.share:.0%} of length and ratio)"
    )
    odd = cells[cells["verdict"] != REPRODUCED]
    if odd.empty:
        return text
    table = odd[["row", "cell", "value", "reference", "difference", "lo", "hi", "verdict"]].to_dict("list")
    text = f"{text}\n\n{tabulate(table, headers='keys', tablefmt='github', floatfmt='.4g')}"
    wrong = [f"{line['row']} {line['cell']}" for _, line in odd[~odd["as_counted"]].iterrows()]
    return f"{text}\n\nA table is not what its counts by problem come to: {', '.join(wrong)}" if wrong else text


def exit_status(cells: pd.DataFrame) -> int:
    """1 if a cell is not reproduced, else 0."""
    if cells.empty:
        raise UserError("the results have no cell in common")
    return int((cells["verdict"] == NOT).any())
