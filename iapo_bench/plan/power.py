"""Smallest detectable difference between two rows, by numbers of problems, samples and training seeds.

The answer needs the spread of a pilot: finished summaries of the tier. Fewer sampling and training seeds are a subset
of the pilot's; another number of problems scales the problems' part of the variance.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import Estimate
from iapo_bench.report.rows import Row, change, read_rows

PROBLEMS = (100, 200, 300, 400, 800)


def power(summaries: Sequence[Path], problems: Sequence[int] = PROBLEMS) -> list[dict[str, Any]]:
    """A row for each design: the true difference that a pair's test at 5% finds with 80% power.

    Differences are in Pass@1, and in length relative to the mean length; about these checkpoints and, from two training
    seeds on, about these methods (`iapo_bench.report.comparisons`); medians over pairs of trained rows. Raises
    UserError with fewer than two trained rows in `summaries`.
    """
    rows = [row for row in read_rows(summaries) if row.trained]
    if len(rows) < 2:
        raise UserError("a power calculation needs the summaries of two trained rows: run the table first")
    most = min(len(row.tally.train_seeds) for row in rows)
    draws = min(len(row.tally.sampling_seeds) for row in rows)
    designs = itertools.product(range(1, most + 1), range(1, draws + 1), problems)
    return [_design([_part(row, T, S) for row in rows], P) for T, S, P in designs]


def _part(row: Row, train_seeds: int, sampling_seeds: int) -> Row:
    """A row restricted to its first training and sampling seeds."""
    tally = replace(
        row.tally,
        train_seeds=row.tally.train_seeds[:train_seeds],
        sampling_seeds=row.tally.sampling_seeds[:sampling_seeds],
        counts={name: count[:train_seeds, :sampling_seeds] for name, count in row.tally.counts.items()},
    )
    return replace(row, tally=tally)


def _design(rows: Sequence[Row], problems: int) -> dict[str, Any]:
    first = rows[0].tally
    length = float(np.mean([row.tally.values("length").mean() for row in rows]))
    found: dict[str, Any] = {
        "train_seeds": len(first.train_seeds),
        "samples": len(first.sampling_seeds) * first.n_samples,
        "problems": problems,
    }
    for measure, scale in (("pass@1", 1.0), ("length", length)):
        for statement, seeds in (("checkpoints", False), ("methods", True)):
            pairs = [change(b, a, measure, seeds=seeds) for a, b in itertools.combinations(rows, 2)]
            smallest = [_scaled(pair, len(first.problems) / problems).detectable for pair in pairs]
            known = not seeds or len(first.train_seeds) > 1
            found[f"{measure} {statement}"] = round(float(np.median(smallest)) / scale, 4) if known else None
    return found


def _scaled(found: Estimate, factor: float) -> Estimate:
    """An estimate whose problems' part of the variance is `factor` times as large."""
    (variance, df), *rest = found.parts
    return Estimate(found.value, ((variance * factor, df / factor), *rest))
