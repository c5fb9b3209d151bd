"""The signals of a rollout, each rank computing its share."""

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from iapo_bench.batch import RolloutBatch
from iapo_bench.config.train import TrainConfig
from iapo_bench.machine import parallel
from iapo_bench.method import Method, Signal
from iapo_bench.models import sharding
from iapo_bench.signals.padded import part_widths
from iapo_bench.signals.statistics import compute_signals, signal_noise
from iapo_bench.train.task import Task


def with_signals(
    batch: RolloutBatch,
    method: Method,
    config: TrainConfig,
    task: Task,
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
) -> RolloutBatch:
    """The batch with the signals that the method and its loss need; each rank computes those of its share of the
    groups. `reference` is read for a KL term only."""
    needs = method.needs
    if config.updates_per_rollout > 1:
        needs = needs | {Signal.OLD_LOGP}
    device = batch.rewards_B.device
    rows = torch.arange(len(batch.rewards_B), device=device)[parallel.share(len(batch.rewards_B), batch.group_size)]
    widths_B2 = part_widths(batch, method.reading)
    names = [wanted.value for wanted in needs]
    reference = reference if method.loss.kl_coef else None
    if reference is not None:
        names.append("ref_logp_BT")
    own = []
    # Every rank takes part in the all-gather, even without rows of its own.
    with sharding.whole(model) as whole, sharding.whole(reference) as base:
        if len(rows):
            part = compute_signals(
                whole,
                batch.rows(rows),
                needs,
                temperature=config.temperature,
                micro_batch_tokens=config.micro_batch_tokens,
                postfix_ids=task.postfix_ids,
                reading=task.reading,
                entropies=method.reading,
                widths_B2=widths_B2[rows],
                reference=base,
            )
            own.append({name: getattr(part, name).cpu() for name in names})
    parts = parallel.gather(own)
    filled: dict[str, Any] = {name: torch.cat([part[name] for part in parts]).to(device) for name in names}
    return replace(batch, signal_noise=signal_noise(model), **filled)
