"""GTPO by hand, its conservation law and its guards."""

import math

import pytest
import torch
from builders import assign_credit, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.gtpo import GTPO
from iapo_bench.method import LossSpec, Signal, load_method

ENTROPIES = [[1.0, 2.0], [3.0], [0.5]]


def example(**changes):
    return make_batch(
        [2, 1, 1], [1, 1, 0], **{"token_entropy": ENTROPIES, "extra_completion": 1, "junk": 5.0, **changes}
    )


def real(batch, values_BT: torch.Tensor) -> list[float]:
    return values_BT[batch.completion_mask_BT].tolist()


def test_bonuses():
    # t = 0: shares 1/4 and 3/4 of two running; t = 1: all of one. The wrong row is alone.
    expected = [0.4 * 2 / 4, 0.4, 0.4 * 2 * 3 / 4, -0.4]
    assert real(example(), GTPO(a2=0.4).bonuses(example())) == pytest.approx(expected)


def test_confident_mistakes_are_punished_most():
    batch = make_batch([1, 1], [0, 0], token_entropy=[[1.0], [3.0]])
    assert real(batch, GTPO(a2=0.4).bonuses(batch)) == pytest.approx([-0.4 * 2 * 3 / 4, -0.4 * 2 / 4])


def test_advantages():
    # R+ = 1.2, 1.4, 1.6, 0: mean 1.05, std sqrt(0.3875). R- = 0, 0, 0, -1.4: mean -0.35, std sqrt(0.3675).
    advantages_BT = assign_credit(GTPO(a2=0.4), example()).advantages_BT
    assert real(example(), advantages_BT) == pytest.approx([0.240966, 0.562254, 0.883542, -1.732051], abs=1e-5)


def test_zeros_of_the_other_side_can_be_excluded():
    # R+ = 1.2, 1.4, 1.6: std sqrt(0.08/3). R- is one number.
    advantages_BT = assign_credit(GTPO(a2=0.4, zeros="exclude"), example()).advantages_BT
    assert real(example(), advantages_BT) == pytest.approx([-1.224745, 0.0, 1.224745, 0.0], abs=1e-5)


def test_scope_of_the_normalisation():
    batch = make_batch([1, 1, 1, 1], [1, 0, 1, 1], group_size=2)
    grouped = assign_credit(GTPO(a2=0.0), batch).advantages_BT
    assert real(batch, grouped) == pytest.approx([1, -1, 0, 0], abs=1e-5)
    # R+ = 1, 0, 1, 1 and R- = 0, -1, 0, 0 over the batch.
    whole = assign_credit(GTPO(a2=0.0, scope="batch"), batch).advantages_BT
    assert real(batch, whole) == pytest.approx([3**-0.5, -(3**0.5), 3**-0.5, 3**-0.5], abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=6, max_size=6),
    correct=st.lists(st.booleans(), min_size=6, max_size=6),
    entropies=st.lists(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 11.0]), min_size=30, max_size=30),
)
def test_bonuses_of_a_step_are_conserved(lengths, correct, entropies):
    rows = [entropies[5 * i : 5 * i + n] for i, n in enumerate(lengths)]
    batch = make_batch(lengths, correct, group_size=3, token_entropy=rows, extra_completion=2, junk=4.0)
    bonuses_NGT = GTPO(a2=0.3).bonuses(batch).view(2, 3, -1)
    mask_NGT, correct_NG1 = batch.completion_mask_BT.view(2, 3, -1), batch.correct_B.view(2, 3, 1)
    d_NT, h_NT = (mask_NGT & correct_NG1).sum(1), (mask_NGT & ~correct_NG1).sum(1)
    torch.testing.assert_close(bonuses_NGT.clamp(min=0).sum(1), 0.3 * d_NT.double())
    torch.testing.assert_close(bonuses_NGT.clamp(max=0).sum(1), -0.3 * h_NT.double())
    assert (bonuses_NGT[~mask_NGT] == 0).all()


def test_zero_entropies_are_shared_out():
    batch = make_batch([1] * 6, [1, 1, 1, 0, 0, 0], token_entropy=[[0.0]] * 3 + [[0.0], [0.0], [2.0]])
    # All H are 0: uniform. Some 1/H are infinite: they take all of it.
    assert real(batch, GTPO(a2=0.2).bonuses(batch)) == pytest.approx([0.2, 0.2, 0.2, -0.3, -0.3, 0.0])


def test_without_shaping_it_is_token_level_reward_normalisation():
    batch = make_batch([4, 1, 2], [1, 0, 0], extra_completion=1)
    advantages_BT = assign_credit(GTPO(a2=0.0), batch).advantages_BT
    rewards = torch.tensor([1.0] * 4 + [-1.0] * 3)
    expected = (rewards - rewards.mean()) / rewards.std(correction=0)
    assert real(batch, advantages_BT) == pytest.approx(expected.tolist(), abs=1e-5)
    equal = make_batch([3, 3, 3], [1, 0, 0])  # and with equal lengths it is GRPO
    torch.testing.assert_close(
        assign_credit(GTPO(a2=0.0), equal).advantages_BT, assign_credit(load_method("grpo"), equal).advantages_BT
    )


def test_entropies_are_asked_for_only_with_shaping():
    assert GTPO().needs == {Signal.TOKEN_ENTROPY}
    assert GTPO(a2=0.0).needs == frozenset()


def test_released_adds_the_length_to_a_normalised_advantage():
    """The formula, column by column: a row that has ended goes on taking its share with the entropies at padding."""
    entropies = [[1.0, 2.0], [3.0, 0.5], [0.5, 0.2], [0.0, 0.25]]  # rows 1, 2 and 3 end after one token
    batch = make_batch([2, 1, 1, 1], [1, 1, 0, 0], token_entropy=entropies)
    method = load_method("gtpo", "released")
    # Rewards 1.5, 1.5, -0.5, -0.5: mean 0.5, sample std sqrt(4/3).
    z = 1 / (math.sqrt(4 / 3) + 1e-4)
    inverse = [1 / (0.5 + 1e-8), 1 / 1e-8]
    expected = [
        z + 0.1 * 1.0 / 4.0 * 2,
        z + 0.1 * 2.0 / 2.5 * 2,
        z + 0.1 * 3.0 / 4.0,
        -z - 0.1 * inverse[0] / sum(inverse),
        -z - 0.1 * inverse[1] / sum(inverse),
    ]
    assert real(batch, assign_credit(method, batch).advantages_BT) == pytest.approx(expected, abs=1e-6)
    assert method.loss == LossSpec(kl_coef=0.001, reduction="token_mean", local_rows=4)


def test_released_shares_nothing_where_all_entropies_are_zero():
    batch = make_batch([1, 1], [1, 1], token_entropy=[[0.0], [0.0]])
    assert real(batch, GTPO(share_eps=1e-8).bonuses(batch)) == [0.0, 0.0]


def test_published_setting():
    method = GTPO()
    assert (method.a1, method.a2, method.scope, method.zeros) == (1.0, 0.1, "group", "include")
    assert method.loss == LossSpec(clip_low=0.2, clip_high=0.28, kl_coef=0.0, reduction="token_mean")
