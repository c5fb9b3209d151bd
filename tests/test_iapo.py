"""IAPO by hand: informativeness, exploration, their z-scores and the released code's departures."""

import math

import pytest
import torch
from builders import assign_credit, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_bench.method import LossSpec, Signal, load_method
from methods.iapo import IAPO


def logs(rows: list[list[float]]) -> list[list[float]]:
    return [[math.log(p) for p in row] for row in rows]


def example(**changes):
    """A correct completion of three tokens and a wrong one of two, both well formatted."""
    signals = {
        "answer_entropy": [[2.0, 1.0, 1.0, 0.0], [1.0, 2.0, 0.5]],
        "old_logp": logs([[0.2, 0.4, 0.6], [0.1, 0.3]]),
        "token_entropy": [[1.0, 2.0, 3.0], [1.0, 3.0]],
        "extra_completion": 1,
        "junk": 5.0,
    }
    return make_batch([3, 2], [1, 0], **{**signals, **changes})


def rows(batch, values_BT: torch.Tensor) -> list[list[float]]:
    return [row[mask].tolist() for row, mask in zip(values_BT, batch.completion_mask_BT, strict=True)]


def test_informativeness_is_the_drop_of_the_answer_entropy():
    assert rows(example(), IAPO().token_informativeness(example())) == [[1, 0, 1], [-1, 1.5]]


def test_exploration_is_the_signed_probability():
    correct, wrong = rows(example(), IAPO().token_exploration(example()))
    assert correct == pytest.approx([0.2, 0.4, 0.6])
    assert wrong == pytest.approx([-0.1, -0.3])


def test_advantages():
    credit = assign_credit(IAPO(alpha=0.5, beta=0.25), example())
    # z of 1, 0, 1 is 0.7071, -1.4142, 0.7071; z of 0.2, 0.4, 0.6 is -1.2247, 0, 1.2247; z of two numbers is -1, 1.
    correct, wrong = rows(example(), credit.advantages_BT)
    assert correct == pytest.approx([1.047367, 0.292893, 1.659740], abs=1e-5)
    assert wrong == pytest.approx([-1 - 0.5 + 0.25, -1 + 0.5 - 0.25], abs=1e-5)
    assert torch.equal(credit.weights_BT, example().completion_mask_BT.float())


def test_the_format_counts_half_a_reward():
    batch = make_batch([1, 1, 1, 1], [1, 1, 0, 0], formatted=[1, 0, 1, 0])
    assert IAPO().shape_rewards(batch).tolist() == [1.5, 0.5, -0.5, -1.5]


@settings(max_examples=50, deadline=None)
@given(entropies=st.lists(st.floats(0, 12, width=32), min_size=3, max_size=9))
def test_informativeness_telescopes(entropies):
    length = len(entropies) - 1
    batch = make_batch([length, 1], [1, 0], answer_entropy=[entropies, [1.0, 1.0]], extra_completion=2)
    total = sum(rows(batch, IAPO().token_informativeness(batch))[0])
    assert total == pytest.approx(entropies[0] - entropies[-1], abs=1e-12)


def test_next_token_ablation():
    """e[t] = H(o_t), and none after the last token."""
    method = IAPO(informativeness="next_token")
    assert rows(example(), method.token_informativeness(example())) == [[-1, -1, 3], [-2, 3]]


@pytest.mark.parametrize("scale", [0.0, 1e-8, 0.4, 11.0])
def test_signals_that_are_constant_up_to_rounding_get_zero(scale):
    wobble = [scale * (1 + 1e-7 * (-1) ** t) for t in range(6)]
    signals = {"answer_entropy": [wobble] * 2, "old_logp": [[-x for x in wobble[1:]]] * 2}
    batch = make_batch([5, 5], [1, 0], **signals, extra_completion=1)
    advantages_BT = assign_credit(IAPO(alpha=1.0, beta=1.0), batch).advantages_BT
    torch.testing.assert_close(advantages_BT[:, :5], torch.tensor([[1.0], [-1.0]]).expand(2, 5), rtol=0, atol=2e-6)


def test_a_small_but_real_signal_gets_its_z_score():
    batch = make_batch([2, 2], [1, 0], answer_entropy=[[0.001, 0.0, 0.0], [1.0, 1.0, 1.0]])
    advantages_BT = assign_credit(IAPO(alpha=1.0, beta=0.0), batch).advantages_BT
    torch.testing.assert_close(advantages_BT, torch.tensor([[2.0, 0.0], [-1.0, -1.0]]), rtol=0, atol=3e-3)


def test_a_single_token_gets_the_outcome_only():
    batch = make_batch([1, 1], [1, 0], answer_entropy=[[2.0, 0.0]] * 2, old_logp=[[-0.3], [-2.0]])
    assert assign_credit(IAPO(), batch).advantages_BT[:, 0].tolist() == pytest.approx([1, -1], abs=1e-5)


def test_only_what_the_weights_ask_for_is_computed():
    assert IAPO().needs == {Signal.ANSWER_ENTROPY, Signal.OLD_LOGP}
    assert IAPO(alpha=0.0).needs == {Signal.OLD_LOGP}
    assert IAPO(beta=0.0).needs == {Signal.ANSWER_ENTROPY}
    assert IAPO(alpha=0.0, beta=0.0).needs == frozenset()
    assert IAPO(beta=0.0, informativeness="next_token").needs == {Signal.TOKEN_ENTROPY}
    assert IAPO(alpha=0.0, exploration="entropy").needs == {Signal.TOKEN_ENTROPY}
    assert load_method("iapo", "released").needs == {Signal.ANSWER_ENTROPY, Signal.TOKEN_ENTROPY}


# Released code


def test_smoothing_with_zero_filled_edges():
    # e = 0, 2, 1, 1, 0: the last token gets (1 + 1)/2 - 0 whatever came after it.
    smoothed = IAPO(smoothing=True).token_informativeness(example())
    assert rows(example(), smoothed) == [[0, 0.5, 1], [-1.5, 1.5]]


def test_exploration_by_next_token_entropy():
    explored = IAPO(exploration="entropy").token_exploration(example())
    assert rows(example(), explored) == [[-1, -2, -3], [1, 3]]


def test_normalisation_that_divides_the_mean_only():
    method = IAPO(alpha=1.0, beta=0.0, normalisation="mean_over_std")
    # s = 1, 0, 1 with mean 2/3 and std 0.471405: mean/std is 1.414214. s = -1, 1.5: mean 0.25, std 1.25.
    correct, wrong = rows(example(), assign_credit(method, example()).advantages_BT)
    assert correct == pytest.approx([1 + 1 - 1.414214, 1 - 1.414214, 1 + 1 - 1.414214], abs=1e-5)
    assert wrong == pytest.approx([-1 - 1 - 0.2, -1 + 1.5 - 0.2], abs=1e-5)


def test_unit_norm_shrinks_with_the_length():
    method = IAPO(alpha=1.0, beta=0.0, unit_norm=True)
    correct, _ = rows(example(), assign_credit(method, example()).advantages_BT)
    expected = [1 + z / math.sqrt(3) for z in (0.707107, -1.414214, 0.707107)]
    assert correct == pytest.approx(expected, abs=1e-5)


def test_released():
    method = load_method("iapo", "released")
    correct, wrong = rows(example(), assign_credit(method, example()).advantages_BT)
    # s = 0, 0.5, 1, less mean/std = 1.224745, over the norm 1.440752; c = -1, -2, -3, plus 2.449490, over 1.614349.
    s = [-0.850073, -0.503032, -0.155992]
    c = [0.897879, 0.278434, -0.341011]
    assert correct == pytest.approx([1 + x + y for x, y in zip(s, c, strict=True)], abs=1e-4)
    # s = -1.5, 1.5 and c = 1, 3 less 2: both -1, 1 over sqrt(2).
    assert wrong == pytest.approx([-1 - math.sqrt(2), -1 + math.sqrt(2)], abs=1e-4)
    assert method.loss == LossSpec(clip_high=0.28, kl_coef=0.001, reduction="token_mean")


def test_published_setting():
    method = IAPO()
    assert (method.alpha, method.beta, method.format_reward) == (1.0, 1.0, 0.5)
    assert method.loss == LossSpec(clip_low=0.2, clip_high=0.2, kl_coef=0.001, reduction="sequence_mean")
