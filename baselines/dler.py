"""DLER: Doing Length pEnalty Right (Liu et al. 2025, arXiv 2510.15110)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, LossSpec, Method, assign, masked_normalise, per_group


@dataclass
class DLER(Method):
    """Truncation is the only length penalty: a completion that was cut off earns nothing.

        r_i = c_i * (truncated_factor if o_i was cut off, else 1)
        a_i = r_i - mean(r_group)
        A[i,t] = (a_i - mean)/(std + eps)                    over all tokens of the batch, ddof 1

    c: 1 if correct, else 0. Dynamic sampling drops groups of accuracy 0 or 1, in the paper and in the code. Loss:
    sequence mean, clip .2/.28, KL 5e-4. A lower token limit makes this method shorten more.

    `truncated_factor`: 0 in the paper; the released code multiplies by .1. Open: whether dynamic sampling judges
    accuracy before or after the penalty; here before.
    """

    name = "dler"
    released: ClassVar[dict[str, Any]] = {"truncated_factor": 0.1}
    loss: LossSpec = field(default_factory=lambda: LossSpec(clip_high=0.28, kl_coef=5e-4))
    truncated_factor: float = 0.0

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        kept_B = torch.where(batch.truncated_B, self.truncated_factor, 1.0)
        return self.with_format(batch.correct_B * kept_B, batch)

    def accept_group(self, correct_G: torch.Tensor) -> bool:
        return bool(correct_G.any() and not correct_G.all())

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        rewards_NG, mask_BT = per_group(batch.rewards_B, batch), batch.completion_mask_BT
        centred_NG = rewards_NG - rewards_NG.mean(dim=1, keepdim=True)
        tokens_BT = centred_NG.view(-1, 1).expand(mask_BT.shape)
        white = masked_normalise(tokens_BT.reshape(1, -1), mask_BT.view(1, -1), ddof=1, eps=1e-8)
        return assign(white.view(mask_BT.shape), batch)
