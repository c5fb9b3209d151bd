"""IAPO: Information-Aware Policy Optimization (He et al. 2026, arXiv 2602.19049)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch.nn.functional import pad

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
    masked_moments,
    padded_widths,
    signal,
)

EPS = 1e-6
RELEASED_EPS = 1e-8


@dataclass
class IAPO(Method):
    """Tokens that tell more about the answer, or explore less in a correct completion, get more credit.

        s[i,t] = e[i,t] - e[i,t+1],   e[i,t] = H(y | q, o_<t)                      informativeness, nats
        c[i,t] = +pi_old(o_t | q, o_<t) if o_i is correct, else -pi_old(...)       exploration
        A[i,t] = norm(r_i, r_group) + alpha * norm(s[i,t], s_i) + beta * norm(c[i,t], c_i)

    norm over s_i and c_i is the z-score over the completion's real tokens (population std). It is exactly 0 if the
    signal varies by no more than the rounding of a forward pass, so also for a completion of one token.

    `informativeness`: "answer", the early-exit entropies, or "next_token" (ablation IAPO-NE): e[i,t] = H(o_t | q, o_<t)
    and 0 after the last token, where nothing is left to generate. alpha = 0 is IAPO-NI.

    The other options are departures of the released code.
    `smoothing`: s[t] = (e[t-1] + e[t])/2 - e[t+1] with e[-1] = 0.
    `last_entropy` = "unread": the entropy after the last column of the padded width counts as 0, so a row of full width
    ends in a large value; a shorter row reads its own last entropy.
    `exploration` = "entropy": c = -H(o_t | q, o_<t) if correct, else +H.
    `normalisation` = "mean_over_std": x - mean/(std + 1e-8) instead of (x - mean)/std; `signal_ddof`: of that std.
    `unit_norm`: then divide by the row's Euclidean norm.
    `reading`: how entropies are read. If read at padding too, they count in mean, std and norm, as do the zeros beyond
    the part's width (exploration by probability, which the released code does not have, leaves padding out).
    `ddof`, `eps`: of the reward's z-score.
    """

    name = "iapo"
    released: ClassVar[dict[str, Any]] = {
        "smoothing": True,
        "last_entropy": "unread",
        "exploration": "entropy",
        "normalisation": "mean_over_std",
        "signal_ddof": 1,
        "unit_norm": True,
        "reading": dataclasses.asdict(RELEASED_READING),
        "loss": {"clip_high": 0.28, "reduction": "token_mean", "local_rows": 4},
        **RELEASED_Z_SCORE,
    }
    loss: LossSpec = field(default_factory=lambda: LossSpec(kl_coef=0.001))
    format_reward: float = 0.5
    # Published for Qwen2.5-0.5B and 1.5B on GSM8K; other cells use 1e-6 to 1. Tuned under `unit_norm`, which makes a
    # weight act about sqrt(T) times weaker than the z-score does.
    alpha: float = 1.0
    beta: float = 1.0
    informativeness: Literal["answer", "next_token"] = "answer"
    exploration: Literal["probability", "entropy"] = "probability"
    smoothing: bool = False
    last_entropy: Literal["read", "unread"] = "read"
    normalisation: Literal["z_score", "mean_over_std"] = "z_score"
    signal_ddof: Literal[0, 1] = 0
    unit_norm: bool = False
    reading: Reading = EXACT
    ddof: Literal[0, 1] = 0
    eps: float = EPS

    @property
    def needs(self) -> frozenset[Signal]:
        needs = set()
        if self.alpha:
            needs.add(Signal.ANSWER_ENTROPY if self.informativeness == "answer" else Signal.TOKEN_ENTROPY)
        if self.beta:
            needs.add(Signal.OLD_LOGP if self.exploration == "probability" else Signal.TOKEN_ENTROPY)
        return frozenset(needs)

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        advantages_B = group_normalise(batch.rewards_B, batch.group_size, eps=self.eps, ddof=self.ddof)
        advantages_BT = advantages_B[:, None].double()
        mask_BT = batch.completion_mask_BT
        # Up to the longest completion of all parts: columns that no completion reaches do not count.
        counted_BT = mask_BT.any(dim=0).expand_as(mask_BT) if self.reading.padding else mask_BT
        if self.alpha:
            s_BT, noise = self.token_informativeness(batch), batch.signal_noise.nats
            advantages_BT = advantages_BT + self.alpha * self._normalise(s_BT, counted_BT, noise)
        if self.beta:
            entropies = self.exploration == "entropy"
            counted_BT = counted_BT if entropies else mask_BT
            noise = batch.signal_noise.nats if entropies else batch.signal_noise.share
            advantages_BT = advantages_BT + self.beta * self._normalise(
                self.token_exploration(batch), counted_BT, noise
            )
        return assign(advantages_BT, batch)

    def token_informativeness(self, batch: RolloutBatch) -> torch.Tensor:
        """s in nats, float64 (B, T); entries at padding mean nothing unless they are read."""
        mask_BT = batch.completion_mask_BT
        width_B1 = padded_widths(mask_BT, batch.group_size, self.reading.ranks)[:, None]
        steps_S = torch.arange(mask_BT.shape[1] + 1, device=mask_BT.device)
        if self.informativeness == "answer":
            e_BS = signal(batch, Signal.ANSWER_ENTROPY).double()
        else:
            entropy_BT = signal(batch, Signal.TOKEN_ENTROPY).double()
            e_BS = pad(entropy_BT if self.reading.padding else entropy_BT * mask_BT, (0, 1))
        if self.last_entropy == "unread":
            e_BS = torch.where(steps_S < width_B1, e_BS, 0.0)
        before_BT = (pad(e_BS, (1, 0))[:, :-2] + e_BS[:, :-1]) / 2 if self.smoothing else e_BS[:, :-1]
        return torch.where(steps_S[:-1] < width_B1, before_BT - e_BS[:, 1:], 0.0)

    def token_exploration(self, batch: RolloutBatch) -> torch.Tensor:
        """c, a probability or nats, float64 (B, T); entries at padding mean nothing unless they are read."""
        if self.exploration == "probability":
            confidence_BT = signal(batch, Signal.OLD_LOGP).double().exp()
        else:
            confidence_BT = -signal(batch, Signal.TOKEN_ENTROPY).double()
        return torch.where(batch.correct_B[:, None], confidence_BT, -confidence_BT)

    def _normalise(self, values_BT: torch.Tensor, counted_BT: torch.Tensor, noise: float) -> torch.Tensor:
        z_score = self.normalisation == "z_score"
        noise = noise if z_score else 0.0
        mean_B1, std_B1 = masked_moments(values_BT, counted_BT, ddof=self.signal_ddof, noise=noise)
        centred_BT = (
            (values_BT - mean_B1) / (std_B1 + EPS) if z_score else values_BT - mean_B1 / (std_B1 + RELEASED_EPS)
        )
        defined_B1 = std_B1 > 0 if z_score else counted_BT.sum(dim=1, keepdim=True) > self.signal_ddof
        centred_BT = torch.where(counted_BT & defined_B1, centred_BT, 0.0)
        return centred_BT / (centred_BT.norm(dim=1, keepdim=True) + RELEASED_EPS) if self.unit_norm else centred_BT
