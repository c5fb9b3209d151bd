"""S-GRPO's token selection."""

import pytest
import torch
from builders import make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.sgrpo import SGRPO
from iapo_bench.method import LossSpec, load_method
from iapo_bench.seeds import row_uniforms


def sequential(length: int, coins: list[bool], a: int, k: int) -> list[bool]:
    """The rule as the paper tells it, one token after another."""
    selected: list[bool] = []
    for t in range(length):
        selected.append(t < a or (coins[t] and sum(selected) < k))
    return selected


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    a=st.integers(0, 8),
    k=st.integers(0, 8),
    p=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_selection_follows_the_sequential_rule(lengths, a, k, p, seed):
    row_seeds = [seed + row for row in range(len(lengths))]
    batch = make_batch(lengths, [1] * len(lengths))
    selected_BT = SGRPO(a=a, k=k, p=p).select(batch, row_seeds)
    uniforms = row_uniforms(row_seeds, max(lengths))
    for row, length in enumerate(lengths):
        expected = sequential(length, [u < p for u in uniforms[row]], a, k)
        assert selected_BT[row].tolist() == expected + [False] * (max(lengths) - length)


def test_coins_belong_to_the_row():
    batch = make_batch([9, 4, 7, 5], [1, 0, 1, 0], group_size=2)
    method, seeds = SGRPO(a=1, k=3), [11, 12, 13, 14]
    order = torch.tensor([2, 3, 0, 1])
    permuted_BT = method.select(batch.rows(order), [13, 14, 11, 12])
    assert torch.equal(permuted_BT, method.select(batch, seeds)[order])
    wide = make_batch([9, 4, 7, 5], [1, 0, 1, 0], group_size=2, extra_completion=5, extra_prompt=3)
    assert torch.equal(method.select(wide, seeds)[:, :9], method.select(batch, seeds))


def test_weights_are_the_selection_and_change_with_the_generator():
    batch = make_batch([20, 20], [1, 0])

    def weights(seed: int) -> torch.Tensor:
        return SGRPO(a=2, k=8).credit(batch, torch.Generator().manual_seed(seed)).weights_BT

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert not torch.equal(weights(0)[0], weights(0)[1])
    assert (weights(0)[:, :2] == 1).all()
    assert weights(0).sum(dim=1).max() <= 8


def test_a_generator_is_required():
    with pytest.raises(ValueError, match="needs a generator"):
        SGRPO().credit(make_batch([2, 2], [1, 0]))


def test_released_tests_the_length_of_the_completion():
    batch = make_batch([6, 5], [1, 0])
    options = {"a": 2, "k": 6, "p": 1.0}
    assert load_method("sgrpo", "released", **options).select(batch, [1, 2]).sum(dim=1).tolist() == [2, 5]
    assert load_method("sgrpo", **options).select(batch, [1, 2]).sum(dim=1).tolist() == [6, 5]


def test_released_throws_the_same_coins_in_every_micro_batch():
    method = load_method("sgrpo", "released", a=1, k=30)
    batch = make_batch([20] * 8, [1, 0] * 4)
    weights_BT = method.credit(batch, torch.Generator().manual_seed(3)).weights_BT
    patterns = {tuple(row.tolist()) for row in weights_BT}
    assert len(patterns) == 4  # of micro-batches of four rows: each pattern is thrown twice
    assert all(sum(tuple(row.tolist()) == pattern for row in weights_BT) == 2 for pattern in patterns)


def test_released_gives_coins_to_the_rows_that_need_any():
    """Two rows of a micro-batch are too long for coins: the two others take the first two rows of coins."""
    method = SGRPO(a=1, k=10, coins="shared", budget="length", local_rows=4)
    seats = method._seats(make_batch([12, 5, 12, 5], [1, 0, 1, 0]), torch.Generator().manual_seed(0))
    assert sorted(seats[[1, 3]].tolist()) == [0, 1]


def test_published_setting():
    method = SGRPO()
    assert (method.a, method.k, method.p) == (150, 341, 0.5)
    assert method.loss == LossSpec(kl_coef=0.001, reduction="sequence_mean")
