"""DAPO: Decoupled Clip and Dynamic Sampling Policy Optimization (Yu et al. 2025, arXiv 2503.14476)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import RELEASED_Z_SCORE, Credit, LossSpec, Method, assign, group_normalise, token_limit


@dataclass
class DAPO(Method):
    """A[i,t] = norm(r_i, r_group) in a token-mean loss with clip-higher and no KL penalty.

    Dynamic sampling drops groups of accuracy 0 or 1. The soft overlong punishment is added to the reward of a
    completion of |y| tokens under the limit Lmax = `batch.max_tokens`:

        0                               |y| <= Lmax - Lcache
        ((Lmax - Lcache) - |y|)/Lcache  up to Lmax
        -1                              beyond

    `overlong_cache`: Lcache in tokens or, below 1, as a share of Lmax; 0 or None turns the punishment off.
    `filter_truncated`: overlong filtering, truncated rows leave the loss and its normaliser. `ddof`, `eps`: of the
    reward's z-score. Clip-higher binds only with several updates per rollout (16 in the paper).
    """

    name = "dapo"
    released: ClassVar[dict[str, Any]] = {
        "dynamic_sampling": False,
        "overlong_cache": 0,
        "format_reward": 0.5,
        "loss": {"kl_coef": 0.001, "local_rows": 4},
        **RELEASED_Z_SCORE,
    }
    loss: LossSpec = field(default_factory=lambda: LossSpec(clip_low=0.2, clip_high=0.28, reduction="token_mean"))
    dynamic_sampling: bool = True
    overlong_cache: float | None = 0.2  # the paper's 4,096 of 20,480 tokens
    filter_truncated: bool = False
    ddof: Literal[0, 1] = 0
    eps: float = 1e-6

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        """Raises UserError when Lcache is negative or exceeds Lmax."""
        rewards_B = super().shape_rewards(batch)
        if not self.overlong_cache:
            return rewards_B
        cache = token_limit(self.overlong_cache, batch, "overlong_cache of dapo")
        return rewards_B + ((batch.max_tokens - cache - batch.lengths_B) / cache).clamp(-1.0, 0.0)

    def accept_group(self, correct_G: torch.Tensor) -> bool:
        return not self.dynamic_sampling or bool(correct_G.any() and not correct_G.all())

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        weights = ~batch.truncated_B[:, None] if self.filter_truncated else None
        advantages_B = group_normalise(batch.rewards_B, batch.group_size, eps=self.eps, ddof=self.ddof)
        return assign(advantages_B, batch, weights)
