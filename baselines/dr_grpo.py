"""Dr. GRPO: GRPO done right (Liu et al. 2025, arXiv 2503.20783)."""

from dataclasses import dataclass, field

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, LossSpec, Method, assign, per_group


@dataclass
class DrGRPO(Method):
    """A[i,t] = r_i - mean(r_group).

    No division by the standard deviation and a constant normaliser (rows times the token limit), so that neither a
    group's difficulty nor a completion's length weights its gradient. No KL penalty.
    """

    name = "dr_grpo"
    loss: LossSpec = field(default_factory=lambda: LossSpec(reduction="constant"))

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        rewards_NG = per_group(batch.rewards_B, batch)
        return assign((rewards_NG - rewards_NG.mean(dim=1, keepdim=True)).view(-1), batch)
