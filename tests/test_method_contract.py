"""What every method promises, whatever its formula."""

import io
from dataclasses import dataclass, replace

import pytest
import torch
from builders import assign_credit, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_bench.batch import RolloutBatch
from iapo_bench.errors import UserError
from iapo_bench.method import Method, Signal, load_method
from iapo_bench.plugins import list_methods

# Options that make a method's particulars show in completions of a few tokens.
SMALL = {
    "dapo": {"overlong_cache": 3, "filter_truncated": True},
    "gfpo": {"k": 2, "metric": "token_efficiency"},
    "gtpo": {"a2": 0.7},
    "sgrpo": {"a": 1, "k": 3},
    "iapo": {"alpha": 0.5, "beta": 0.25},
    "alp": {"b": 0.5},
    "gdpo": {"target": 3},
    "laser": {"target": 3},
    "shorterbetter": {"b": 0.2},
}
# Methods whose credit takes coins: they belong to the row, and teach something of equal completions.
COINS = ("sgrpo", "random_reward")
VARIANTS = [
    *((name, profile, SMALL.get(name, {})) for name in list_methods() for profile in ("paper", "released")),
    ("gfpo", "paper", {"adaptive": (2, 3)}),
    ("gtpo", "paper", {"scope": "batch", "zeros": "exclude"}),
    ("iapo", "paper", {"informativeness": "next_token"}),
]
every_variant = pytest.mark.parametrize(("name", "profile", "options"), VARIANTS)


def ragged(lengths: list[int], seed: int, low: float, high: float) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return [(low + (high - low) * torch.rand(n, generator=generator)).tolist() for n in lengths]


def batch_of(lengths: list[int], correct: list[bool], seed: int = 0, **changes) -> RolloutBatch:
    """A batch with every signal, drawn from `seed`."""
    signals = {
        "old_logp": ragged(lengths, seed, -4.0, 0.0),
        "token_entropy": ragged(lengths, seed + 1, 0.0, 3.0),
        "answer_entropy": ragged([n + 1 for n in lengths], seed + 2, 0.0, 3.0),
        "max_tokens": 8,
    }
    return make_batch(lengths, correct, **{**signals, **changes})


@st.composite
def ragged_batches(draw) -> dict:
    """Arguments of `batch_of`: up to three groups of three."""
    B = 3 * draw(st.integers(1, 3))
    flags = st.lists(st.booleans(), min_size=B, max_size=B)
    return {
        "lengths": draw(st.lists(st.integers(1, 6), min_size=B, max_size=B)),
        "correct": draw(flags),
        "formatted": draw(flags),
        "truncated": draw(flags),
        "seed": draw(st.integers(0, 1000)),
        "group_size": 3,
    }


def new(name: str, profile: str, options: dict) -> Method:
    if name == "gfpo" and profile == "released":
        options = {"k": 2} | options
    return load_method(name, profile, **options)


@every_variant
@settings(max_examples=25, deadline=None)
@given(case=ragged_batches(), right=st.integers(0, 3), left=st.integers(0, 3))
def test_padding_changes_no_real_token(name, profile, options, case, right, left):
    """Nor what signals hold there, unless the method reads them on purpose: then columns that no row reaches."""
    junk = 9.0 if new(name, profile, options).reading.padding else 0.0
    plain = assign_credit(new(name, profile, options), batch_of(**case, junk=junk))
    padded_batch = batch_of(**case, extra_completion=right, extra_prompt=left, junk=9.0)
    padded = assign_credit(new(name, profile, options), padded_batch)
    T, mask_BT = plain.weights_BT.shape[1], padded_batch.completion_mask_BT
    torch.testing.assert_close(padded.advantages_BT[:, :T], plain.advantages_BT)
    assert torch.equal(padded.weights_BT[:, :T], plain.weights_BT)
    for values in (padded.advantages_BT, padded.weights_BT):
        assert values.dtype == torch.float32
        assert not values.requires_grad
        assert torch.isfinite(values).all()
        assert (values[~mask_BT] == 0).all()


@every_variant
@settings(max_examples=25, deadline=None)
@given(case=ragged_batches(), data=st.data())
def test_the_order_of_groups_changes_no_credit(name, profile, options, case, data):
    batch = batch_of(**case)
    groups = torch.tensor(data.draw(st.permutations(range(len(case["lengths"]) // 3))))
    rows = (groups[:, None] * 3 + torch.arange(3)).view(-1)
    plain = assign_credit(new(name, profile, options), batch)
    permuted = assign_credit(new(name, profile, options), batch.rows(rows))
    if name != "random_reward":
        torch.testing.assert_close(permuted.advantages_BT, plain.advantages_BT[rows])
    if name not in COINS:
        assert torch.equal(permuted.weights_BT, plain.weights_BT[rows])


@every_variant
def test_groups_of_one_are_refused(name, profile, options):
    batch = batch_of([2, 3], [True, False], group_size=1)
    with pytest.raises(UserError, match="group_size must be at least 2"):
        assign_credit(new(name, profile, options), batch)


@every_variant
@pytest.mark.parametrize("correct", [[1, 1, 1], [0, 0, 0], [1, 0, 0]])
def test_one_token_completions_have_finite_credit(name, profile, options, correct):
    credit = assign_credit(new(name, profile, options), batch_of([1, 1, 1], correct))
    assert torch.isfinite(credit.advantages_BT).all()
    assert (credit.weights_BT.sum() > 0).all()


@every_variant
@pytest.mark.parametrize("correct", [True, False])
def test_a_group_that_teaches_nothing_gets_zero(name, profile, options, correct):
    """Equal outcomes, equal lengths and constant signals, up to the rounding of a forward pass."""
    noise = [1e-7 * (-1) ** t for t in range(5)]
    constant = {
        "old_logp": [[-0.7 + x for x in noise[:4]]] * 3,
        "token_entropy": [[1.3 + x for x in noise[i : i + 4]] for i in (0, 1, 0)],
        "answer_entropy": [[2.3 + x for x in noise]] * 3,
    }
    batch = batch_of([4, 4, 4], [correct] * 3, **constant)
    advantages_BT = assign_credit(new(name, profile, options), batch).advantages_BT
    if (name, profile) == ("gtpo", "released"):  # adds a bonus of the row's length after normalising
        expected = 0.7 * 4 / 3 if correct else -0.7 * 4 / 3
        torch.testing.assert_close(advantages_BT, torch.full((3, 4), expected))
    elif (name, profile, options.get("informativeness")) == ("iapo", "paper", "next_token"):
        # Only the last step, to no entropy at all, stands out.
        torch.testing.assert_close(advantages_BT[:, 0], advantages_BT[:, 1], rtol=0, atol=1e-5)
    elif (name, profile) == ("iapo", "released"):
        assert torch.isfinite(advantages_BT).all()  # smoothing with zero-filled edges makes a signal of a constant
    elif name == "random_reward":
        assert (advantages_BT != 0).any()
    else:
        assert (advantages_BT == 0).all()


@every_variant
def test_zero_entropies_have_finite_credit(name, profile, options):
    zeros = {"token_entropy": [[0.0] * 3] * 4, "answer_entropy": [[0.0] * 4] * 4}
    credit = assign_credit(new(name, profile, options), batch_of([3] * 4, [1, 1, 0, 0], **zeros))
    assert torch.isfinite(credit.advantages_BT).all()
    assert credit.advantages_BT.abs().max() < 5


@every_variant
def test_only_the_signals_in_needs_are_read(name, profile, options):
    method = new(name, profile, options)
    batch = batch_of([2, 3, 1], [1, 0, 1])
    expected = assign_credit(new(name, profile, options), batch)
    unneeded = {s.value: None for s in Signal if s not in method.needs}
    assert torch.equal(assign_credit(method, replace(batch, **unneeded)).advantages_BT, expected.advantages_BT)
    for needed in method.needs:
        with pytest.raises(ValueError, match=f"no {needed.value}"):
            assign_credit(new(name, profile, options), replace(batch, **{needed.value: None}))


def test_credit_is_detached_from_its_inputs():
    batch = batch_of([2, 3], [1, 0])
    batch = replace(batch, answer_entropy_BS=batch.answer_entropy_BS.requires_grad_())
    assert not assign_credit(load_method("iapo"), batch).advantages_BT.requires_grad


@dataclass
class Remembering(Method):
    """Anneals an option and counts, with no word of checkpoints."""

    name = "remembering"
    share: float = 1.0

    def observe(self, batch):
        self.share *= 0.5
        self.mean_T = getattr(self, "mean_T", 0) + batch.rewards_B.mean()


def test_what_a_method_remembers_is_in_its_checkpoints_by_default():
    method, resumed = Remembering(), Remembering()
    method.observe(batch_of([2, 3], [1, 0]))
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    method.observe(batch_of([2, 3], [1, 1]))
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    resumed.observe(batch_of([2, 3], [1, 1]))
    assert vars(resumed) == vars(method)
    assert resumed.share == 0.25
    assert load_method("grpo").state_dict() == {}


@pytest.mark.parametrize("name", ["grpo", "sgrpo", "gfpo"])
def test_state_round_trip_of_any_method(name):
    method = load_method(name)
    method.observe(batch_of([2, 3], [1, 0]))
    other = load_method(name)
    other.load_state_dict(method.state_dict())
    assert other.state_dict() == method.state_dict()
