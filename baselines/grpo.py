"""GRPO, the reference: Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import RELEASED_Z_SCORE, Credit, LossSpec, Method, assign, group_normalise


@dataclass
class GRPO(Method):
    """A[i,t] = (r_i - mean(r_group)) / (std(r_group) + eps), population std; a group of equal rewards gets 0.

    Loss: mean over a row's tokens, then over rows, with a KL penalty. `ddof`, `eps`: of the z-score.
    """

    name = "grpo"
    released: ClassVar[dict[str, Any]] = {
        "format_reward": 0.5,
        "loss": {"reduction": "token_mean", "local_rows": 4},
        **RELEASED_Z_SCORE,
    }
    # The coefficient that the IAPO paper uses for all methods.
    loss: LossSpec = field(default_factory=lambda: LossSpec(kl_coef=0.001))
    ddof: Literal[0, 1] = 0
    eps: float = 1e-6

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        return assign(group_normalise(batch.rewards_B, batch.group_size, eps=self.eps, ddof=self.ddof), batch)
