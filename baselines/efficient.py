"""Training Language Models to Reason Efficiently (Arora & Zanette 2025, arXiv 2502.04463)."""

from dataclasses import dataclass

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, Method, assign, masked_normalise, per_group


@dataclass
class Efficient(Method):
    """A correct completion earns less, the longer it is relative to its prompt's correct completions.

        r_i = c_i * (1 - a * sigmoid((L_i - mean L)/(std L + 1e-7)))     over the group's correct completions
        A_i = r_i - mean_{j != i} r_j                                    leave-one-out baseline, no division by the std

    c: 1 if correct and not cut off by the token limit, else 0. L: length in tokens; std: population. Loss: sequence
    mean, clip .2, no KL.

    `a`: 0.1, from 0 (accuracy only) up to 1. Open: whether correct but cut-off lengths enter mean L; here they do not.
    """

    name = "efficient"
    a: float = 0.1

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        scores_NG = per_group(batch.correct_B & ~batch.truncated_B, batch)
        z_NG = masked_normalise(per_group(batch.lengths_B, batch), scores_NG > 0, eps=1e-7)
        return self.with_format((scores_NG * (1 - self.a * z_NG.sigmoid())).view(-1), batch)

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        rewards_NG = per_group(batch.rewards_B, batch)
        others_NG = (rewards_NG.sum(dim=1, keepdim=True) - rewards_NG) / (batch.group_size - 1)
        return assign((rewards_NG - others_NG).view(-1), batch)
