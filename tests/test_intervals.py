"""Intervals and tests: by hand, by their definitions, and by simulation of what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from iapo_bench.evaluate.intervals import Estimate, estimate, holm


def test_with_fixed_seeds_it_is_the_paired_t_test():
    generator = np.random.default_rng(0)
    a_TP, b_TP = generator.normal(0.3, 1, (3, 40)), generator.normal(0, 1, (1, 40))
    found = estimate(a_TP, b_TP, seeds=False)
    wanted = ttest_rel(a_TP.mean(axis=0), b_TP[0])
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval()))
    assert estimate(a_TP, seeds=False).p == pytest.approx(ttest_1samp(a_TP.mean(axis=0), 0).pvalue)


def test_problems_alike_leave_the_t_test_over_seeds():
    seeds_T = np.array([0.4, 0.5, 0.7])
    found = estimate(np.repeat(seeds_T[:, None], 50, axis=1), seeds=True)
    wanted = ttest_1samp(seeds_T, 0)
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval()))


def test_two_methods_have_welchs_degrees_of_freedom():
    a_T, b_T = np.array([0.4, 0.5, 0.7]), np.array([0.1, 0.15, 0.1, 0.12])
    found = estimate(*(np.repeat(seeds_T[:, None], 50, axis=1) for seeds_T in (a_T, b_T)), seeds=True)
    wanted = ttest_ind(a_T, b_T, equal_var=False)
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval()))


def test_a_pair_varies_less_than_its_rows():
    generator = np.random.default_rng(1)
    hard_P = generator.random(100)
    a, b = (hard_P + generator.normal(0, 0.05, (1, 100)) for _ in range(2))
    apart = sum(np.ptp(estimate(row, seeds=False).interval) ** 2 for row in (a, b)) ** 0.5
    assert np.ptp(estimate(a, b, seeds=False).interval) < apart / 3


def test_the_p_value_is_where_the_interval_ends_at_zero():
    parts = ((0.01, 199), (0.004, 2), (0.02, 3))
    at_05 = Estimate(0.0, parts).interval[1]
    assert Estimate(at_05, parts).p == pytest.approx(0.05)
    assert Estimate(-at_05, parts).p == pytest.approx(0.05)
    assert Estimate(2 * at_05, parts).p < 0.05 < Estimate(at_05 / 2, parts).p
    assert Estimate(0.0, parts).p == 1


def test_every_degree_of_freedom_has_a_p_value():
    """At the far end of the distribution the quantile that is inverted has gaps."""
    for df in np.linspace(2, 2.05, 101):
        assert 0 < Estimate(-0.022, ((6.1e-6, 199), (5.4e-5, df))).p < 1


def test_without_variance_or_freedom():
    assert estimate(np.ones((1, 5)), np.ones((1, 5)), seeds=False).p == 1, "equal in every problem"
    assert estimate(np.ones((1, 5)), seeds=False).p == 0
    for P, known in ((2, False), (5, False), (6, True)):
        all_won = estimate(np.full((1, P), 0.3), np.full((1, P), 0.1), seeds=False)
        assert (all_won.p < 0.05, np.isfinite(all_won.interval).all()) == (known, known), "two of two are no verdict"
    alone = estimate(np.ones((2, 1)), seeds=True)
    assert np.isnan([alone.p, *alone.interval, alone.detectable]).all(), "one problem says nothing of others"


def test_the_detectable_difference_is_found_four_times_in_five():
    generator = np.random.default_rng(2)
    true = estimate(generator.normal(0, 1, (1, 50)), seeds=False).detectable
    found = [estimate(generator.normal(true, 1, (1, 50)), seeds=False).p < 0.05 for _ in range(2000)]
    assert 0.72 < np.mean(found) < 0.88


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p):
    """The definition: go up the sorted p-values, stop at the first above .05 / (those that are left)."""
    order = sorted(range(len(p)), key=p.__getitem__)
    rejected = set()
    for step, i in enumerate(order):
        if p[i] * (len(p) - step) > 0.05:
            break
        rejected.add(i)
    assert {i for i, corrected in enumerate(holm(p)) if corrected <= 0.05} == rejected


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2, float("nan"), 0.01])[0] == pytest.approx(0.2)
    assert np.isnan(holm([0.2, float("nan")])[1])


def simulate(generator, spread, train_seeds, problems=200, samples=96, pairs=1):
    """Shares correct (pairs, T, P): problems of random difficulty, training seeds that move all logits by `spread`."""
    hard_P = generator.normal(-0.5, 1.5, problems)
    moved = hard_P + spread * generator.standard_normal((pairs, train_seeds, 1))
    return generator.binomial(samples, 1 / (1 + np.exp(-moved))) / samples


def expected(spread: float) -> float:
    """The share correct over all problems and training seeds, by Gauss-Hermite quadrature."""
    x, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ (1 / (1 + np.exp(0.5 - np.hypot(1.5, spread) * x))) / weights.sum())


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.15, 0.3, 0.6])
@pytest.mark.parametrize("train_seeds", [2, 3, 5])
def test_coverage(spread, train_seeds):
    """Of rows and of paired differences; three standard errors of 4,000 draws are .010."""
    generator, truth = np.random.default_rng(3), expected(spread)
    row = pair = 0
    for _ in range(4000):
        a_TP, b_TP = simulate(generator, spread, train_seeds, pairs=2)
        lo, hi = estimate(a_TP, seeds=True).interval
        row += lo <= truth <= hi
        lo, hi = estimate(a_TP, b_TP, seeds=True).interval
        pair += lo <= 0 <= hi
    assert 0.935 <= row / 4000 <= 0.99, "a little wide with few seeds, never narrow"
    assert 0.935 <= pair / 4000 <= 0.99


@pytest.mark.slow
def test_coverage_of_a_single_t_would_not_do():
    """What the choice rests on: Satterthwaite's t, from the same simulation, falls short where seeds differ."""
    from scipy.special import stdtrit

    generator, truth, covered = np.random.default_rng(4), expected(0.6), 0
    for _ in range(4000):
        found = estimate(simulate(generator, 0.6, 3)[0], seeds=True)
        variance = sum(v for v, _ in found.parts)
        df = variance**2 / sum(v**2 / df for v, df in found.parts)
        covered += abs(found.value - truth) <= stdtrit(df, 0.975) * variance**0.5
    assert covered / 4000 < 0.93
