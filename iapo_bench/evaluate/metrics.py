"""What the tables say of a method: Pass@k, Length@k and Ratio@k, with their spread and their uncertainty.

Names end in their dimensions: T training seeds, S sampling seeds, P problems, N samples a problem, B bootstrap draws.
A run is one sampling seed of one training seed.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import comb
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from iapo_bench.errors import UserError
from iapo_bench.seeds import numpy_stream
from iapo_bench.worlds.grading import Outcome

Estimator = Literal["unbiased", "first_k"]
MEASURES = ("pass", "length", "ratio")
COLUMNS = ("problem_id", "sample", "seed", "n_tokens", "finish_reason", "outcome")


@dataclass(frozen=True)
class Cell:
    """One measure: mean and population standard deviation over the runs, and a 95% interval."""

    mean: float
    std: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Summary:
    """What was measured of one method, and on how much. `cells` is keyed `pass@16`, `length@16`, `ratio@16`."""

    n_problems: int
    n_samples: int
    train_seeds: list[int]
    sampling_seeds: list[int]
    estimator: Estimator
    cells: dict[str, Cell]
    accuracy: float  # share of correct completions: Pass@1
    outcomes: dict[str, int]  # completions by outcome
    truncated: float  # share of completions that the token limit cut

    @property
    def ks(self) -> list[int]:
        """The measured ks, ascending."""
        return sorted(int(key.removeprefix("pass@")) for key in self.cells if key.startswith("pass@"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; other keys are ignored. Raises UserError when one is missing."""
        if missing := [field.name for field in fields(cls) if field.name not in content]:
            raise UserError(f"a summary without '{missing[0]}': measure again")
        own = {field.name: content[field.name] for field in fields(cls)}
        return cls(**{**own, "cells": {key: Cell(**cell) for key, cell in content["cells"].items()}})


def pass_at_k(n: int, c: np.ndarray, k: int) -> np.ndarray:
    """Unbiased Pass@k of problems with `c` correct of `n` samples: 1 - C(n-c, k) / C(n, k), in the shape of `c`.

    The chance that k of the n samples, drawn without replacement, hold a correct one (Chen et al. 2021,
    arXiv:2107.03374). Raises UserError when n < k, ValueError when a count is not in 0..n.
    """
    _require_samples(n, k)
    c = np.asarray(c)
    if np.any((c < 0) | (c > n)):
        raise ValueError(f"correct counts must be in 0..{n}")
    # Whole numbers until the one division, so that nothing overflows and nothing cancels.
    total = comb(n, k)
    return np.array([(total - comb(n - correct, k)) / total for correct in range(n + 1)])[c]


def first_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Whether any of a problem's first k samples is correct: (..., N) -> (...), 0.0 or 1.0.

    Raises UserError when N < k.
    """
    _require_samples(correct.shape[-1], k)
    return correct[..., :k].any(axis=-1).astype(float)


def read_grades(path: Path) -> pd.DataFrame:
    """The grades of one method and training seed, one row a completion. Raises UserError if the file is not that."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: grade first")
    frame = pd.read_parquet(path)
    if missing := [column for column in COLUMNS if column not in frame]:
        raise UserError(f"{path} has no column '{missing[0]}': grade again")
    return frame


def summarise(
    runs: dict[int, pd.DataFrame],
    ks: Iterable[int],
    *,
    estimator: Estimator = "unbiased",
    bootstrap: int = 1000,
    seed: int = 0,
) -> Summary:
    """Measure one method. `runs` holds, for each training seed, the grades of all its sampling seeds.

    Pass@k and Length@k (tokens, end of sequence included, of the first k samples) are means over problems; Ratio@k is
    their quotient; each is then averaged over runs. Intervals are the 2.5% and 97.5% quantiles of `bootstrap` draws. A
    draw takes problems with replacement, the same for every run and measure, and training seeds likewise if there are
    several (the pigeonhole bootstrap, Owen 2007). Equal seeds draw equal problems, so methods share their draws.

    Raises UserError for too few samples, missing or repeated rows, or training seeds sampled differently.
    """
    if not runs:
        raise UserError("there are no grades to measure")
    grids = [_Grid.of(frame, f"training seed {train_seed}") for train_seed, frame in runs.items()]
    for train_seed, grid in zip(runs, grids, strict=True):
        if grid.layout != grids[0].layout:
            raise UserError(
                f"training seeds {next(iter(runs))} and {train_seed} differ in problems, sampling seeds or samples: "
                "sample both with the same settings"
            )
    problems, sampling_seeds, N = grids[0].layout
    correct_TSPN = np.stack([grid.correct_SPN for grid in grids])
    tokens_TSPN = np.stack([grid.tokens_SPN for grid in grids])

    T, P = len(runs), len(problems)
    generator = numpy_stream(seed, "bootstrap")
    problem_weights_BP = generator.multinomial(P, np.full(P, 1 / P), size=bootstrap) / P
    seed_weights_BT = generator.multinomial(T, np.full(T, 1 / T), size=bootstrap) / T

    cells = {}
    for k in sorted(set(ks)):
        unbiased = estimator == "unbiased"
        pass_TSP = pass_at_k(N, correct_TSPN.sum(axis=-1), k) if unbiased else first_k(correct_TSPN, k)
        length_TSP = tokens_TSPN[..., :k].mean(axis=-1)
        runs_TS = {"pass": pass_TSP.mean(axis=-1), "length": length_TSP.mean(axis=-1)}
        draws_BTS = {
            "pass": np.tensordot(problem_weights_BP, pass_TSP, axes=(1, 2)),
            "length": np.tensordot(problem_weights_BP, length_TSP, axes=(1, 2)),
        }
        for values in (runs_TS, draws_BTS):
            values["ratio"] = values["pass"] / values["length"]
        for measure in MEASURES:
            draws_B = (seed_weights_BT * draws_BTS[measure].mean(axis=2)).sum(axis=1)
            lo, hi = np.quantile(draws_B, (0.025, 0.975))
            values = runs_TS[measure]
            cells[f"{measure}@{k}"] = Cell(float(values.mean()), float(values.std()), float(lo), float(hi))

    completions = pd.concat(runs.values())
    counts = completions["outcome"].value_counts()
    return Summary(
        n_problems=P,
        n_samples=N,
        train_seeds=list(runs),
        sampling_seeds=list(sampling_seeds),
        estimator=estimator,
        cells=cells,
        accuracy=float(correct_TSPN.mean()),
        outcomes={outcome.value: int(counts.get(outcome.value, 0)) for outcome in Outcome},
        truncated=float((completions["finish_reason"] == "length").mean()),
    )


@dataclass(frozen=True)
class _Grid:
    """The grades of one training seed, every problem sampled equally often with every sampling seed."""

    layout: tuple[tuple[str, ...], tuple[int, ...], int]  # problems, sampling seeds, samples a problem
    correct_SPN: np.ndarray
    tokens_SPN: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame, where: str) -> Self:
        """Check and arrange a frame; `where` opens the message of a UserError."""
        if frame.empty:
            raise UserError(f"{where}: there are no grades")
        for column, known in (("outcome", {*Outcome}), ("finish_reason", {"stop", "length"})):
            if odd := set(frame[column]) - known:
                raise UserError(f"{where}: unknown {column} '{odd.pop()}': known: {', '.join(sorted(known))}")
        if not (frame["n_tokens"] >= 1).all():
            raise UserError(f"{where}: a completion has no tokens; its end of sequence counts as one")
        keys = ["seed", "problem_id", "sample"]
        frame = frame.sort_values(keys)
        if (twice := frame.duplicated(keys)).any():
            seed, problem, sample = frame.loc[twice, keys].iloc[0]
            raise UserError(f"{where}: problem '{problem}', seed {seed}, sample {sample} is there more than once")
        seeds, problems = sorted(set(frame["seed"])), sorted(set(frame["problem_id"]))
        N = int(frame["sample"].max()) + 1
        everything = pd.MultiIndex.from_product([seeds, problems])
        sizes = frame.groupby(keys[:2]).size().reindex(everything, fill_value=0)
        if (sizes != N).any() or frame["sample"].min() < 0:
            seed, problem = sizes.index[int(sizes.to_numpy().argmin())]
            raise UserError(
                f"{where}: problem '{problem}' has {sizes.min()} samples for seed {seed}, not samples 0 to "
                f"{N - 1}: sample every problem equally often"
            )
        shape = (len(seeds), len(problems), N)
        return cls(
            layout=(tuple(problems), tuple(int(seed) for seed in seeds), N),
            correct_SPN=(frame["outcome"] == Outcome.CORRECT).to_numpy().reshape(shape),
            tokens_SPN=frame["n_tokens"].to_numpy().reshape(shape),
        )


def _require_samples(n: int, k: int) -> None:
    if k < 1:
        raise UserError(f"k={k}: k must be at least 1")
    if n < k:
        raise UserError(f"k={k} needs at least {k} samples a problem, there are {n}: raise n_samples or drop k")
