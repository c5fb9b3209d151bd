"""GFPO: Group Filtered Policy Optimization (Shrivastava et al. 2025, arXiv 2508.09726)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.errors import UserError
from iapo_bench.method import (
    RELEASED_Z_SCORE,
    Credit,
    LossSpec,
    Method,
    assign,
    masked_normalise,
    require_groups,
)


@dataclass
class GFPO(Method):
    """Sample G completions and learn from the k best by a metric.

        A[i,t] = (r_i - mu_S)/(sigma_S + eps) * 1{i in S},   S = the k best, sigma_S population

    The token mean counts ALL G completions' tokens: rows outside S stay in the normaliser with advantage 0.

    `k`: from 2 to G. `metric`: "length" prefers short completions, "token_efficiency" large r/|o| (with negative
    rewards the longer wrong answer, as the formula has it). `ties` go to the "earlier" row, or as in torch's "topk",
    whose order is not specified.
    `adaptive`: ks from easy to hard, at most one per quartile of difficulty (the last serves all harder quartiles); the
    paper uses 4, 6, 8 with G = 16. A group's quartile is where the mid-rank of its accuracy falls among all groups seen
    so far. Accuracy takes G + 1 values only, so an exact histogram replaces the paper's t-digest.
    `normaliser`: "all" rows, or only those "kept". `ddof`, `eps`: of sigma_S.
    """

    name = "gfpo"
    released: ClassVar[dict[str, Any]] = {
        "k": 6,
        "ties": "topk",
        "normaliser": "kept",
        "format_reward": 0.5,
        "loss": {"reduction": "sequence_mean", "entropy_coef": 0.0},
        **RELEASED_Z_SCORE,
    }
    loss: LossSpec = field(default_factory=lambda: LossSpec(kl_coef=0.001, entropy_coef=0.001, reduction="token_mean"))
    k: int = 4  # the paper keeps 4, 6 or 8 of 8 to 24, and finds 6 of 8 nearly ineffective
    metric: Literal["length", "token_efficiency"] = "length"
    adaptive: tuple[int, ...] | None = None
    normaliser: Literal["all", "kept"] = "all"
    ties: Literal["earlier", "topk"] = "earlier"
    ddof: Literal[0, 1] = 0
    eps: float = 1e-6
    counts: list[int] = field(default_factory=list, init=False)  # groups seen, by number of correct completions

    def observe(self, batch: RolloutBatch) -> None:
        """Add each group's accuracy to the histogram. Raises UserError when G differs from that of earlier batches."""
        self.counts = self.counts or [0] * (batch.group_size + 1)
        if len(self.counts) != batch.group_size + 1:
            raise UserError(f"group_size was {len(self.counts) - 1}, now {batch.group_size}: keep to one in a run")
        for correct in _correct_per_group(batch):
            self.counts[correct] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"counts": list(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = list(state["counts"])

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        """Raises UserError when k does not lie between 2 and G."""
        require_groups(batch.group_size)
        kept_NG = self._kept(batch)
        rewards_NG = batch.rewards_B.view(-1, batch.group_size)
        advantages_B = masked_normalise(rewards_NG, kept_NG, eps=self.eps, ddof=self.ddof).view(-1)
        return assign(advantages_B, batch, kept_NG.view(-1, 1) if self.normaliser == "kept" else None)

    def _kept(self, batch: RolloutBatch) -> torch.Tensor:
        """S as bool (N, G)."""
        score_B = -batch.lengths_B if self.metric == "length" else batch.rewards_B.double() / batch.lengths_B
        score_NG = score_B.view(-1, batch.group_size)
        ks = [self._k(correct, batch.group_size) for correct in _correct_per_group(batch)]
        if self.ties == "topk":
            best = [torch.topk(-score_G, k, largest=False).indices for score_G, k in zip(score_NG, ks, strict=True)]
            return torch.stack([torch.isin(torch.arange(batch.group_size, device=b.device), b) for b in best])
        best_first_NG = score_NG.argsort(dim=1, descending=True, stable=True)
        return best_first_NG.argsort(dim=1) < torch.tensor(ks, device=score_B.device)[:, None]

    def _k(self, correct: int, group_size: int) -> int:
        k = self.adaptive[min(self._quartile(correct), len(self.adaptive) - 1)] if self.adaptive else self.k
        if not 2 <= k <= group_size:
            raise UserError(f"gfpo cannot keep k = {k} of group_size = {group_size}: choose k from 2 to {group_size}")
        return k

    def _quartile(self, correct: int) -> int:
        """0 (easiest) to 3 (hardest); 3 before any group was seen."""
        if not self.counts:
            return 3
        easier, equal = sum(self.counts[correct + 1 :]), self.counts[correct]
        return min(3, (4 * easier + 2 * equal) // sum(self.counts))


def _correct_per_group(batch: RolloutBatch) -> list[int]:
    return batch.correct_B.view(-1, batch.group_size).sum(dim=1).tolist()
