"""The tables: results for machines (CSV) and for readers (Markdown), and where the time went."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
from tabulate import tabulate

from iapo_bench.errors import UserError
from iapo_bench.files import whole_file
from iapo_bench.grading import Outcome
from iapo_bench.metrics import MEASURES, Cell, Summary

BASE = "base"
PHASES = ("rollout", "grade", "signals", "update", "other")

_LABELS = ("model", "dataset", "method", "tier", "profile", "selection")
_PUBLISHED_KS = (16, 32)


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
        return {label: getattr(self, label) for label in _LABELS} | self.summary.to_dict()

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises UserError when a key is missing."""
        if missing := [label for label in _LABELS if label not in content]:
            raise UserError(f"a summary without '{missing[0]}': measure again")
        return cls(**{label: content[label] for label in _LABELS}, summary=Summary.from_dict(content))


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
            rows.append(Row.from_dict(_read_json(path)))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return rows


def write_table(rows: Sequence[Row], csv: Path, markdown: Path, published: Path | None = None) -> None:
    """Write both forms of the table, each whole or not at all; `published` is a CSV file of published cells."""
    frame = table_frame(rows)
    text = table_markdown(rows, pd.read_csv(published) if published else None)
    with whole_file(csv) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g")
    with whole_file(markdown) as partial:
        partial.write_text(text)


def table_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The table, rows in the order given.

    Columns: those of the published table (empty where a k was not measured), the other ks, what stands behind a row,
    and the bounds of the 95% intervals.
    """
    if not rows:
        raise UserError("there are no summaries to make a table of")
    measured = sorted({k for row in rows for k in row.summary.ks})
    lines = []
    for row in rows:
        cells, summary = row.summary.cells, row.summary
        line: dict[str, Any] = {label: getattr(row, label) for label in _LABELS}
        for key, cell in cells.items():
            line |= {key: cell.mean, f"{key}_std": cell.std, f"{key}_lo": cell.lo, f"{key}_hi": cell.hi}
        line |= {"n_problems": summary.n_problems, "n_samples": summary.n_samples, "train_seeds": _train_seeds(row)}
        lines.append(line)
    columns = [
        *("model", "dataset", "method"),
        *_value_columns(_PUBLISHED_KS),
        *_value_columns([k for k in measured if k not in _PUBLISHED_KS]),
        *("tier", "profile", "n_problems", "n_samples", "train_seeds", "selection"),
        *(f"{measure}@{k}_{bound}" for measure in MEASURES for k in measured for bound in ("lo", "hi")),
    ]
    return pd.DataFrame(lines, columns=columns)


def table_markdown(rows: Sequence[Row], published: pd.DataFrame | None = None) -> str:
    """The table for readers: one part for each model, dataset and set of problems, and what stands behind its cells."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.dataset, row.tier, row.summary.n_problems), []).append(row)
    return "\n".join([*(_part(group, published) for group in groups.values()), _HOW_TO_READ])


def wallclock_row(train_jsonl: Path | None, timing_json: Path, *, run: str, dataset: str, model: str) -> dict[str, Any]:
    """Where a run's time went: seconds of training by phase, and of sampling apart from the engine's warm-up.

    Without `train_jsonl` (the base model) the training columns are empty. Raises UserError for a file that lacks a key.
    """
    method, seed = split_run(run)
    training = _training_time(train_jsonl) if train_jsonl else dict.fromkeys(_TRAINING_COLUMNS)
    timing = _read_json(timing_json)
    try:
        return {
            "method": method,
            "train_seed": seed,
            "dataset": dataset,
            "model": model,
            **{key: timing[key] for key in ("engine", "hardware", "threads")},
            **training,
            "inference_seconds": timing["seconds"],
            "inference_completions": timing["completions"],
            "inference_tokens": timing["tokens"],
            "inference_tokens_per_second": timing["tokens"] / timing["seconds"],
            "warmup_seconds": timing["warmup_seconds"],
        }
    except KeyError as error:
        raise UserError(f"{timing_json}: a timing without {error}: sample again") from None


def write_wallclock(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the rows of `wallclock_row`, in the order given, whole or not at all."""
    with whole_file(path) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False, float_format="%.6g")


_STEP_KEYS = (*(f"seconds_{phase}" for phase in PHASES), "completions", "tokens")
_TRAINING_COLUMNS = (
    "train_seconds_total",
    *(f"train_seconds_{phase}" for phase in PHASES),
    "steps",
    "completions",
    "train_tokens_per_second",
)


def _training_time(path: Path) -> dict[str, Any]:
    steps = pd.DataFrame(read_steps(path))
    if missing := [key for key in _STEP_KEYS if key not in steps]:
        raise UserError(f"{path}: steps without '{missing[0]}': train again")
    phases = {f"train_seconds_{phase}": float(steps[f"seconds_{phase}"].sum()) for phase in PHASES}
    total = sum(phases.values())
    rest = (len(steps), int(steps["completions"].sum()), float(steps["tokens"].sum() / total))
    return dict(zip(_TRAINING_COLUMNS, (total, *phases.values(), *rest), strict=True))


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The rows of a `train.jsonl`. Raises UserError when it is missing, empty or broken."""
    try:
        steps = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): train again") from None
    if not steps:
        raise UserError(f"{path} holds no steps: train again")
    return steps


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def _value_columns(ks: Iterable[int]) -> list[str]:
    spread = [f"{measure}@{k}{suffix}" for measure in ("pass", "length") for k in ks for suffix in ("", "_std")]
    return [*spread, *(f"ratio@{k}" for k in ks)]


def _train_seeds(row: Row) -> str:
    return "" if row.method == BASE else " ".join(map(str, row.summary.train_seeds))


_HOW_TO_READ = """\
Cells are means over training seeds x sampling seeds, with a 95% interval from a bootstrap over problems (and over
training seeds, where there are several). With one training seed the interval says nothing about what another training
run would give. **Bold** is the best of a column together with everything whose interval overlaps the best one's; where
that is every method, nothing is bold. All methods answer the same problems, so overlap errs on the side of a tie.
Published cells are mean ± standard deviation over runs. TIMEOUT and ERROR are completions that grading could not judge;
they count as not correct. Length and ratio at every k and the standard deviations are in the CSV file beside this one.
"""


def _part(rows: list[Row], published: pd.DataFrame | None) -> str:
    first = rows[0]
    common = set.intersection(*(set(row.summary.ks) for row in rows))
    if not common:
        raise UserError(f"no k was measured for every method on {first.dataset}: measure them with the same ks")
    keys = [f"pass@{k}" for k in sorted(common)] + [f"length@{max(common)}", f"ratio@{max(common)}"]
    columns: dict[str, list[str]] = {"method": [row.name for row in rows]}
    for key in keys:
        cells = [row.summary.cells[key] for row in rows]
        best = _best(cells, smaller=key.startswith("length"))
        texts = [_text(key, cell) for cell in cells]
        columns[key.capitalize()] = [f"**{text}**" if i in best else text for i, text in enumerate(texts)]
        if any(beside := [_published_text(published, row, key) for row in rows]):
            columns[f"{key.capitalize()}, published"] = beside
    return "\n".join(
        [
            f"## {first.model} on {first.dataset} (tier {first.tier})\n",
            _markdown(columns),
            f"\nWhat stands behind a cell ({first.summary.n_problems} problems; counts are completions):\n",
            _markdown(_evidence(rows)),
            "",
        ]
    )


def _evidence(rows: list[Row]) -> dict[str, list[str]]:
    summaries = [row.summary for row in rows]
    return {
        "method": [row.name for row in rows],
        "estimator": [summary.estimator for summary in summaries],
        "samples": [str(summary.n_samples) for summary in summaries],
        "sampling seeds": [" ".join(map(str, summary.sampling_seeds)) for summary in summaries],
        "training seeds": [_train_seeds(row) for row in rows],
        "settings chosen by": ["" if row.method == BASE else row.selection for row in rows],
        **{outcome: [f"{summary.outcomes[outcome]:,}" for summary in summaries] for outcome in Outcome},
        "truncated": [f"{summary.truncated:.1%}" for summary in summaries],
    }


def _best(cells: list[Cell], *, smaller: bool) -> set[int]:
    """The best cell and all that cannot be told from it; none when that is all of them."""
    best = (min if smaller else max)(cells, key=lambda cell: cell.mean)
    alike = {i for i, cell in enumerate(cells) if cell.lo <= best.hi and best.lo <= cell.hi}
    return alike if len(alike) < len(cells) else set()


def _number(key: str, value: float) -> str:
    return {"pass": f"{value:.3f}", "length": f"{value:.1f}", "ratio": f"{value:#.3g}"}[key.split("@")[0]]


def _text(key: str, cell: Cell) -> str:
    return f"{_number(key, cell.mean)} [{_number(key, cell.lo)}, {_number(key, cell.hi)}]"


def _published_text(published: pd.DataFrame | None, row: Row, key: str) -> str:
    if published is None or key not in published:
        return ""
    same = (published[["model", "dataset", "method"]] == [row.model, row.dataset, row.method]).all(axis=1)
    if not same.any():
        return ""
    found = published[same].iloc[0]
    spread = f" ± {found[f'{key}_std']:g}" if f"{key}_std" in published else ""
    return f"{found[key]:g}{spread}"


def _markdown(columns: dict[str, list[str]]) -> str:
    return tabulate(columns, headers="keys", tablefmt="github", disable_numparse=True)
