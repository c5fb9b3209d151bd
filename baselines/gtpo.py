"""GTPO: Group Token Policy Optimization (Tan et al. 2025, arXiv 2508.04349; not Simoni et al., arXiv 2508.03772)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import (
    EXACT,
    RELEASED_READING,
    RELEASED_Z_SCORE,
    Credit,
    LossSpec,
    Method,
    Reading,
    Signal,
    assign,
    group_normalise,
    masked_normalise,
    require_groups,
    signal,
)


@dataclass
class GTPO(Method):
    """Token rewards shaped by the policy's entropy H[i,t] (nats, full vocabulary).

        r+[i,t] = a1 + a2 * H[i,t] / sum_{k in O+} H[k,t] * d_t               0 for O-
        r-[j,t] = -a1 - a2 * (1/H[j,t]) / sum_{k in O-} (1/H[k,t]) * h_t      0 for O+
        A+- = norm(r+-, R+-)

    O+ and O- are the correct and incorrect completions of a group, d_t and h_t the numbers of them that still run at t;
    sums are over those. So the bonuses at a step sum to a2*d_t and -a2*h_t. If all H are 0, the shares of H are
    uniform; if some are 0, these take the whole share of 1/H. Loss: token mean, clip-higher, no KL penalty.

    `scope`: R+- are the shaped rewards of the real tokens of the "group" or the "batch"; `zeros`: "include" those that
    are 0 because they belong to the other side, or "exclude" them. `ddof`, `eps`: of the standard deviation.

    The other options are departures of the released code. `bonus_scale`: "running" (d_t, h_t) or the row's own
    "length".
    `bonus_to`: "reward", as above, or "advantage": added to A_i = norm(r_i, r_group), unnormalised. `share_eps`: added
    to every H and to every sum. `reading`: how entropies are read; if also at padding, a finished row keeps taking its
    share.
    """

    name = "gtpo"
    released: ClassVar[dict[str, Any]] = {
        "bonus_scale": "length",
        "bonus_to": "advantage",
        "share_eps": 1e-8,
        "format_reward": 0.5,
        "reading": {**dataclasses.asdict(RELEASED_READING), "postfix_chunk": 0, "left_padding": False},
        "loss": {"clip_high": 0.2, "kl_coef": 0.001, "local_rows": 4},
        **RELEASED_Z_SCORE,
    }
    loss: LossSpec = field(default_factory=lambda: LossSpec(clip_low=0.2, clip_high=0.28, reduction="token_mean"))
    a1: float = 1.0
    a2: float = 0.1
    scope: Literal["group", "batch"] = "group"
    zeros: Literal["include", "exclude"] = "include"
    ddof: Literal[0, 1] = 0
    eps: float = 1e-6
    bonus_scale: Literal["running", "length"] = "running"
    bonus_to: Literal["reward", "advantage"] = "reward"
    share_eps: float = 0.0
    reading: Reading = EXACT

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.TOKEN_ENTROPY}) if self.a2 else frozenset()

    def bonuses(self, batch: RolloutBatch) -> torch.Tensor:
        """The terms with a2: positive for correct rows, negative for incorrect ones, float64 (B, T)."""
        mask_BT = batch.completion_mask_BT
        if not self.a2:
            return torch.zeros_like(mask_BT, dtype=torch.float64)
        grouped = (-1, batch.group_size, mask_BT.shape[1])
        mask_NGT = mask_BT.view(grouped)
        correct_NG1 = batch.correct_B.view(-1, batch.group_size, 1)
        lengths_NG1 = batch.lengths_B.view(-1, batch.group_size, 1)
        entropy_NGT = signal(batch, Signal.TOKEN_ENTROPY).double().clamp(min=0.0).view(grouped)
        bonus_NGT = torch.zeros_like(entropy_NGT)
        sharing_NGT = torch.ones_like(mask_NGT) if self.reading.padding else mask_NGT
        for side_NG1, sign in ((correct_NG1, 1.0), (~correct_NG1, -1.0)):
            side_NGT = sharing_NGT & side_NG1
            weight_NGT = entropy_NGT if sign > 0 else self._inverse(entropy_NGT, side_NGT)
            running_N1T = (mask_NGT & side_NG1).sum(dim=1, keepdim=True)
            scale = lengths_NG1 if self.bonus_scale == "length" else running_N1T
            bonus_NGT += sign * self.a2 * self._share(weight_NGT, side_NGT) * scale
        return torch.where(mask_NGT, bonus_NGT, 0.0).view(mask_BT.shape)

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        require_groups(batch.group_size)
        bonus_BT = self.bonuses(batch)
        if self.bonus_to == "advantage":
            advantages_B = group_normalise(batch.rewards_B, batch.group_size, eps=self.eps, ddof=self.ddof)
            return assign(advantages_B[:, None] + bonus_BT, batch)
        correct_B1 = batch.correct_B[:, None]
        shaped_BT = torch.where(correct_B1, self.a1, -self.a1) + bonus_BT
        positive_BT = self._normalise(shaped_BT, correct_B1, batch)
        negative_BT = self._normalise(shaped_BT, ~correct_B1, batch)
        return assign(torch.where(correct_B1, positive_BT, negative_BT), batch)

    def _normalise(self, shaped_BT: torch.Tensor, side_B1: torch.Tensor, batch: RolloutBatch) -> torch.Tensor:
        """norm(r, R) for the rows of one side, whose rewards are 0 in the other rows."""
        mask_BT = batch.completion_mask_BT
        pool_BT = mask_BT & side_B1 if self.zeros == "exclude" else mask_BT
        pools = len(mask_BT) // batch.group_size if self.scope == "group" else 1
        values = torch.where(side_B1, shaped_BT, 0.0).view(pools, -1)
        pool, noise = pool_BT.view(pools, -1), self.a2 * batch.signal_noise.share
        normal = masked_normalise(values, pool, eps=self.eps, ddof=self.ddof, noise=noise)
        return normal.view(mask_BT.shape)

    def _share(self, weight_NGT: torch.Tensor, side_NGT: torch.Tensor) -> torch.Tensor:
        """Each row's share of the weights at each step, 0 outside the side; uniform if all weights are 0."""
        weight_NGT = torch.where(side_NGT, weight_NGT, 0.0)
        total_N1T = weight_NGT.sum(dim=1, keepdim=True) + self.share_eps
        uniform_NGT = side_NGT.double() / side_NGT.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.where(total_N1T > 0, weight_NGT / total_N1T, uniform_NGT)

    def _inverse(self, entropy_NGT: torch.Tensor, side_NGT: torch.Tensor) -> torch.Tensor:
        """1/H up to a factor that cancels in the shares: the smallest H over H, finite even if H is 0."""
        entropy_NGT = entropy_NGT + self.share_eps
        least_N1T = entropy_NGT.masked_fill(~side_NGT, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(entropy_NGT > 0, least_N1T / entropy_NGT, 1.0)
