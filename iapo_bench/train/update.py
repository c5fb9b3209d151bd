"""The policy-gradient loss and the optimiser step, the same for every method."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from iapo_bench.batch import RolloutBatch
from iapo_bench.config.train import TrainConfig
from iapo_bench.credit import Credit
from iapo_bench.errors import UserError
from iapo_bench.machine import parallel
from iapo_bench.method import LossSpec
from iapo_bench.models import sharding
from iapo_bench.signals.statistics import micro_batches, token_statistics

SUMS = ("loss", "tokens", "cut", "gap", "kl")
MAX_LOG_RATIO = 20.0  # a larger log ratio could overflow exp, and infinity times an advantage of 0 is NaN


def token_scales(
    weights_BT: torch.Tensor,
    spec: LossSpec,
    max_tokens: int,
    generator: torch.Generator | None = None,
    *,
    counted_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """The factor of each token's loss, float32 (B, T), computed over the whole update batch.

    The loss is then a plain sum, independent of micro-batches. `counted_B`: see `Credit.counted_B`. Raises ValueError
    for `spec.local_rows` without a generator.
    """
    if spec.local_rows:
        if generator is None:
            raise ValueError("local_rows needs a generator for its random split")
        scales_BT = torch.zeros_like(weights_BT)
        parts = torch.randperm(len(weights_BT), generator=generator).split(spec.local_rows)
        for rows in parts:
            scales_BT[rows] = weights_BT[rows] / weights_BT[rows].sum().clamp(min=1e-12) / len(parts)
        return scales_BT
    if spec.reduction == "token_mean":
        return weights_BT / weights_BT.sum().clamp(min=1e-12)
    if spec.reduction == "sequence_mean":
        row_B1 = weights_BT.sum(dim=1, keepdim=True)
        counted_B1 = row_B1 > 0 if counted_B is None else counted_B
        return weights_BT / row_B1.clamp(min=1e-12) / counted_B1.sum().clamp(min=1)
    return weights_BT / (weights_BT.shape[0] * max_tokens)


def probability_ratio(logp: torch.Tensor, old_logp: torch.Tensor) -> torch.Tensor:
    """exp(logp - old_logp), the logarithm clamped to +-`MAX_LOG_RATIO`: always finite."""
    return (logp - old_logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def k3(ref_logp: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """Schulman's k3 estimate of KL(policy || reference) at a token sampled from the policy: never negative."""
    difference = (ref_logp - logp).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference.exp() - difference - 1


def sequence_log_ratio(log_ratio: torch.Tensor, weights_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """For each token the mean of `log_ratio` over its row's tokens of positive weight, (tokens,), detached.

    `log_ratio`: (tokens,), the real tokens of `mask_BT` in order.
    """
    log_ratio_BT = log_ratio.new_zeros(mask_BT.shape).masked_scatter(mask_BT, log_ratio.detach())
    counted_BT = weights_BT > 0
    mean_B1 = (log_ratio_BT * counted_BT).sum(dim=1, keepdim=True) / counted_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return mean_B1.expand(mask_BT.shape)[mask_BT]


def surrogate(
    logp: torch.Tensor, old_logp: torch.Tensor, advantages: torch.Tensor, spec: LossSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's loss by `spec`, and whether a bound cut its gradient (or, with "cispo", capped its weight);
    (tokens,) both."""
    ratio = probability_ratio(logp, old_logp)
    if spec.objective == "cispo":
        cap = 1 + spec.clip_high
        return -ratio.detach().clamp(max=cap) * advantages * logp, ratio > cap
    clipped = ratio.clamp(1 - spec.clip_low, 1 + spec.clip_high)
    cut = ((ratio < 1 - spec.clip_low) & (advantages < 0)) | ((ratio > 1 + spec.clip_high) & (advantages > 0))
    return -torch.minimum(ratio * advantages, clipped * advantages), cut


def importance_weights(old_logp: torch.Tensor, sampler_logp: torch.Tensor, cap: float) -> torch.Tensor:
    """min(pi_old / pi_sampler, cap) per token, which corrects for the gap between sampler and trainer.

    Truncated importance sampling: without the cap, one token that the sampler found unlikely could outweigh all others.
    """
    return probability_ratio(old_logp, sampler_logp).clamp(max=cap)


def backward(
    model: PreTrainedModel,
    batch: RolloutBatch,
    credit: Credit,
    spec: LossSpec,
    *,
    temperature: float,
    micro_batch_tokens: int,
    importance_cap: float | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """Accumulate this rank's part of the gradient of the loss over `batch`, one update batch; return sums over its
    tokens, named as in `SUMS`. Summed over the ranks, both are those of the whole batch.

    `generator`: for the parts of `spec.local_rows`, in the same state on every rank.
    Without `old_logp_BT` the current policy is the sampling policy: the ratio is 1, with a gradient.
    Raises ValueError for a KL term without reference log-probabilities.
    """
    if spec.kl_coef and batch.ref_logp_BT is None:
        raise ValueError("kl_coef is not 0 but the batch has no reference log-probabilities")
    scales_BT = token_scales(credit.weights_BT, spec, batch.max_tokens, generator, counted_B=credit.counted_B)
    # Accumulate on the device; .item() would synchronise on every micro-batch.
    sums = {name: torch.zeros((), dtype=torch.float64, device=scales_BT.device) for name in SUMS}
    all_B = torch.arange(len(batch.rewards_B), device=batch.rewards_B.device)
    own_R = all_B[parallel.share(len(all_B), batch.group_size)]
    parts = list(micro_batches(batch.rows(own_R), micro_batch_tokens)) if len(own_R) else []
    # FSDP all-gathers need every rank, so a rank with fewer micro-batches runs zero-weight passes.
    passes = parallel.largest(len(parts)) if sharding.is_sharded(model) else len(parts)
    for index in parts:
        rows = own_R[index]
        part = batch.rows(rows)
        mask_BT = part.completion_mask_BT
        logp, entropy = sharding.run(
            token_statistics, model, part, temperature=temperature, entropy=spec.entropy_coef != 0
        )
        scales = scales_BT[rows][mask_BT]
        old_logp = logp.detach() if part.old_logp_BT is None else part.old_logp_BT[mask_BT]
        if importance_cap is not None:
            scales = scales * importance_weights(old_logp, part.sampler_logp_BT[mask_BT], importance_cap)
        if spec.ratio == "sequence":
            # Makes logp - old_logp the row's mean, with the gradient of the token's own logp.
            old_logp = logp.detach() - sequence_log_ratio(logp - old_logp, credit.weights_BT[rows], mask_BT)
        losses, cut = surrogate(logp, old_logp, credit.advantages_BT[rows][mask_BT], spec)
        if spec.kl_coef:
            assert part.ref_logp_BT is not None
            kl = k3(part.ref_logp_BT[mask_BT], logp)
            losses = losses + spec.kl_coef * kl
            sums["kl"] += kl.detach().sum()
        if entropy is not None:
            losses = losses - spec.entropy_coef * entropy
        loss = (scales * losses).sum()
        loss.backward()
        sums["loss"] += loss.detach()
        sums["tokens"] += len(logp)
        sums["cut"] += (cut & (scales > 0)).sum()
        sums["gap"] += (logp.detach() - part.sampler_logp_BT[mask_BT]).abs().sum()
    for _ in range(passes - len(parts)):
        idle = batch.rows(all_B[:1])
        logp, _ = sharding.run(token_statistics, model, idle, temperature=temperature, entropy=False)
        (0 * logp.sum()).backward()
    return dict(zip(SUMS, torch.stack(list(sums.values())).tolist(), strict=True))


def update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: RolloutBatch,
    credit: Credit,
    spec: LossSpec,
    config: TrainConfig,
    *,
    generator: torch.Generator | None = None,
) -> dict[str, float | None]:
    """Take all optimiser steps of one rollout. Returns loss, KL, clip fraction, gradient norm, sampler/trainer gap, the
    number of steps, and how many of them moved the weights (had credit and a gradient, and changed a weight).

    The gap is the mean absolute difference of log-probabilities (nats) before the first step, when both should agree.

    With a single step the current policy is the sampling policy: the ratio is 1 for every method, even one that asked
    for old log-probabilities, which carry the rounding of another pass.

    Raises UserError before a step whose loss or gradient norm is not finite, and after one that left a weight not
    finite.
    """
    model.train()
    if config.updates_per_rollout == 1:
        batch = replace(batch, old_logp_BT=None)
    norms, sums, moved = [], [], 0
    for rows in _update_batches(batch, config.updates_per_rollout):
        optimizer.zero_grad()
        part = backward(
            model,
            batch.rows(rows),
            credit.rows(rows),
            spec,
            temperature=config.temperature,
            micro_batch_tokens=config.micro_batch_tokens,
            importance_cap=config.importance_cap,
            generator=generator,
        )
        sums.append(parallel.sum_numbers(part))
        if not sharding.is_sharded(model):
            parallel.sum_gradients(model)
        norms.append(sharding.clip_gradients(model, config.clip_norm))
        _require_finite_step(len(norms), sums[-1]["loss"], norms[-1])
        before = sharding.fingerprint(model)
        optimizer.step()
        credited = bool((credit.advantages_BT[rows] * credit.weights_BT[rows]).any())
        moved += credited and norms[-1] > 0 and sharding.fingerprint(model) != before
    optimizer.zero_grad()
    sharding.require_finite_weights(model)
    tokens = sum(part["tokens"] for part in sums)
    return {
        "loss": sum(part["loss"] for part in sums) / len(sums),
        "kl": sum(part["kl"] for part in sums) / tokens if spec.kl_coef else None,
        "clip_fraction": sum(part["cut"] for part in sums) / tokens,
        "grad_norm": sum(norms) / len(norms),
        "logp_gap": sums[0]["gap"] / sums[0]["tokens"],
        "updates": len(norms),
        "updates_moved": moved,
    }


def _require_finite_step(number: int, loss: float, norm: float) -> None:
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise UserError(
                f"the {name} of update {number} is {value}, so the optimiser takes no step: look for what overflows in "
                "the method's credit, or lower lr"
            )


def _update_batches(batch: RolloutBatch, count: int) -> Iterator[torch.Tensor]:
    """Split the groups into `count` near-equal update batches; yield row indices."""
    rows = torch.arange(len(batch.rewards_B), device=batch.rewards_B.device).view(-1, batch.group_size)
    for part in rows.tensor_split(min(count, len(rows))):
        yield part.reshape(-1)
