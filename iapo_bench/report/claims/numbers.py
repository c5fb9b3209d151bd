"""Numbers on which claims are judged, the published ones and ours.

Published numbers are means and population standard deviations over three sampling runs of one training run: Welch's
test judges their differences. Measured differences are paired by problem. Second-hand numbers are kept apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.stats import t as student
from scipy.stats import ttest_ind_from_stats

from iapo_bench.report.rows import CONTROLS, Row, change

RUNS = 3  # sampling runs in a published mean
ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """a - b of two values: the difference, its 95% interval and the two-sided p-value of no difference."""

    a: float
    b: float
    value: float
    lo: float
    hi: float
    p: float


class Numbers(Protocol):
    """Rows of one model and dataset that can be compared."""

    def has(self, *methods: str) -> bool: ...

    def measures(self, measure: str) -> bool: ...

    def value(self, method: str, measure: str) -> float: ...

    def difference(self, a: str, b: str, measure: str) -> Difference: ...


class Published:
    """The published rows of one model."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self._rows = rows.set_index("method")

    def has(self, *methods: str) -> bool:
        return set(methods) <= set(self._rows.index)

    def measures(self, measure: str) -> bool:
        return measure in self._rows

    def value(self, method: str, measure: str) -> float:
        return float(self._rows.loc[method, measure])  # type: ignore[arg-type]

    def difference(self, a: str, b: str, measure: str) -> Difference:
        stats = [(self.value(name, measure), self._std(name, measure)) for name in (a, b)]
        (mean_a, std_a), (mean_b, std_b) = stats
        p = float(ttest_ind_from_stats(mean_a, std_a, RUNS, mean_b, std_b, RUNS, equal_var=False).pvalue)
        variances = np.array([std_a, std_b]) ** 2 / RUNS
        df = variances.sum() ** 2 / (variances**2 / (RUNS - 1)).sum()
        half = float(student.isf(ALPHA / 2, df) * np.sqrt(variances.sum()))
        value = mean_a - mean_b
        return Difference(mean_a, mean_b, value, value - half, value + half, p)

    def _std(self, method: str, measure: str) -> float:
        """The sample standard deviation; a ratio's, which is not published, is propagated from Pass@k and Length@k."""
        sample = np.sqrt(RUNS / (RUNS - 1))
        name, _, k = measure.partition("@")
        if name != "ratio":
            return float(self._rows.loc[method, f"{measure}_std"] * sample)
        passed, length = (self._std(method, m) / self.value(method, m) for m in (f"pass@{k}", f"length@{k}"))
        return float(self.value(method, measure) * np.hypot(passed, length))


class Measured:
    """The rows that a tier measured, except the base's controls, which have fewer samples and occur in no claim.

    Length@k is the mean over all samples, the same for every k.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row.method: row for row in rows if row.method not in CONTROLS}

    def has(self, *methods: str) -> bool:
        return set(methods) <= set(self.rows)

    def measures(self, measure: str) -> bool:
        return all(int(measure.partition("@")[2]) <= row.tally.n_samples for row in self.rows.values())

    def value(self, method: str, measure: str) -> float:
        return float(self.rows[method].tally.values(_counted(measure)).mean())

    def difference(self, a: str, b: str, measure: str) -> Difference:
        first, second = (self.rows[name] for name in (a, b))
        seeds = all(not row.trained or len(row.tally.train_seeds) > 1 for row in (first, second))
        found = change(first, second, _counted(measure), seeds=seeds)
        lo, hi = found.interval
        return Difference(self.value(a, measure), self.value(b, measure), found.value, lo, hi, found.p)


def _counted(measure: str) -> str:
    return "length" if measure.startswith("length") else measure
