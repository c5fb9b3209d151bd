"""Kimi k1.5's length reward (Kimi Team 2025, arXiv 2501.12599)."""

from dataclasses import dataclass

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Method, per_group


@dataclass
class Kimi(Method):
    """Short completions of a group gain and long ones lose; a wrong one can only lose.

        lam_i = 1/2 - (L_i - min L)/(max L - min L)          0 where max L = min L
        r_i = 1 + w * lam_i if o_i is correct, else wrong + w * min(0, lam_i)

    L: the lengths of the group in tokens. Credit: z-score of r in the group. Loss: sequence mean, clip .2, no KL.

    `w`, `wrong`: from the code that the LASER authors (arXiv 2505.15612) compare with. Open: the report's own weight is
    not known. The report warms the penalty up; this method does not.
    """

    name = "kimi"
    w: float = 0.4
    wrong: float = -0.5

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        correct_NG, length_NG = per_group(batch.correct_B, batch), per_group(batch.lengths_B, batch)
        low_N1, high_N1 = torch.aminmax(length_NG, dim=1, keepdim=True)
        lam_NG = torch.where(high_N1 > low_N1, 0.5 - (length_NG - low_N1) / (high_N1 - low_N1), 0.0)
        right_NG, wrong_NG = 1 + self.w * lam_NG, self.wrong + self.w * lam_NG.clamp(max=0)
        return self.with_format(torch.where(correct_NG > 0, right_NG, wrong_NG).view(-1), batch)
