"""The sequence-level methods by hand, and the identities that tie them to GRPO."""

import json
from dataclasses import replace

import pytest
import torch
from builders import assign_credit, make_batch

from baselines.dapo import DAPO
from baselines.dr_grpo import DrGRPO
from baselines.gfpo import GFPO
from baselines.grpo import GRPO
from baselines.gtpo import GTPO
from baselines.sgrpo import SGRPO
from iapo_bench.errors import UserError
from iapo_bench.method import LossSpec, group_normalise, load_method, masked_normalise
from methods.iapo import IAPO


def first_column(method, batch) -> list[float]:
    return assign_credit(method, batch).advantages_BT[:, 0].tolist()


def assert_same_credit(one, other) -> None:
    torch.testing.assert_close(one.advantages_BT, other.advantages_BT)
    assert torch.equal(one.weights_BT, other.weights_BT)


def test_grpo():
    batch = make_batch([2, 3, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], group_size=3)
    # Rewards 1, -1, -1: mean -1/3, population std sqrt(8)/3.
    expected = [1.414214, -0.707107, -0.707107, 0, 0, 0]
    assert first_column(GRPO(), batch) == pytest.approx(expected, abs=1e-5)
    assert GRPO().loss == LossSpec(clip_low=0.2, clip_high=0.2, kl_coef=0.001, reduction="sequence_mean")


def test_dr_grpo():
    batch = make_batch([2, 3, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1], group_size=3)
    assert first_column(DrGRPO(), batch) == pytest.approx([4 / 3, -2 / 3, -2 / 3, 0, 0, 0], abs=1e-6)
    assert DrGRPO().loss == LossSpec(kl_coef=0.0, reduction="constant")


def test_a_format_reward_is_added_or_subtracted():
    batch = make_batch([1, 1], [1, 0], formatted=[0, 1])
    assert GRPO(format_reward=0.5).shape_rewards(batch).tolist() == [0.5, -0.5]
    assert GRPO().shape_rewards(batch).tolist() == [1, -1]


def test_masked_normalise_with_and_without_a_correction():
    values, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]])
    assert masked_normalise(values, mask, eps=0.0).tolist() == [[-1, 1, 0]]
    assert masked_normalise(values, mask, eps=0.0, ddof=1)[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0])
    assert masked_normalise(values, mask & False).tolist() == [[0, 0, 0]]


def test_equal_rewards_that_are_not_exact_in_binary_get_zero():
    assert group_normalise(torch.full((7,), 0.1), 7).tolist() == [0] * 7


# DAPO


@pytest.mark.parametrize("cache", [4, 0.4])
def test_overlong_punishment_at_its_corners(cache):
    batch = make_batch([5, 6, 7, 8, 9, 10], [1] * 6, max_tokens=10)
    shaped = DAPO(overlong_cache=cache).shape_rewards(batch).tolist()
    assert shaped == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0])


def test_overlong_punishment_can_be_off_or_impossible():
    batch = make_batch([10], [0], max_tokens=10)
    assert [float(DAPO(overlong_cache=off).shape_rewards(batch)) for off in (0, None)] == [-1, -1]
    # By default the last fifth of the limit: 17 of 20 tokens are one of four into it.
    assert float(DAPO().shape_rewards(make_batch([17], [1], max_tokens=20))) == 0.75
    assert float(DAPO().shape_rewards(batch)) == -2
    for cache in (11, -1):
        with pytest.raises(UserError, match="overlong_cache of dapo must be from 0 to max_tokens = 10"):
            DAPO(overlong_cache=cache).shape_rewards(batch)


def test_dapo_samples_dynamically():
    accepted = [DAPO().accept_group(torch.tensor(group) > 0) for group in ([1, 1], [0, 0], [1, 0])]
    assert accepted == [False, False, True]
    assert DAPO(dynamic_sampling=False).accept_group(torch.tensor([True, True]))
    assert GRPO().accept_group(torch.tensor([True, True]))


def test_dapo_filters_truncated_rows_out_of_the_loss():
    batch = make_batch([3, 2], [1, 0], truncated=[1, 0])
    assert assign_credit(DAPO(filter_truncated=True), batch).weights_BT.tolist() == [[0, 0, 0], [1, 1, 0]]
    assert assign_credit(DAPO(), batch).weights_BT.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_dapo_released():
    method = load_method("dapo", "released")
    assert method.loss == LossSpec(clip_high=0.28, kl_coef=0.001, reduction="token_mean", local_rows=4)
    assert method.accept_group(torch.tensor([True, True]))
    assert method.shape_rewards(make_batch([4, 4], [1, 1], formatted=[1, 0])).tolist() == [1.5, 0.5]
    assert DAPO().loss == LossSpec(clip_low=0.2, clip_high=0.28, kl_coef=0.0, reduction="token_mean")


# GFPO


def test_gfpo_learns_from_the_shortest():
    batch = make_batch([5, 2, 2, 3], [1, 0, 1, 1])
    credit = assign_credit(GFPO(k=3), batch)
    expected = [0, -1.414214, 0.707107, 0.707107]  # S = rows 1 to 3, rewards -1, 1, 1
    assert credit.advantages_BT[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(credit.weights_BT, batch.completion_mask_BT.float())  # all rows stay in the normaliser
    assert GFPO().loss == LossSpec(kl_coef=0.001, entropy_coef=0.001, reduction="token_mean")


def test_gfpo_breaks_ties_by_row():
    assert first_column(GFPO(k=2), make_batch([2, 2, 2, 2], [1, 0, 1, 0])) == pytest.approx([1, -1, 0, 0], abs=1e-5)
    assert first_column(GFPO(k=2), make_batch([3, 2, 3, 3], [1, 0, 0, 0])) == pytest.approx([1, -1, 0, 0], abs=1e-5)


def test_gfpo_by_token_efficiency():
    # r/|o| = 1/4, -1/3, -1/6, -1: the long wrong answer beats the short ones.
    batch = make_batch([4, 3, 6, 1], [1, 0, 0, 0])
    assert first_column(GFPO(k=2, metric="token_efficiency"), batch) == pytest.approx([1, 0, -1, 0], abs=1e-5)
    # Rewards of 1.5, 0.5 and 1.5 over 6, 3 and 7 tokens: 0.25, 0.17, 0.21.
    method = GFPO(k=2, metric="token_efficiency", format_reward=0.5, normaliser="kept")
    credit = assign_credit(method, make_batch([6, 3, 7], [1, 1, 1], formatted=[1, 0, 1]))
    assert credit.weights_BT[:, 0].tolist() == [1, 0, 1]
    assert GFPO().k == 4


def test_gfpo_refuses_a_k_that_the_group_cannot_give():
    batch = make_batch([1, 1, 1], [1, 0, 0])
    for method in (GFPO(k=4), GFPO(k=1), GFPO(adaptive=(4,))):
        with pytest.raises(UserError, match="group_size = 3: choose k from 2 to 3"):
            assign_credit(method, batch)


def test_gfpo_adaptive_k_by_quartile_of_difficulty():
    # Accuracies 4/4, 3/4, 1/4, 0/4: one group in each quartile.
    correct = [1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    batch = make_batch([1, 2, 3, 4] * 4, correct, group_size=4)
    method = GFPO(adaptive=(2, 3, 4), normaliser="kept")
    kept = assign_credit(method, batch).weights_BT[:, 0].view(4, 4).sum(1).tolist()
    assert kept == [2, 3, 4, 4]
    # Ten impossible groups later, 1/4 is among the easiest.
    method.observe(make_batch([1] * 40, [0] * 40, group_size=4))
    weights_BT = method.credit(batch).weights_BT
    assert weights_BT[:, 0].view(4, 4).sum(1).tolist() == [2, 2, 2, 4]


def test_gfpo_resumes_with_what_it_observed():
    batch = make_batch([1, 2, 3, 4] * 2, [1, 1, 1, 0, 0, 0, 0, 1], group_size=4)
    method, resumed = GFPO(adaptive=(2, 3, 4)), GFPO(adaptive=(2, 3, 4))
    method.observe(batch)
    resumed.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert_same_credit(resumed.credit(batch), method.credit(batch))
    resumed.observe(batch)
    assert method.state_dict() == {"counts": [0, 1, 0, 1, 0]}
    assert resumed.state_dict() == {"counts": [0, 2, 0, 2, 0]}
    with pytest.raises(UserError, match="group_size was 4, now 2"):
        resumed.observe(replace(batch, group_size=2))


def test_gfpo_released():
    method = load_method("gfpo", "released")
    assert (method.k, method.loss) == (6, LossSpec(kl_coef=0.001, reduction="sequence_mean"))
    credit = assign_credit(load_method("gfpo", "released", k=2), make_batch([3, 1, 2], [1, 0, 1]))
    # S = rows 1 and 2; the sample std of -0.5 and 1.5 is sqrt(2).
    z = 1 / (2**0.5 + 1e-4)
    assert credit.advantages_BT[:, 0].tolist() == pytest.approx([0, -z, z], abs=1e-6)
    assert credit.weights_BT.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_gfpo_released_breaks_ties_as_topk_does():
    lengths, correct = [5, 5, 5, 3, 5, 5, 5, 5], [1, 0, 1, 0, 1, 0, 1, 0]
    kept = torch.topk(torch.tensor(lengths), 6, largest=False).indices.tolist()
    batch = make_batch(lengths, correct)
    weights_B = assign_credit(load_method("gfpo", "released"), batch).weights_BT[:, 0]
    assert weights_B.nonzero().view(-1).tolist() == sorted(kept)
    assert sorted(kept) != [0, 1, 2, 3, 4, 5]  # which is what the paper's profile keeps


@pytest.mark.parametrize("name", ["grpo", "dapo", "sgrpo", "gfpo", "iapo", "gtpo"])
def test_the_reward_of_the_released_code_has_a_sample_std_and_a_visible_eps(name):
    """1.069 times the population's at G = 8."""
    batch = make_batch([4] * 8, [1, 1, 0, 0, 1, 1, 0, 0])
    off = {"iapo": {"alpha": 0.0, "beta": 0.0}, "gtpo": {"a2": 0.0}, "gfpo": {"k": 8}}.get(name, {})
    advantages_BT = assign_credit(load_method(name, "released", **off), batch).advantages_BT
    rewards = torch.tensor([1.5, 1.5, -0.5, -0.5] * 2)
    expected_B = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    torch.testing.assert_close(advantages_BT, expected_B[:, None].expand(8, 4))


# Identities with GRPO


@pytest.mark.parametrize(
    "method",
    [
        IAPO(alpha=0.0, beta=0.0),
        GFPO(k=4),
        SGRPO(p=1.0, k=6),
        SGRPO(a=6),
        DAPO(),
    ],
)
def test_what_reduces_to_grpo(method):
    batch = make_batch([6, 1, 2, 3, 5, 5, 1, 2], [1, 0, 0, 1, 0, 0, 0, 1], group_size=4, max_tokens=20)
    assert_same_credit(assign_credit(method, batch), assign_credit(GRPO(), batch))


def test_gfpo_of_the_whole_group_differs_from_grpo_by_its_correction():
    batch = make_batch([6, 1, 2, 3], [1, 0, 0, 1])
    corrected = assign_credit(GFPO(k=4, ddof=1), batch).advantages_BT
    torch.testing.assert_close(corrected * (4 / 3) ** 0.5, assign_credit(GRPO(), batch).advantages_BT)


def test_losses_that_make_the_identities_whole():
    assert IAPO().loss == GRPO().loss == SGRPO().loss
    assert replace(DAPO().loss, clip_high=0.2) == replace(GRPO().loss, reduction="token_mean", kl_coef=0.0)
    assert GTPO().loss == DAPO().loss
