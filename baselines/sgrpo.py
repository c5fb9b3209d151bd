"""S-GRPO: Stochastic GRPO (Lee & Tong 2025, arXiv 2504.20834; not Dai et al., arXiv 2505.07686)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import RELEASED_Z_SCORE, Credit, LossSpec, Method, assign, group_normalise
from iapo_bench.seeds import row_uniforms


@dataclass
class SGRPO(Method):
    """GRPO on a random subset T_i of each completion's tokens.

        J = 1/G sum_i 1/|T_i| sum_{t in T_i} rho A_i - b*KL,   A_i = norm(r_i, r_group)
        t in T_i: t < a, or Bernoulli(p) while |T_i| < k

    `budget`: the condition is |T_i| < k ("selected") or, as in the IAPO authors' code, |o_i| < k ("length": a
    completion of k tokens or more gets no random tokens, a shorter one no cap).
    `coins`: each "row" has its own coins or, as in the authors' code, they are "shared": in every micro-batch, on every
    process, the n-th row that needs coins gets the same ones. `local_rows`: rows per micro-batch.
    `ddof`, `eps`: of the reward's z-score.
    """

    name = "sgrpo"
    released: ClassVar[dict[str, Any]] = {
        "budget": "length",
        "coins": "shared",
        "format_reward": 0.5,
        **RELEASED_Z_SCORE,
    }
    # a, k and p are from the released code, the KL coefficient from the IAPO paper; this paper's are not known.
    loss: LossSpec = field(default_factory=lambda: LossSpec(kl_coef=0.001))
    a: int = 150
    k: int = 341
    p: float = 0.5
    budget: Literal["selected", "length"] = "selected"
    coins: Literal["row", "shared"] = "row"
    local_rows: int = 4
    ddof: Literal[0, 1] = 0
    eps: float = 1e-6

    def select(self, batch: RolloutBatch, row_seeds: list[int]) -> torch.Tensor:
        """T_i as bool (B, T). A row's coins depend on its seed only, not on padding or other rows."""
        mask_BT = batch.completion_mask_BT
        coins_BT = torch.from_numpy(row_uniforms(row_seeds, mask_BT.shape[1]) < self.p).to(mask_BT.device)
        always_BT = mask_BT & (torch.arange(mask_BT.shape[1], device=mask_BT.device) < self.a)
        candidates_BT = always_BT | (mask_BT & coins_BT)
        room = candidates_BT.cumsum(dim=1) <= self.k if self.budget == "selected" else batch.lengths_B[:, None] < self.k
        return always_BT | (candidates_BT & room)

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        """Raises ValueError without a generator: a fixed seed would repeat the coins at every step."""
        advantages_B = group_normalise(batch.rewards_B, batch.group_size, eps=self.eps, ddof=self.ddof)
        if generator is None:
            raise ValueError("sgrpo needs a generator for its coins")
        row_seeds = torch.randint(2**63 - 1, (len(advantages_B),), generator=generator, device=generator.device)
        if self.coins == "shared":
            row_seeds = row_seeds[self._seats(batch, generator)]
        # A row with an empty T_i adds nothing to the sum over G but still counts in its mean.
        everyone_B = torch.ones_like(batch.correct_B)
        return assign(advantages_B, batch, self.select(batch, row_seeds.tolist()), counted=everyone_B)

    def _seats(self, batch: RolloutBatch, generator: torch.Generator) -> torch.Tensor:
        """Which row of coins each row gets, int64 (B,): its index among the rows of its micro-batch that need coins."""
        tossing_B = batch.lengths_B < self.k if self.budget == "length" else batch.lengths_B > 0
        seats_B = torch.zeros(len(tossing_B), dtype=torch.long)
        for part in torch.randperm(len(seats_B), generator=generator).split(self.local_rows):
            seats_B[part] = (tossing_B[part].cumsum(0) - 1).clamp(min=0).cpu()
        return seats_B
