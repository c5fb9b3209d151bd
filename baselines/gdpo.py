"""GDPO: Group reward-Decoupled normalisation Policy Optimization (Liu et al. 2026, arXiv 2601.05242)."""

from dataclasses import dataclass

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, Method, assign, group_normalise, masked_normalise, token_limit


@dataclass
class GDPO(Method):
    """Each reward is normalised on its own, so that a rare one is not drowned by a common one.

        a_i = w_correct * norm(c_i, c_group) + w_length * norm(l_i, l_group)
        A_i = (a_i - mean)/(std + 1e-4)                     over the rows of the batch

    c: 1 if correct, else 0; l: 1 if L <= L_T, else 0; L: length in tokens. norm: z-score with 1e-4 added to the
    population std, 0 without spread. Loss: sequence mean, clip .2, no KL. The rewards are combined here and not in
    `shape_rewards`, so a format reward has no effect.

    `target`: L_T in tokens or, below 1, as a share of the token limit. Open: published values of L_T are specific to
    their models and datasets; this share is our default, to be tuned.
    """

    name = "gdpo"
    w_correct: float = 1.0
    w_length: float = 1.0
    target: float = 0.25

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        within_B = batch.lengths_B <= token_limit(self.target, batch, "target of gdpo")
        correct_B = group_normalise(batch.correct_B, batch.group_size, eps=1e-4)
        length_B = group_normalise(within_B, batch.group_size, eps=1e-4)
        summed_1B = (self.w_correct * correct_B + self.w_length * length_B)[None]
        return assign(masked_normalise(summed_1B, torch.ones_like(summed_1B, dtype=torch.bool), eps=1e-4)[0], batch)
