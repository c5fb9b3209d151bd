"""GRPO-LEAD: length and difficulty aware GRPO (Zhang & Zuo 2025, arXiv 2504.09696)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, Method, assign, group_normalise, masked_normalise, per_group


@dataclass
class GRPOLEAD(Method):
    """Concise correct completions earn more, and hard prompts weigh more.

        r_i = exp(-a * z_i) if o_i is correct, else -1
        z_i = (L_i - mean L)/(std L + eps)                 over the group's correct completions, ddof 1; 0 for one
        A_i = norm(r_i, r_group) * w(p), w(1 - p) where norm is negative
        w(x) = .4 + 1.1/(1 + exp(10(x - .75)))             p: the group's accuracy

    L: length in tokens. Loss: sequence mean, clip .2, no KL.

    `a`: .05. `free_tokens`: no length term (z = 0) in a group whose three shortest correct completions average at most
    this many tokens; 0 in the paper, 4,000 in the released code. Open: what the code averages if fewer than three are
    correct; here all the correct ones.
    """

    name = "grpo_lead"
    released: ClassVar[dict[str, Any]] = {"free_tokens": 4000.0}
    a: float = 0.05
    free_tokens: float = 0.0

    def shape_rewards(self, batch: RolloutBatch) -> torch.Tensor:
        correct_NG, length_NG = per_group(batch.correct_B, batch) > 0, per_group(batch.lengths_B, batch)
        z_NG = masked_normalise(length_NG, correct_NG, ddof=1)
        shortest_N3 = torch.where(correct_NG, length_NG, torch.nan).sort(dim=1).values[:, :3]
        z_NG = torch.where(shortest_N3.nanmean(dim=1, keepdim=True) <= self.free_tokens, 0.0, z_NG)
        return self.with_format(torch.where(correct_NG, (-self.a * z_NG).exp(), -1.0).view(-1), batch)

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        advantages_NG = per_group(group_normalise(batch.rewards_B, batch.group_size), batch)
        p_N1 = per_group(batch.correct_B, batch).mean(dim=1, keepdim=True)
        easy_NG = torch.where(advantages_NG < 0, 1 - p_N1, p_N1)
        return assign((advantages_NG * (0.4 + 1.1 * torch.sigmoid(-10 * (easy_NG - 0.75)))).view(-1), batch)
