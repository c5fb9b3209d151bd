"""The loss: hand-computed, invariant to how it is split, and no dearer than its terms."""

import copy
from dataclasses import replace

import pytest
import torch

from iapo_bench.config.train import TrainConfig
from iapo_bench.method import Credit, LossSpec, Signal
from iapo_bench.rollout import Completion
from iapo_bench.rollout.collate import collate
from iapo_bench.signals.statistics import compute_signals, token_statistics
from iapo_bench.train.optimizer import make_optimizer
from iapo_bench.train.update import (
    backward,
    k3,
    sequence_log_ratio,
    surrogate,
    token_scales,
    update,
)

SPECS = {
    "sequence mean": LossSpec(),
    "token mean, clip-higher": LossSpec(reduction="token_mean", clip_high=0.28),
    "constant": LossSpec(reduction="constant"),
    "KL and entropy": LossSpec(kl_coef=0.3, entropy_coef=0.2, reduction="token_mean"),
    "CISPO": LossSpec(objective="cispo", clip_high=0.3, reduction="token_mean"),
    "GSPO": LossSpec(ratio="sequence", clip_low=0.05, clip_high=0.06),
    "CISPO by sequence, KL": LossSpec(objective="cispo", ratio="sequence", clip_high=0.1, kl_coef=0.2),
}


def settings_of(**changes) -> TrainConfig:
    return TrainConfig(completions=8, max_tokens=9, **changes)


def make_rollout(groups: int = 4, seed: int = 0):
    """Groups of two with ragged prompts and completions, and a credit that differs in every token."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, 42, (n,), generator=generator).tolist()

    prompts = [ids(3 + 2 * group) for group in range(groups)]
    completions = []
    for row in range(2 * groups):
        tokens = tuple(ids(2 + (3 * row) % 7))
        completions.append(Completion(tokens, (-1.0,) * len(tokens), "stop"))
    flags = [row % 2 == 0 for row in range(2 * groups)]
    batch = collate(prompts, completions, flags, flags, group_size=2, max_tokens=9, pad_id=0)
    mask = batch.completion_mask_BT
    advantages = torch.randn(mask.shape, generator=generator) * mask
    weights = (torch.rand(mask.shape, generator=generator) > 0.2) * mask
    weights[:, 0] = True
    return batch, Credit(advantages, weights.float())


def gradients(model, batch, credit, spec, micro_batch_tokens):
    model.zero_grad()
    sums = backward(model, batch, credit, spec, temperature=1.0, micro_batch_tokens=micro_batch_tokens)
    return sums, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", SPECS)
def test_micro_batches_change_nothing(model, name):
    batch, credit = make_rollout()
    batch = replace(batch, ref_logp_BT=torch.full_like(batch.sampler_logp_BT, -3.0))
    whole, expected = gradients(model, batch, credit, SPECS[name], 10**6)
    for tokens in (1, 30, 70):
        parts, got = gradients(model, batch, credit, SPECS[name], tokens)
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5, abs=1e-7)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def formula(spec, logp, entropy, old, reference, batch, credit):
    """The definition of the loss, with loops over rows and tokens: lists of tensors (tokens,) by row, logp and entropy
    with a gradient."""
    rows = []
    for row, (log_ratio, chosen) in enumerate(zip([a - b for a, b in zip(logp, old, strict=True)], logp, strict=True)):
        weights, terms = credit.weights_BT[row], []
        mean = sum(x for x, w in zip(log_ratio.detach(), weights, strict=False) if w) / max(int(weights.sum()), 1)
        for t, x in enumerate(log_ratio):
            ratio = (mean + x - x.detach()).exp() if spec.ratio == "sequence" else x.exp()
            a = credit.advantages_BT[row, t]
            if spec.objective == "cispo":
                loss = -min(ratio.item(), 1 + spec.clip_high) * a * chosen[t]
            else:
                loss = -min(ratio * a, ratio.clamp(1 - spec.clip_low, 1 + spec.clip_high) * a)
            d = reference[row][t] - chosen[t]
            loss = loss + spec.kl_coef * (d.exp() - d - 1) - spec.entropy_coef * entropy[row][t]
            terms.append((weights[t], loss))
        rows.append(terms)
    total = [sum(w * loss for w, loss in terms) for terms in rows]
    weight = [sum(w for w, _ in terms) for terms in rows]
    return {
        "sequence_mean": sum(t / w for t, w in zip(total, weight, strict=True)) / len(rows),
        "token_mean": sum(total) / sum(weight),
        "constant": sum(total) / (len(rows) * batch.max_tokens),
    }[spec.reduction]


@pytest.mark.parametrize("name", SPECS)
def test_the_loss_and_its_gradient_are_the_formula(model, name):
    batch, credit = make_rollout()
    generator = torch.Generator().manual_seed(1)
    mask = batch.completion_mask_BT
    flat, entropies = token_statistics(model, batch, temperature=1.0, entropy=True)
    logp = torch.zeros(mask.shape).masked_scatter(mask, flat.detach())
    old = logp + torch.randn(mask.shape, generator=generator) * 0.4
    reference = logp + torch.randn(mask.shape, generator=generator)
    batch = replace(batch, old_logp_BT=old * mask, ref_logp_BT=reference * mask)
    lengths = batch.lengths_B.tolist()
    ragged = [old[mask].split(lengths), reference[mask].split(lengths)]
    expected = formula(SPECS[name], flat.split(lengths), entropies.split(lengths), *ragged, batch, credit)
    gradient = torch.autograd.grad(expected, list(model.parameters()))
    sums, got = gradients(model, batch, credit, SPECS[name], 50)
    assert sums["loss"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    for a, b in zip(got, gradient, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_gspo_of_one_advantage_a_row_has_the_gradient_of_the_sequence_ratio(model):
    """The paper's s_i * A_i with s_i = (pi(y_i)/pi_old(y_i))^(1/|y_i|), of which each token's own term is a part."""
    batch, _ = make_rollout()
    mask, lengths = batch.completion_mask_BT, batch.lengths_B.tolist()
    flat, _ = token_statistics(model, batch, temperature=1.0, entropy=False)
    old = flat.detach() + torch.randn(flat.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    batch = replace(batch, old_logp_BT=torch.zeros(mask.shape).masked_scatter(mask, old))
    advantages_B = torch.linspace(-1, 1, len(lengths))
    pairs = zip(flat.split(lengths), old.split(lengths), strict=True)
    s_B = torch.stack([(now.sum() - then.sum()).div(len(now)).exp() for now, then in pairs])
    loss = -torch.minimum(s_B * advantages_B, s_B.clamp(0.95, 1.06) * advantages_B).mean()
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    credit = Credit(advantages_B[:, None] * mask, mask.float())
    sums, got = gradients(model, batch, credit, SPECS["GSPO"], 50)
    assert sums["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    assert 0 < sums["cut"] < sums["tokens"]
    for a, b in zip(got, gradient, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_token_scales_by_hand():
    weights = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    third, half = 1 / 3, 1 / 2
    expected = torch.tensor([[third, third, 0, 0], [third, 0, 0, 0]])
    torch.testing.assert_close(token_scales(weights, LossSpec(reduction="token_mean"), 4), expected)
    assert token_scales(weights, LossSpec(), 4)[0, 0] == half / 2
    assert token_scales(weights, LossSpec(), 4)[1, 0] == half
    assert token_scales(weights, LossSpec(reduction="constant"), 4)[0, 0] == pytest.approx(1 / 8)
    filtered = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert token_scales(filtered, LossSpec(), 2)[0, 0] == half, "a row without weight leaves the mean"
    for spec in (LossSpec(), LossSpec(reduction="token_mean")):
        assert not torch.isnan(token_scales(torch.zeros(2, 4), spec, 4)).any(), "all tokens filtered out"


def test_local_rows_are_means_of_their_own():
    """Three parts of two rows, each a token mean that counts a third, however many tokens it has."""
    lengths = torch.tensor([1, 9, 2, 8, 3, 7])
    weights = (torch.arange(9) < lengths[:, None]).float()
    spec = LossSpec(reduction="token_mean", local_rows=2)
    scales = token_scales(weights, spec, 9, torch.Generator().manual_seed(5))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5))
    for part in order.view(3, 2):
        torch.testing.assert_close(scales[part], weights[part] / lengths[part].sum() / 3)
    drawn_again = token_scales(weights, spec, 9, torch.Generator().manual_seed(6))
    assert not torch.equal(scales, drawn_again)
    with pytest.raises(ValueError, match="needs a generator"):
        token_scales(weights, spec, 9)


def test_clipping_by_hand():
    """Clip-higher at 1.28, clip-low at 0.8; a ratio that moves the good way further is cut, the other way is not."""
    spec = LossSpec(clip_high=0.28)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.25])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    losses, cut = surrogate(ratio.log(), torch.zeros(5), advantages, spec)
    assert losses.tolist() == pytest.approx([-1.28, 1.5, -0.5, 0.8, -1.25])
    assert cut.tolist() == [True, False, False, True, False]


def test_cispo_by_hand():
    """Capped at 1.5 above and not below; the gradient is that of A log pi, whatever the ratio."""
    spec = LossSpec(objective="cispo", clip_low=0.2, clip_high=0.5)
    logp = torch.tensor([-1.0, -2.0, -3.0, -1.0], requires_grad=True)
    old_logp = logp.detach() - torch.tensor([2.0, 2.0, 0.1, 1.25]).log()
    losses, cut = surrogate(logp, old_logp, torch.tensor([1.0, -1.0, -1.0, 2.0]), spec)
    assert losses.tolist() == pytest.approx([1.5, -3.0, -0.3, 2.5])
    assert cut.tolist() == [True, True, False, False]
    losses.sum().backward()
    assert logp.grad.tolist() == pytest.approx([-1.5, 1.5, 0.1, -2.5])


def test_the_sequence_ratio_by_hand():
    """Means over weighted tokens of each row; a row without any has the ratio 1."""
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    weights = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    mean = sequence_log_ratio(torch.tensor([1.0, 9.0, 2.0, -1.0, 3.0, 5.0]), weights, mask)
    assert mean.tolist() == [1.5, 1.5, 1.5, 1, 1, 0]


@pytest.mark.parametrize("name", ["CISPO", "GSPO"])
def test_one_update_makes_the_objective_and_the_ratio_idle(model, name):
    """The claim of `idle_choices`: at ratio 1 every objective has the plain one's gradient."""
    batch, credit = make_rollout()
    credit = Credit(credit.advantages_BT, batch.completion_mask_BT.float())
    spec = SPECS[name]
    assert spec.idle_choices(2) == []
    assert set(spec.idle_choices(1)) >= {"objective" if spec.objective == "cispo" else "ratio", "clip_high"}
    _, plain = gradients(model, batch, credit, LossSpec(reduction=spec.reduction), 50)
    _, got = gradients(model, batch, credit, spec, 50)
    for a, b in zip(got, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)
    assert LossSpec(kl_coef=0.1, reduction="token_mean").idle_choices(1) == []


def test_k3():
    logp, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.0])
    assert k3(reference, logp).tolist() == pytest.approx([0.0, torch.tensor(1.0).exp().item() - 2])
    generator = torch.Generator().manual_seed(0)
    assert (k3(torch.randn(100, generator=generator), torch.randn(100, generator=generator)) >= 0).all()


def test_first_update_has_ratio_one_and_a_gradient(model):
    """Without old log-probabilities the loss value cannot see the advantages' spread, but the gradient does."""
    batch, credit = make_rollout()
    _, grads = gradients(model, batch, credit, LossSpec(), 10**6)
    filled = compute_signals(
        model, batch, frozenset({Signal.OLD_LOGP}), temperature=1.0, micro_batch_tokens=50, postfix_ids=[]
    )
    _, same = gradients(model, filled, credit, LossSpec(), 10**6)
    for a, b in zip(grads, same, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert max(float(grad.abs().max()) for grad in grads) > 1e-3


def test_several_updates_move_the_ratio(model):
    """With one update nothing can be clipped; with four and a large step, clipping acts."""
    batch, credit = make_rollout(groups=8)
    fractions = {}
    for count in (1, 4):
        torch.manual_seed(0)
        filled = compute_signals(
            model, batch, frozenset({Signal.OLD_LOGP}), temperature=1.0, micro_batch_tokens=500, postfix_ids=[]
        )
        settings = settings_of(lr=0.02, updates_per_rollout=count)
        stats = update(model, make_optimizer(model, settings.lr), filled, credit, LossSpec(), settings)
        fractions[count] = stats["clip_fraction"]
    assert fractions[1] == 0
    assert fractions[4] > 0.05


def test_activations_are_computed_twice_where_that_is_asked_for(model):
    """Transformers does so in a model that trains alone."""
    batch, credit = make_rollout()
    passes = {}
    for asked in (False, True):
        network = copy.deepcopy(model).eval()
        if asked:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        calls: list[None] = []
        network.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        update(network, make_optimizer(network, 0.1), batch, credit, LossSpec(), settings_of(lr=0.1))
        passes[asked] = len(calls)
    assert passes == {False: 1, True: 2}


def test_kl_needs_its_reference(model):
    batch, credit = make_rollout()
    with pytest.raises(ValueError, match="no reference log-probabilities"):
        gradients(model, batch, credit, LossSpec(kl_coef=0.1), 100)


def test_gap_between_sampler_and_trainer(model):
    """The gap is measured before the first step, so it shows the engine's error and not the update's."""
    batch, credit = make_rollout()
    filled = compute_signals(
        model, batch, frozenset({Signal.OLD_LOGP}), temperature=1.0, micro_batch_tokens=500, postfix_ids=[]
    )
    shifted = replace(batch, sampler_logp_BT=(filled.old_logp_BT + 0.25) * batch.completion_mask_BT)
    for count in (1, 3):
        network = copy.deepcopy(model)
        settings = settings_of(lr=0.01, updates_per_rollout=count)
        old = replace(shifted, old_logp_BT=filled.old_logp_BT)
        stats = update(network, make_optimizer(network, settings.lr), old, credit, LossSpec(), settings)
        assert stats["logp_gap"] == pytest.approx(0.25, abs=1e-5)
        assert stats["kl"] is None


def test_a_single_step_has_ratio_one_whoever_asked_for_old_log_probabilities(model):
    """Rounding of another pass must not tell methods apart; several steps do need what the policy said before them."""
    batch, credit = make_rollout()
    mask = batch.completion_mask_BT
    asked = replace(batch, old_logp_BT=torch.full_like(batch.sampler_logp_BT, -2.0) * mask)
    results = []
    for settings in (settings_of(lr=1e-3), settings_of(lr=1e-3, updates_per_rollout=2)):
        for rollout in (batch, asked):
            network = copy.deepcopy(model)
            stats = update(network, make_optimizer(network, settings.lr), rollout, credit, LossSpec(), settings)
            results.append((stats["clip_fraction"], torch.cat([p.detach().flatten() for p in network.parameters()])))
    assert results[0][0] == results[1][0] == 0
    assert torch.equal(results[0][1], results[1][1])
    assert results[3][0] > 0


def test_small_steps_are_not_lost_in_bfloat16(model):
    """A hundred steps of 1e-6 with one sign: each is far below a weight's rounding, together they are not."""
    model.to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = make_optimizer(model, 1e-6)
    float32 = {name: value.detach().float().requires_grad_() for name, value in model.named_parameters()}
    reference = torch.optim.AdamW(float32.values(), lr=1e-6, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(100):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.ones_like(parameter)
            float32[name].grad = torch.ones_like(float32[name])
        optimizer.step()
        optimizer.zero_grad()
        reference.step()
    assert all(parameter.grad is None for parameter in model.parameters())
    moved = 0
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, float32[name].to(torch.bfloat16))
        moved += int((parameter != before[name]).sum())
    assert moved > 0.2 * sum(parameter.numel() for parameter in model.parameters())


def test_the_copies_of_a_stopped_optimiser_come_back(model):
    model.to(torch.bfloat16)

    def run(optimizer, steps):
        for _ in range(steps):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()

    settings = settings_of(lr=3e-6)
    start = copy.deepcopy(model.state_dict())
    run(make_optimizer(model, settings.lr), 60)
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(start)
    first = make_optimizer(model, settings.lr)
    run(first, 25)
    state, weights = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())
    model.load_state_dict(start)
    second = make_optimizer(model, settings.lr)
    model.load_state_dict(weights)
    second.load_state_dict(state)
    run(second, 35)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_float32_weights_are_stepped_as_adamw_steps_them(model):
    batch, credit = make_rollout()
    plain = copy.deepcopy(model)
    settings = settings_of(lr=1e-3)
    for network, optimizer in (
        (model, make_optimizer(model, settings.lr)),
        (plain, torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)),
    ):
        for _ in range(2):
            update(network, optimizer, batch, credit, LossSpec(), settings)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
