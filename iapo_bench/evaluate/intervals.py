"""Intervals and tests for means over problems and training seeds.

Names end in their dimensions: T training seeds, P problems.

All methods answer the same problems, so differences are paired by problem; training seeds of two methods are
independent. An estimate's squared standard error is a sum of two parts, one for the sample of problems and one for the
training seeds, each with its own degrees of freedom. The seeds' part is their variance beyond that explained by
sampling and by their interaction with problems (a two-way layout); for two methods it has Welch's degrees of freedom.
The 95% interval adds the parts' own t intervals in quadrature (the MOVER of Zou and Donner, Statistics in Medicine 27,
2008). In the simulation of `tests/test_intervals.py` it covers .946 to .981, for rows and for differences of rows with
two to five training seeds; one Satterthwaite t for the sum covers .86 to .96 there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

ALPHA = 0.05
POWER = 0.8
_ROUNDING = 1e-9  # a smaller spread, relative to the value, is none
_SMALLEST_LOG_P = -150.0  # at -300 `stdtrit` finds no root for some degrees of freedom


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference, with the independent parts of its squared standard error: (variance, degrees of freedom).

    Without degrees of freedom (one problem) or variance (NaN) the error is unknown: interval and p-value are NaN.
    """

    value: float
    parts: tuple[tuple[float, float], ...]

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95% interval."""
        half = self._half(ALPHA)
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p-value of "the value is 0": the level at which the interval ends at 0."""
        if np.isnan(self._half(0.5)):
            return float("nan")
        distance = abs(self.value)
        if distance == 0:
            return 1.0
        if self._half(np.exp(_SMALLEST_LOG_P)) <= distance:
            return float(np.exp(_SMALLEST_LOG_P)) if self._half(0.5) else 0.0
        return float(np.exp(brentq(lambda log_p: self._half(np.exp(log_p)) - distance, _SMALLEST_LOG_P, 0)))

    @property
    def detectable(self) -> float:
        """The true difference that a test at the 5% level detects with a power of 80%."""
        return self._half(ALPHA) + self._half(2 * (1 - POWER))

    def _half(self, level: float) -> float:
        """Half the width of the interval that misses the true value with probability `level`."""
        if any(df < 1 for _, df in self.parts):
            return float("nan")
        return float(np.sqrt(sum(variance * stdtrit(df, level / 2) ** 2 for variance, df in self.parts)))


def estimate(values_TP: np.ndarray, minus_TP: np.ndarray | None = None, *, seeds: bool) -> Estimate:
    """The mean of `values_TP`, minus the mean of `minus_TP`, if given, on the same problems.

    With `seeds`, several training seeds are treated as a random sample too; without, as fixed. A difference that is the
    same on each of at most five problems has an unknown error: chance alone gives P equal signs with 2^(1-P).
    """
    groups = [values_TP] if minus_TP is None else [values_TP, minus_TP]
    means_P = [group.mean(axis=0) for group in groups]
    difference_P = means_P[0] - means_P[1] if minus_TP is not None else means_P[0]
    P = len(difference_P)
    value = float(difference_P.mean())
    alike = minus_TP is not None and np.ptp(difference_P) < _ROUNDING * abs(value)
    unknown = P == 1 or (alike and 2.0 ** (1 - P) >= ALPHA)
    parts: list[tuple[float, float]] = [(float("nan") if unknown else float(difference_P.var(ddof=1)) / P, P - 1)]
    several = [group for group in groups if len(group) > 1]
    if seeds and several and P > 1:
        parts.append(_seeds_part(several))
    return Estimate(value, tuple(parts))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of p-values of one family, in their order; NaN stays NaN and does not count."""
    values = np.asarray(p, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    corrected = values.copy()
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected.tolist()


def _seeds_part(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """The training seeds' part of the squared standard error, for one or two methods, and its degrees of freedom."""
    raw, beyond = [], []
    for values_TP in groups:
        T, P = values_TP.shape
        seeds_T1, problems_P = values_TP.mean(axis=1, keepdims=True), values_TP.mean(axis=0)
        rest_TP = values_TP - seeds_T1 - problems_P + values_TP.mean()
        raw.append(float(seeds_T1.var(ddof=1)) / T)
        explained = float((rest_TP**2).sum()) / ((T - 1) * (P - 1)) / (T * P)
        beyond.append(max(raw[-1] - explained, 0.0))
    welch = sum(v**2 / (len(group) - 1) for v, group in zip(raw, groups, strict=True))
    return sum(beyond), sum(raw) ** 2 / welch if welch else 1.0
