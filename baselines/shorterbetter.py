"""ShorterBetter (Yi et al. 2025, arXiv 2504.21370)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Method, per_group


@dataclass
class ShorterBetter(Method):
    """The shortest correct completion of a group sets the target length for all of them.

        r_i = a * c_i - b * |L_i - SOL|
        SOL = the shortest correct length of the group; its mean length if none is correct

    c: 1 if correct, else 0; L: length in tokens. Credit: z-score of r in the group. Loss: sequence mean, clip .2, and
    no KL.

    `a`: 2 in the paper (known second-hand), 1 in the released code, which also has a KL penalty of 0.001. `b`: the
    penalty per token, 0.001.
    """

    name = "shorterbetter"
    released: ClassVar[dict[str, Any]] = {"a": 1.0, "loss": {"kl_coef": 0.001}}
    a: float = 2.0
    b: float = 0.001

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        correct_NG, length_NG = per_group(batch.correct_B, batch), per_group(batch.lengths_B, batch)
        shortest_N1 = torch.where(correct_NG > 0, length_NG, torch.inf).amin(dim=1, keepdim=True)
        optimum_N1 = torch.where(shortest_N1.isinf(), length_NG.mean(dim=1, keepdim=True), shortest_N1)
        return self.with_format((self.a * correct_NG - self.b * (length_NG - optimum_N1).abs()).view(-1), batch)
