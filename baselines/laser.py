"""LASER: Length-bAsed StEp Reward (Liu et al. 2025, arXiv 2505.15612)."""

from dataclasses import dataclass, field

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import LossSpec, Method, token_limit


@dataclass
class LASER(Method):
    """A correct completion within a target length earns a bonus.

        r_i = 1 + bonus * 1{L_i <= L_T} if o_i is correct, else wrong

    L: length in tokens. Credit: z-score of r in the group. Loss: sequence mean, clip .2/.28, KL and entropy bonus .001.

    `target`: L_T in tokens or, below 1, as a share of the token limit; the paper uses 2,048, 4,096 (here) and 8,192 of
    16,384. `wrong`: from the authors' code. The variants that adapt L_T (LASER-D, LASER-DE) are not implemented.
    """

    name = "laser"
    loss: LossSpec = field(default_factory=lambda: LossSpec(clip_high=0.28, kl_coef=0.001, entropy_coef=0.001))
    target: float = 0.25
    bonus: float = 0.5
    wrong: float = -0.5

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        within_B = batch.lengths_B <= token_limit(self.target, batch, "target of laser")
        return self.with_format(torch.where(batch.correct_B, 1 + self.bonus * within_B, self.wrong), batch)
