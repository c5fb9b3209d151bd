"""Truncated importance sampling: the sampler's draws weighed as the trainer's own, by hand."""

from dataclasses import replace

import pytest
import torch
from builders import ragged_batch

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.method import Credit, LossSpec
from iapo_bench.signals.statistics import token_statistics
from iapo_bench.train.update import backward, importance_weights

CAP = 2.0
SPECS = (LossSpec(), LossSpec(reduction="token_mean"), LossSpec(reduction="constant"))


@pytest.fixture
def rollout(model):
    """A batch, its credit, and its log-probabilities under the model, spread out over the mask."""
    batch = ragged_batch()
    mask = batch.completion_mask_BT
    generator = torch.Generator().manual_seed(0)
    credit = Credit(torch.randn(mask.shape, generator=generator) * mask, mask.float())
    with torch.no_grad():
        flat, _ = token_statistics(model, batch, temperature=1.0, entropy=False)
    return batch, credit, torch.zeros(mask.shape).masked_scatter(mask, flat)


def gradient(model, batch, credit, spec=SPECS[0], cap=CAP, micro_batch_tokens=10**6):
    model.zero_grad()
    backward(model, batch, credit, spec, temperature=1.0, micro_batch_tokens=micro_batch_tokens, importance_cap=cap)
    return [parameter.grad.clone() for parameter in model.parameters()]


def same(first, second, atol=1e-6):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def test_by_hand():
    old, sampler = torch.tensor([0.5, 0.2, 0.9]).log(), torch.tensor([0.25, 0.4, 0.1]).log()
    torch.testing.assert_close(importance_weights(old, sampler, 3.0), torch.tensor([2.0, 0.5, 3.0]))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.reduction)
def test_the_gradient_of_each_token_is_scaled(model, rollout, spec):
    """Advantages multiplied by the weights give the same gradient: the ratio is 1, so nothing is clipped."""
    batch, credit, logp_BT = rollout
    drift = torch.linspace(-2, 2, logp_BT.numel()).view(logp_BT.shape)
    batch = replace(batch, sampler_logp_BT=(logp_BT - drift) * batch.completion_mask_BT)
    weights_BT = torch.tensor([[min(float(d.exp()), CAP) for d in row] for row in drift])
    assert (weights_BT == CAP).any()
    assert (weights_BT < 1).any()
    by_hand = Credit(credit.advantages_BT * weights_BT, credit.weights_BT)
    same(gradient(model, batch, credit, spec), gradient(model, batch, by_hand, spec, cap=None))


def test_an_engine_that_agrees_changes_nothing(model, rollout):
    batch, credit, logp_BT = rollout
    batch = replace(batch, sampler_logp_BT=logp_BT)
    same(gradient(model, batch, credit), gradient(model, batch, credit, cap=None))


def test_the_weight_is_that_of_the_old_policy(model, rollout):
    """In later updates of a rollout the trainer's old log-probabilities count, not the moved model's."""
    batch, credit, logp_BT = rollout
    mask = batch.completion_mask_BT
    batch = replace(batch, old_logp_BT=(logp_BT - 0.05) * mask, sampler_logp_BT=(logp_BT - 0.05 - 0.3) * mask)
    factor = float(torch.tensor(0.3).exp())
    plain = gradient(model, batch, credit, cap=None)
    same(gradient(model, batch, credit), [g * factor for g in plain])


def test_micro_batches_change_nothing(model, rollout):
    batch, credit, _ = rollout
    whole = gradient(model, batch, credit)
    for tokens in (1, 40):
        same(gradient(model, batch, credit, micro_batch_tokens=tokens), whole)


def test_the_setting_reaches_the_update():
    assert read_tier("micro").train_job("iapo", 0).train.importance_cap is None
    tier = read_tier("micro", {"train": {"importance_cap": 2.0, "engine": "vllm"}})
    train = tier.train_job("iapo", 0).train
    assert (train.importance_cap, train.engine) == (2.0, "vllm")
    for changes, message in (
        ({"train": {"importance_cap": 0}}, r"train\.importance_cap"),
        ({"train": {"engine": "sglang"}}, r"train\.engine"),
        ({"evaluate": {"engine": "vlm"}}, r"evaluate\.engine"),
        ({"evaluate": {"engine_memory": 1.5}}, r"evaluate\.engine_memory"),
    ):
        with pytest.raises(UserError, match=message):
            read_tier("micro", changes)
