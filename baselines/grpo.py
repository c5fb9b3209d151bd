"""GRPO, the reference: Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300)."""

from dataclasses import dataclass, field

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, LossSpec, Method, assign, group_normalise


@dataclass
class GRPO(Method):
    """A[i,t] = (r_i - mean(r_group)) / (std(r_group) + eps), population std; a group of equal rewards gets 0.

    Loss: mean over a row's tokens, then over rows, with a KL penalty.
    """

    name = "grpo"
    # The coefficient that the IAPO paper uses for all methods.
    loss: LossSpec = field(default_factory=lambda: LossSpec(kl_coef=0.001))

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        return assign(group_normalise(batch.rewards_B, batch.group_size), batch)
