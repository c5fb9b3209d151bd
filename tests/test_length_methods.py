"""The methods that people ask for beside the five, by hand, and what each shares with GRPO."""

import ast
import inspect
from math import exp, sqrt

import pytest
import torch
from builders import assign_credit, make_batch

from baselines.alp import ALP
from baselines.cispo import CISPO
from baselines.dler import DLER
from baselines.efficient import Efficient
from baselines.gdpo import GDPO
from baselines.grpo import GRPO
from baselines.grpo_lead import GRPOLEAD
from baselines.gspo import GSPO
from baselines.kimi import Kimi
from baselines.laser import LASER
from baselines.random_reward import RandomReward
from baselines.shorterbetter import ShorterBetter
from iapo_bench.errors import UserError
from iapo_bench.method import LossSpec, Method, load_method

PLAIN = LossSpec(clip_low=0.2, clip_high=0.2, kl_coef=0.0, entropy_coef=0.0, reduction="sequence_mean")


def rewards(method: Method, batch) -> list[float]:
    shaped_B = method.shape_rewards(batch)
    assert (shaped_B.dtype, tuple(shaped_B.shape)) == (torch.float32, batch.rewards_B.shape)
    return shaped_B.tolist()


def advantages(method: Method, batch) -> list[float]:
    return assign_credit(method, batch).advantages_BT[:, 0].tolist()


def z(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    std = sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / std for v in values]


@pytest.mark.parametrize("method", [Kimi(), ShorterBetter(), LASER(target=3), ALP(b=0.5)])
def test_credit_is_the_z_score_of_the_shaped_reward(method):
    batch = make_batch([2, 4, 6, 3, 5, 7], [1, 1, 0, 0, 1, 0], group_size=3)
    shaped = rewards(method, batch)
    assert advantages(method, batch) == pytest.approx([*z(shaped[:3]), *z(shaped[3:])], abs=1e-4)


def test_kimi():
    # lam = 1/2, 1/4, -1/2 and 0; a wrong completion keeps the negative part only.
    batch = make_batch([2, 3, 6, 4, 6], [1, 0, 0, 1, 1])
    assert rewards(Kimi(), batch) == pytest.approx([1.2, -0.5, -0.7, 1.0, 0.8])
    assert rewards(Kimi(w=1.0, wrong=0.0), batch) == pytest.approx([1.5, 0, -0.5, 1, 0.5])
    # Another group has its own shortest and longest; and lengths that are equal.
    assert rewards(Kimi(), make_batch([2, 6, 3, 3], [1, 0, 1, 0], group_size=2)) == pytest.approx([1.2, -0.7, 1, -0.5])
    assert rewards(Kimi(), make_batch([2, 6, 7, 9], [1, 1, 1, 1], group_size=2)) == pytest.approx([1.2, 0.8] * 2)
    assert Kimi().loss == PLAIN


def test_efficient():
    # Correct lengths 2 and 6: mean 4, population std 2, so z = -1 and 1; the third was cut off and counts as wrong.
    batch = make_batch([2, 6, 40, 1], [1, 1, 1, 0], truncated=[0, 0, 1, 0])
    first, second = 1 - 0.1 / (1 + exp(1)), 1 - 0.1 / (1 + exp(-1))
    assert rewards(Efficient(), batch) == pytest.approx([first, second, 0, 0])
    others = [second / 3, first / 3, (first + second) / 3, (first + second) / 3]
    expected = [r - o for r, o in zip([first, second, 0, 0], others, strict=True)]
    assert advantages(Efficient(), batch) == pytest.approx(expected)
    assert rewards(Efficient(), make_batch([5, 9], [1, 0])) == pytest.approx([0.95, 0])  # alone: z = 0
    # Lengths 2, 3 and 7: mean 4, variance 14/3.
    three = [1 - 0.1 / (1 + exp(-(length - 4) / sqrt(14 / 3))) for length in (2, 3, 7)]
    assert rewards(Efficient(), make_batch([2, 3, 7], [1, 1, 1])) == pytest.approx(three)
    assert Efficient().loss == PLAIN


def test_shorterbetter():
    batch = make_batch([5, 2, 3, 9, 4, 8, 6, 6], [1, 0, 1, 0, 0, 0, 0, 0], group_size=4)
    # The shortest correct length is 3; the second group, with none, goes by its mean length of 6.
    assert rewards(ShorterBetter(), batch) == pytest.approx([1.998, -0.001, 2, -0.006, -0.002, -0.002, 0, 0])
    released = load_method("shorterbetter", "released")
    assert rewards(released, batch)[:2] == pytest.approx([0.998, -0.001])
    assert (ShorterBetter().loss, released.loss) == (PLAIN, LossSpec(kl_coef=0.001))


def test_laser():
    batch = make_batch([3, 4, 3, 8], [1, 1, 0, 0], max_tokens=12)
    assert rewards(LASER(), batch) == [1.5, 1, -0.5, -0.5]  # a quarter of 12 tokens is 3
    assert rewards(LASER(), make_batch([25, 26], [1, 1], truncated=[1, 1], max_tokens=100)) == [1.5, 1]
    assert rewards(LASER(target=4, bonus=1.0), batch) == [2, 2, -0.5, -0.5]
    assert LASER().loss == LossSpec(clip_high=0.28, kl_coef=0.001, entropy_coef=0.001)
    for target in (13, -1):
        with pytest.raises(UserError, match="target of laser must be from 0 to max_tokens = 12"):
            LASER(target=target).shape_rewards(batch)


def test_alp():
    # Accuracies 3/4 and 0, for which 1/4 stands in; lengths are shares of their group's longest.
    batch = make_batch([2, 4, 6, 8, 1, 1, 2, 5], [1, 1, 1, 0, 0, 0, 0, 0], group_size=4)
    expected = [1 - 0.1 * 0.75 / 4, 1 - 0.1 * 0.75 / 2, 1 - 0.1 * 0.75 * 0.75, -0.1 * 0.75]
    assert rewards(ALP(b=0.1), batch)[:4] == pytest.approx(expected)
    assert rewards(ALP(b=0.1), batch)[4:] == pytest.approx([-0.005, -0.005, -0.01, -0.025])
    assert (ALP().b, ALP().loss) == (1e-7, PLAIN)
    # As its docstring says of the published weight.
    assert advantages(ALP(), batch)[:4] == pytest.approx(advantages(GRPO(), batch)[:4], abs=1e-5)


def test_dler():
    batch = make_batch([1, 3, 2, 2], [1, 0, 1, 0], truncated=[0, 0, 1, 0], group_size=2)
    assert rewards(DLER(), batch) == [1, 0, 0, 0]
    assert rewards(load_method("dler", "released"), batch) == pytest.approx([1, 0, 0.1, 0])
    # Centred: 1/2, -1/2, 0, 0 over 1, 3, 2 and 2 tokens; mean -1/8, sum of squares 1 - 8/64, seven degrees of freedom.
    std = sqrt((1 - 8 / 64) / 7)
    expected = [(a + 0.125) / std for a in (0.5, -0.5, 0, 0)]
    credit = assign_credit(DLER(), batch)
    assert credit.advantages_BT[:, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert credit.advantages_BT.sum() == pytest.approx(0, abs=1e-5)
    assert DLER().loss == load_method("dler", "released").loss == LossSpec(clip_high=0.28, kl_coef=5e-4)
    for profile in ("paper", "released"):
        method = load_method("dler", profile)
        groups = [[1, 1], [0, 0], [1, 0]]
        assert [method.accept_group(torch.tensor(group) > 0) for group in groups] == [False, False, True]


def test_grpo_lead():
    # Correct lengths 2, 4, 6: mean 4, std 2 with ddof 1.
    batch = make_batch([2, 4, 6, 9], [1, 1, 1, 0])
    shaped = [exp(0.05), 1, exp(-0.05), -1]
    assert rewards(GRPOLEAD(), batch) == pytest.approx(shaped)
    # Accuracy 3/4: 0.4 + 1.1/2 for the correct ones, 1/4 in its place for the wrong one.
    weights = [0.95, 0.95, 0.95, 0.4 + 1.1 / (1 + exp(-5))]
    expected = [w * a for w, a in zip(weights, z(shaped), strict=True)]
    assert advantages(GRPOLEAD(), batch) == pytest.approx(expected, abs=1e-5)
    assert rewards(GRPOLEAD(), make_batch([7, 4], [1, 0])) == [1, -1]  # one correct: std 1, z 0
    assert GRPOLEAD().loss == load_method("grpo_lead", "released").loss == PLAIN


def test_grpo_lead_released_leaves_short_groups_alone():
    batch = make_batch([3, 5, 7, 9, 4, 6, 8, 2], [1, 1, 1, 1, 1, 1, 0, 0], group_size=4)
    assert rewards(load_method("grpo_lead", "released"), batch) == [1, 1, 1, 1, 1, 1, -1, -1]
    assert load_method("grpo_lead", "released").free_tokens == 4000
    # Means of the three shortest are 5 in the first group and, of the two that are correct, 5 in the second.
    for limit, shaped in ((5, [1] * 6), (4.9, rewards(GRPOLEAD(), batch)[:6])):
        assert rewards(GRPOLEAD(free_tokens=limit), batch)[:6] == pytest.approx(shaped)
    assert rewards(GRPOLEAD(), batch)[0] != 1


def test_gdpo():
    # Group 1: z of correctness 1, -1 and of length within 3 tokens -1, 1. Group 2: 1, -1 and no spread.
    batch = make_batch([5, 2, 3, 1], [1, 0, 1, 0], group_size=2, max_tokens=12)
    scale = 0.5 / (0.5 + 1e-4)
    summed = [(1 - 0.5) * scale, (0.5 - 1) * scale, scale, -scale]
    std = sqrt(sum(a * a for a in summed) / 4)
    expected = [a / (std + 1e-4) for a in summed]
    assert advantages(GDPO(w_length=0.5), batch) == pytest.approx(expected, rel=1e-5)
    assert advantages(GDPO(), batch)[:2] == [0, 0]
    assert advantages(GDPO(w_correct=2.0, w_length=1.0), batch) == pytest.approx(expected, rel=1e-3)
    within = make_batch([25, 26], [0, 0], max_tokens=100)  # by default within a quarter of the limit
    assert advantages(GDPO(), within) == pytest.approx([1, -1], abs=1e-3)
    assert advantages(GDPO(target=12), batch) == pytest.approx([1, -1, 1, -1], abs=1e-3)
    assert GDPO().loss == PLAIN
    with pytest.raises(UserError, match="target of gdpo must be from 0 to max_tokens = 12"):
        assign_credit(GDPO(target=13), batch)


def test_gspo_and_cispo_are_grpo_in_another_loss():
    batch = make_batch([2, 3, 1, 1, 4, 1], [1, 0, 0, 1, 0, 1], group_size=3)
    for method in (GSPO(), CISPO()):
        assert torch.equal(assign_credit(method, batch).advantages_BT, assign_credit(GRPO(), batch).advantages_BT)
    assert GSPO().loss == LossSpec(clip_low=3e-4, clip_high=4e-4, ratio="sequence", reduction="sequence_mean")
    assert CISPO().loss == LossSpec(clip_high=4.0, objective="cispo", reduction="token_mean")


def test_random_rewards_are_fair_coins_that_nothing_moves():
    batch = make_batch([2] * 400, [1, 0] * 200, group_size=4)
    credit = assign_credit(RandomReward(), batch)
    columns = credit.advantages_BT[:, 0]
    assert torch.equal(
        columns, assign_credit(RandomReward(), make_batch([2] * 400, [0] * 400, group_size=4)).advantages_BT[:, 0]
    )
    assert not torch.equal(columns, assign_credit(RandomReward(), batch, seed=1).advantages_BT[:, 0])
    # Two of four: +1, -1; one of four: sqrt(3), -1/sqrt(3); four alike: 0.
    sizes = {round(abs(value), 3) for value in columns.tolist()}
    assert sizes == {0, 0.577, 1, 1.732}
    assert 170 < int((columns > 0).sum()) < 230
    assert RandomReward().loss == PLAIN
    with pytest.raises(ValueError, match="needs a generator"):
        RandomReward().credit(batch)


@pytest.mark.parametrize(
    "cls", [Kimi, Efficient, ShorterBetter, LASER, ALP, DLER, GRPOLEAD, GDPO, GSPO, CISPO, RandomReward]
)
def test_the_interface_asks_for_ten_lines_at_most(cls):
    hooks = [node for node in ast.walk(ast.parse(inspect.getsource(cls))) if isinstance(node, ast.FunctionDef)]
    code = [line for hook in hooks for line in hook.body if not isinstance(line, ast.Expr)]  # docstrings
    assert sum(line.end_lineno - line.lineno + 1 for line in code) <= 10


@pytest.mark.parametrize(
    "method", [cls(format_reward=0.5) for cls in (Kimi, Efficient, ShorterBetter, LASER, ALP, DLER, GRPOLEAD)]
)
def test_a_format_reward_is_added_to_a_method_s_own(method):
    batch = make_batch([2, 3, 4], [1, 0, 1], formatted=[1, 0, 1], max_tokens=16)
    plain = rewards(type(method)(), batch)
    assert rewards(method, batch) == pytest.approx([plain[0] + 0.5, plain[1] - 0.5, plain[2] + 0.5])
