"""The measures of a method: Pass@k, Length@k and Ratio@k, with their spread and their uncertainty.

Names end in their dimensions: T training seeds, S sampling seeds, P problems, N samples per problem.
A run is one sampling seed of one training seed.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import comb
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from iapo_bench.errors import UserError, damaged
from iapo_bench.evaluate.intervals import Estimate, estimate
from iapo_bench.files import read_parquet, require_columns
from iapo_bench.worlds.grading import Outcome

Estimator = Literal["unbiased", "first_k"]
MEASURES = ("pass", "length", "ratio")
COLUMNS = {"problem_id": str, "sample": int, "seed": int, "n_tokens": int, "finish_reason": str, "outcome": str}
OPTIONAL_COLUMNS = {"outcome_lenient": str, "formatted": bool}
COUNTS = ("correct", "tokens", "truncated", "formatted", "lenient")
_LAYOUT = {"train_seed": int, "seed": int, "problem_id": str}
_CATEGORIES = ("problem_id", "finish_reason", "outcome", "outcome_lenient")


@dataclass(frozen=True)
class Cell:
    """One measure: mean and population standard deviation over the runs, and a 95% interval."""

    mean: float
    std: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Summary:
    """The measures of one method and their sample sizes. `cells` is keyed `pass@16`, `length@16`, `ratio@16`."""

    n_problems: int
    n_samples: int
    train_seeds: list[int]
    sampling_seeds: list[int]
    estimator: Estimator
    cells: dict[str, Cell]
    accuracy: float  # share of correct completions: Pass@1
    outcomes: dict[str, int]  # completions by outcome
    truncated: float  # share of completions cut by the token limit
    format_rate: float | None = None  # share of completions in the prompt's format, if graded

    @property
    def ks(self) -> list[int]:
        """The measured ks, ascending."""
        return sorted(int(key.removeprefix("pass@")) for key in self.cells if key.startswith("pass@"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: the bounds of an unknown interval are None."""
        cells = {
            key: {part: None if np.isnan(value) else value for part, value in asdict(cell).items()}
            for key, cell in self.cells.items()
        }
        return asdict(self) | {"cells": cells}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; other keys are ignored. Raises KeyError or ValueError for anything else."""
        own = {field.name: content[field.name] for field in fields(cls)}
        cells = {
            key: {part: float("nan") if value is None else value for part, value in cell.items()}
            for key, cell in content["cells"].items()
        }
        return TypeAdapter(cls).validate_python(own | {"cells": cells})


@dataclass(frozen=True)
class Tally:
    """Counts for every problem of one method, from which all measures follow without the completions.

    `counts` holds integer arrays (T, S, P) over the N samples of a problem: `correct`, `tokens`, `truncated`, and, if
    graded, `formatted` and `lenient` (correct by the lenient grader).
    """

    train_seeds: tuple[int, ...]
    sampling_seeds: tuple[int, ...]
    problems: tuple[str, ...]
    n_samples: int
    counts: dict[str, np.ndarray]

    def values(self, measure: str) -> np.ndarray:
        """The contribution of every problem and training seed to a measure, float (T, P); their mean is the measure.

        `measure` is `pass@k`, `lenient@k`, `length`, `ratio@k` or `tokens_per_correct`. Quotients are linearised (the
        delta method), so that differences of quotients are paired by problem too. NaN for `tokens_per_correct` of a
        training seed without a correct answer, and for `lenient@k` without lenient grades.
        """
        name, _, k = measure.partition("@")
        length_TSP = self.counts["tokens"] / self.n_samples
        if name == "length":
            return length_TSP.mean(axis=1)
        if name == "tokens_per_correct":
            correct_TSP = self.counts["correct"] / self.n_samples
            return _quotient(length_TSP.mean(axis=1), correct_TSP.mean(axis=1))
        counted = "lenient" if name == "lenient" else "correct"
        if counted not in self.counts:
            return np.full((len(self.train_seeds), len(self.problems)), np.nan)
        pass_TSP = pass_at_k(self.n_samples, self.counts[counted], int(k))
        if name == "ratio":
            return _quotient(pass_TSP, length_TSP).mean(axis=1)
        return pass_TSP.mean(axis=1)

    def rate(self, count: str) -> float | None:
        """The share of completions counted as `count`; None if that was not graded."""
        return float(self.counts[count].mean() / self.n_samples) if count in self.counts else None

    def to_parquet(self, path: Path) -> None:
        """Write one row per training seed, sampling seed and problem."""
        layout = pd.MultiIndex.from_product(
            [self.train_seeds, self.sampling_seeds, self.problems], names=["train_seed", "seed", "problem_id"]
        )
        columns = {name: count.ravel() for name, count in self.counts.items()}
        frame = pd.DataFrame({"n_samples": self.n_samples} | columns, index=layout).reset_index()
        frame.to_parquet(path, index=False)

    @classmethod
    def from_parquet(cls, path: Path) -> Self:
        """The inverse of `to_parquet`. Raises UserError for a file that is missing or not a tally."""
        frame = read_parquet(path, {**_LAYOUT, "n_samples": int, "correct": int, "tokens": int}, "measure again")
        with damaged(path, "measure again"):
            layout = pd.MultiIndex.from_frame(frame[[*_LAYOUT]])
            seeds, sampling, problems = (tuple(frame[key].unique()) for key in _LAYOUT)
            if not layout.equals(pd.MultiIndex.from_product([seeds, sampling, problems])):
                raise ValueError("its rows must be every problem of every seed, in order")
            n_samples, shape = int(frame["n_samples"].iloc[0]), (len(seeds), len(sampling), len(problems))
            counts = {name: frame[name].to_numpy().reshape(shape) for name in COUNTS if name in frame}
            for name, count in counts.items():
                within = (count >= 0) & (count <= n_samples) if name != "tokens" else count >= n_samples
                if count.dtype.kind not in "iu" or not within.all():
                    raise ValueError(f"'{name}' is not a valid count for {n_samples} samples")
            return cls(tuple(map(int, seeds)), tuple(map(int, sampling)), problems, n_samples, counts)


def pass_at_k(n: int, c: np.ndarray, k: int) -> np.ndarray:
    """Unbiased Pass@k of problems with `c` correct of `n` samples: 1 - C(n-c, k) / C(n, k), in the shape of `c`.

    The chance that k of the n samples, drawn without replacement, hold a correct one (Chen et al. 2021,
    arXiv:2107.03374). Raises UserError when n < k, ValueError when a count is not in 0..n.
    """
    _require_samples(n, k)
    c = np.asarray(c)
    if np.any((c < 0) | (c > n)):
        raise ValueError(f"correct counts must be in 0..{n}")
    # Integers up to the one division, so that nothing overflows or cancels.
    total = comb(n, k)
    return np.array([(total - comb(n - correct, k)) / total for correct in range(n + 1)])[c]


def first_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Whether any of a problem's first k samples is correct: (..., N) -> (...), 0.0 or 1.0.

    Raises UserError when N < k.
    """
    _require_samples(correct.shape[-1], k)
    return correct[..., :k].any(axis=-1).astype(float)


def read_grades(path: Path) -> pd.DataFrame:
    """The grades of one method and training seed, one row per completion, without their texts.

    Text columns are categorical and numbers narrow: 24 bytes per row. Raises UserError for a missing or damaged file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: grade first")
    with damaged(path, "grade again"):
        present = pq.read_schema(path).names
        columns = COLUMNS | {column: kind for column, kind in OPTIONAL_COLUMNS.items() if column in present}
        names = [column for column in columns if column in present]
        table = pq.read_table(path, columns=names, read_dictionary=[c for c in _CATEGORIES if c in names])
        require_columns(table, columns, path, "grade again")
        for column in ("sample", "n_tokens"):
            table = table.set_column(names.index(column), column, table[column].cast(pa.int32()))
        frame = table.to_pandas(split_blocks=True, self_destruct=True)
    frame.attrs["file"] = str(path)
    return frame


def summarise(runs: dict[int, pd.DataFrame], ks: Iterable[int], *, estimator: Estimator = "unbiased") -> Summary:
    """Measure one method. `runs` holds, for each training seed, the grades of all its sampling seeds.

    Pass@k and Length@k (tokens, end of sequence included) are means over problems; Ratio@k is their quotient; each is
    then averaged over runs. `unbiased` takes all subsets of k samples to be equally likely, so Length@k is the mean of
    all samples; `first_k` uses the first k samples only. Intervals are those of `iapo_bench.evaluate.intervals`: over
    problems, and over training seeds if there are several.

    Raises UserError for too few samples, missing or repeated rows, or training seeds sampled differently.
    """
    return Samples.of(runs).summary(ks, estimator)


@dataclass(frozen=True)
class Samples:
    """All graded completions of one method, every problem sampled equally often in every run.

    `flags` holds boolean arrays (T, S, P, N): `correct`, `truncated`, and, if graded, `formatted` and `lenient`.
    """

    train_seeds: tuple[int, ...]
    sampling_seeds: tuple[int, ...]
    problems: tuple[str, ...]
    tokens_TSPN: np.ndarray
    flags: dict[str, np.ndarray]
    outcomes: dict[str, int]

    @classmethod
    def of(cls, runs: dict[int, pd.DataFrame]) -> Self:
        """Check and arrange the grades of each training seed. Raises UserError as `summarise` does."""
        if not runs:
            raise UserError("there are no grades to measure")
        grids = [_Grid.of(frame, frame.attrs.get("file", f"training seed {seed}")) for seed, frame in runs.items()]
        for train_seed, grid in zip(runs, grids, strict=True):
            if grid.layout != grids[0].layout:
                raise UserError(
                    f"training seeds {next(iter(runs))} and {train_seed} differ in problems, sampling seeds or samples"
                    ": sample both with the same settings"
                )
        problems, sampling_seeds, _ = grids[0].layout
        shared = set.intersection(*(set(grid.flags_SPN) for grid in grids))
        return cls(
            train_seeds=tuple(runs),
            sampling_seeds=sampling_seeds,
            problems=problems,
            tokens_TSPN=np.stack([grid.tokens_SPN for grid in grids]),
            flags={
                name: np.stack([grid.flags_SPN[name] for grid in grids])
                for name in grids[0].flags_SPN
                if name in shared
            },
            outcomes={outcome.value: sum(grid.outcomes[outcome.value] for grid in grids) for outcome in Outcome},
        )

    def tally(self) -> Tally:
        """Counts by problem."""
        counts = {name: flags.sum(axis=-1) for name, flags in self.flags.items()}
        counts["tokens"] = self.tokens_TSPN.sum(axis=-1, dtype=np.int64)
        n_samples = self.tokens_TSPN.shape[-1]
        return Tally(self.train_seeds, self.sampling_seeds, self.problems, n_samples, counts)

    def summary(self, ks: Iterable[int], estimator: Estimator = "unbiased") -> Summary:
        """The measures at every k."""
        tally, N = self.tally(), self.tokens_TSPN.shape[-1]
        cells = {}
        for k in sorted(set(ks)):
            if estimator == "unbiased":
                pass_TSP = pass_at_k(N, tally.counts["correct"], k)
                length_TSP = tally.counts["tokens"] / N
            else:
                pass_TSP = first_k(self.flags["correct"], k)
                length_TSP = self.tokens_TSPN[..., :k].mean(axis=-1)
            for measure, values_TSP in (
                ("pass", pass_TSP),
                ("length", length_TSP),
                ("ratio", _quotient(pass_TSP, length_TSP)),
            ):
                cells[f"{measure}@{k}"] = _cell(values_TSP, highest=1.0 if measure == "pass" else np.inf)
        return Summary(
            n_problems=len(self.problems),
            n_samples=N,
            train_seeds=list(self.train_seeds),
            sampling_seeds=list(self.sampling_seeds),
            estimator=estimator,
            cells=cells,
            accuracy=float(self.flags["correct"].mean()),
            outcomes=self.outcomes,
            truncated=float(self.flags["truncated"].mean()),
            format_rate=tally.rate("formatted"),
        )


def _cell(values_TSP: np.ndarray, highest: float) -> Cell:
    runs_TS = values_TSP.mean(axis=-1)
    found: Estimate = estimate(values_TSP.mean(axis=1), seeds=True)
    lo, hi = found.interval
    return Cell(float(runs_TS.mean()), float(runs_TS.std()), max(lo, 0.0), min(hi, highest))


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Contributions (..., P) to the quotient of two means over P, linearised: their mean is the quotient."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = above.mean(axis=-1, keepdims=True) / below.mean(axis=-1, keepdims=True)
        quotient = np.where(np.isfinite(quotient), quotient, np.nan)
        return quotient + (above - quotient * below) / below.mean(axis=-1, keepdims=True)


@dataclass(frozen=True)
class _Grid:
    """The grades of one training seed, every problem sampled equally often with every sampling seed."""

    layout: tuple[tuple[str, ...], tuple[int, ...], int]  # problems, sampling seeds, samples per problem
    tokens_SPN: np.ndarray
    flags_SPN: dict[str, np.ndarray]
    outcomes: dict[str, int]

    @classmethod
    def of(cls, frame: pd.DataFrame, where: str) -> Self:
        """Check and arrange a frame; `where` opens the message of a UserError."""
        if frame.empty:
            raise UserError(f"{where}: there are no grades")
        outcomes = {column: {*Outcome} for column in ("outcome", "outcome_lenient") if column in frame}
        for column, known in {**outcomes, "finish_reason": {"stop", "length"}}.items():
            if odd := set(frame[column].unique()) - known:
                raise UserError(f"{where}: unknown {column} '{odd.pop()}': known: {', '.join(sorted(known))}")
        if frame["problem_id"].isna().any():
            raise UserError(f"{where}: a completion has no problem_id: grade again")
        if not (frame["n_tokens"] >= 1).all():
            raise UserError(f"{where}: a completion has no tokens, but its end of sequence counts as one: sample again")
        seed_codes, seeds = pd.factorize(frame["seed"], sort=True)
        problem_ids = frame["problem_id"].astype("category").cat.remove_unused_categories()
        problem_ids = problem_ids.cat.reorder_categories(sorted(problem_ids.cat.categories))
        problem_codes, problems = problem_ids.cat.codes.to_numpy(np.int64), problem_ids.cat.categories
        place, N = _places(frame["sample"].to_numpy(), seed_codes, problem_codes, seeds, problems, where)
        shape = (len(seeds), len(problems), N)

        def arrange(values: Any, dtype: Any) -> np.ndarray:
            out = np.empty(len(frame), dtype)
            out[place] = values
            return out.reshape(shape)

        flags = {"correct": frame["outcome"] == Outcome.CORRECT, "truncated": frame["finish_reason"] == "length"}
        if "formatted" in frame:
            flags["formatted"] = frame["formatted"]
        if "outcome_lenient" in frame:
            flags["lenient"] = frame["outcome_lenient"] == Outcome.CORRECT
        counts = frame["outcome"].value_counts()
        return cls(
            layout=(tuple(map(str, problems)), tuple(map(int, seeds)), N),
            tokens_SPN=arrange(frame["n_tokens"], np.int32),
            flags_SPN={name: arrange(flag, bool) for name, flag in flags.items()},
            outcomes={outcome.value: int(counts.get(outcome.value, 0)) for outcome in Outcome},
        )


def _places(
    sample: np.ndarray, seed_codes: np.ndarray, problem_codes: np.ndarray, seeds: Any, problems: Any, where: str
) -> tuple[np.ndarray, int]:
    """Each row's index in a flattened (S, P, N) grid, and N. Raises UserError unless the rows fill the grid once."""
    N, P = int(sample.max()) + 1, len(problems)
    group = seed_codes * P + problem_codes
    sizes = np.bincount(group, minlength=len(seeds) * P)
    if sample.min() >= 0 and len(seeds) * P * N <= 2 * len(sample):
        place = group * N + sample
        filled = np.bincount(place, minlength=len(seeds) * P * N)
        if (filled == 1).all():
            return place, N
        if filled.max() > 1:
            g, n = divmod(int(filled.argmax()), N)
            raise UserError(
                f"{where}: problem '{problems[g % P]}', seed {seeds[g // P]}, sample {n} appears more than once"
            )
    odd = int(sizes.argmin())
    raise UserError(
        f"{where}: problem '{problems[odd % P]}' has {sizes[odd]} samples for seed {seeds[odd // P]}, expected samples "
        f"0 to {N - 1}: sample every problem equally often"
    )


def _require_samples(n: int, k: int) -> None:
    if k < 1:
        raise UserError(f"k={k}: k must be at least 1")
    if n < k:
        raise UserError(f"k={k} needs at least {k} samples a problem, there are {n}: raise n_samples or drop k")
