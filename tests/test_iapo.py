"""IAPO by hand: informativeness, exploration, their z-scores and the released code's departures."""

import math

import pytest
import torch
from builders import assign_credit, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_bench.method import LossSpec, Reading, Signal, load_method
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


def test_smoothing_looks_one_step_back_too():
    # e = 0, 2, 1, 1, 0 and 0, 1, 2, 0.5 with the 0 before the first token.
    smoothed = IAPO(smoothing=True).token_informativeness(example())
    assert rows(example(), smoothed) == [[0, 0.5, 1], [-1.5, 1]]


def test_only_a_row_of_full_width_misses_its_last_entropy():
    batch = make_batch([3, 2], [1, 0], answer_entropy=[[2.0, 1.0, 1.0, 0.25], [1.0, 2.0, 0.5]])
    unread = IAPO(last_entropy="unread").token_informativeness(batch)
    assert rows(batch, unread) == [[1, 0, 1], [-1, 1.5]]
    # Two parts, each as wide as its own longest row, so the second group's row of two is one of full width.
    parts = {"last_entropy": "unread", "reading": Reading(ranks=2)}
    entropies = [[2.0, 1.0, 1.0, 0.25], [1.0, 0.5], [1.0, 2.0, 0.5], [1.0, 0.25]]
    batch = make_batch([3, 1, 2, 1], [1, 0, 1, 0], group_size=2, answer_entropy=entropies, extra_completion=1)
    assert rows(batch, IAPO(**parts).token_informativeness(batch)) == [[1, 0, 1], [0.5], [-1, 2], [0.75]]


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


def test_statistics_count_padding_when_it_is_read():
    # Row 1: s = -1, 1.5 and at padding 0.5 - 0.25; row 0 has no padding.
    entropies = [[2.0, 1.0, 1.0, 0.0], [1.0, 2.0, 0.5, 0.25]]
    batch = make_batch([3, 2], [1, 0], answer_entropy=entropies)
    method = IAPO(alpha=1.0, beta=0.0, reading=Reading(padding=True))
    _, wrong = rows(batch, assign_credit(method, batch).advantages_BT)
    mean, std = 0.25, math.sqrt((1.25**2 + 1.25**2) / 3)
    assert wrong == pytest.approx([-1 + (-1 - mean) / std, -1 + (1.5 - mean) / std], abs=1e-5)


def released_row(e: list[float], h: list[float], width: int, longest: int, reward: float, advantage: float):
    """One row by the released code's formula: `e` and `h` over the columns of its part, zeros beyond."""

    def unit(x: list[float]) -> list[float]:
        x = [*x, *[0.0] * (longest - len(x))]
        mean = sum(x) / longest
        std = math.sqrt(sum((v - mean) ** 2 for v in x) / (longest - 1))
        y = [v - mean / (std + 1e-8) for v in x]
        return [v / (math.sqrt(sum(w * w for w in y)) + 1e-8) for v in y]

    s = []
    for t in range(width):
        before = e[t - 1] if t else 0.0
        after = e[t + 1] if t + 1 < width else 0.0
        s.append((e[t] + before) / 2 - after)
    sign = 1.0 if reward > 0 else -1.0
    return [advantage + 0.5 * x - sign * 0.25 * y for x, y in zip(unit(s), unit(h), strict=True)]


def test_released():
    """Two parts of one group each, three and four columns wide; entropies at padding are whatever the model gave."""
    e = [[2.0, 1.0, 1.5, 9.0], [1.0, 2.0, 0.5, 9.0], [1.0, 0.9, 0.8, 0.1], [0.3, 0.2, 0.7, 0.6]]
    h = [[1.0, 2.0, 3.0], [1.0, 3.0, 0.4], [0.1, 0.2, 0.3, 0.4], [2.0, 1.0, 0.5, 0.1]]
    last = [[9.0], [9.0], [7.0], [7.0]]  # never read
    lengths, correct, widths = [3, 2, 4, 1], [1, 0, 1, 0], [3, 3, 4, 4]
    entropies = [row[:width] + end for row, width, end in zip(e, widths, last, strict=True)]
    batch = make_batch(lengths, correct, group_size=2, answer_entropy=entropies, token_entropy=h, max_tokens=4)
    method = load_method("iapo", "released", alpha=0.5, beta=0.25)
    actual = rows(batch, assign_credit(method, batch).advantages_BT)
    z = 1 / (math.sqrt(2) + 1e-4)  # rewards 1.5, -0.5: sample std sqrt(2)
    for i, (width, reward) in enumerate(zip(widths, [1.5, -0.5, 1.5, -0.5], strict=True)):
        expected = released_row(e[i], h[i], width, 4, reward, z if reward > 0 else -z)
        assert actual[i] == pytest.approx(expected[: lengths[i]], abs=1e-6)
    assert method.loss == LossSpec(clip_high=0.28, kl_coef=0.001, reduction="token_mean", local_rows=4)


def test_released_turns_a_signal_without_spread_into_its_sign():
    """x - mean/1e-8 is all but a constant, which the unit norm makes -+1/sqrt(T); a lone token's std is undefined."""
    signals = {"answer_entropy": [[0.0] * 5, [0.0] * 5], "token_entropy": [[0.7] * 4, [0.0] * 4], "max_tokens": 4}
    method = load_method("iapo", "released", alpha=0.5, beta=0.25)
    batch = make_batch([4, 3], [1, 0], **signals)
    z = 1 / (math.sqrt(2) + 1e-4)
    correct, wrong = rows(batch, assign_credit(method, batch).advantages_BT)
    assert correct == pytest.approx([z + 0.25 / 2] * 4, abs=1e-6)
    assert wrong == pytest.approx([-z] * 3, abs=1e-6)
    lone = make_batch([1, 1], [1, 0], answer_entropy=[[2.0, 1.0]] * 2, token_entropy=[[0.7]] * 2)
    assert rows(lone, assign_credit(method, lone).advantages_BT) == [pytest.approx([z]), pytest.approx([-z])]


def test_published_setting():
    method = IAPO()
    assert (method.alpha, method.beta, method.format_reward) == (1.0, 1.0, 0.5)
    assert method.loss == LossSpec(clip_low=0.2, clip_high=0.2, kl_coef=0.001, reduction="sequence_mean")
