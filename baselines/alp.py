"""ALP: Adaptive Length Penalty (Xiang et al. 2025, arXiv 2506.05256)."""

from dataclasses import dataclass

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Method, per_group


@dataclass
class ALP(Method):
    """The easier the prompt, the more length costs.

        r_i = c_i - b * L_i/N * max(p, 1/G)

    c: 1 if correct, else 0; L: length in tokens; N: the group's longest; p: the group's accuracy. Credit: z-score of r
    in the group. Loss: sequence mean, clip .2, no KL.

    `b`: published as 1e-7 (known second-hand). Open: its scale, and over which completions N is the maximum. With
    lengths as shares of N, 1e-7 does not exceed the rounding of float32 rewards near 1, and the method is GRPO: tune b,
    from 0.05 to 1.
    """

    name = "alp"
    b: float = 1e-7

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        correct_NG, length_NG = per_group(batch.correct_B, batch), per_group(batch.lengths_B, batch)
        solved_N1 = correct_NG.mean(dim=1, keepdim=True).clamp(min=1 / batch.group_size)
        share_NG = length_NG / length_NG.amax(dim=1, keepdim=True)
        return self.with_format((correct_NG - self.b * share_NG * solved_N1).view(-1), batch)
