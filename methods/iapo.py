"""IAPO: Information-Aware Policy Optimization (He et al. 2026, arXiv 2602.19049)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch.nn.functional import pad

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import (
    Credit,
    LossSpec,
    Method,
    Signal,
    assign,
    group_normalise,
    masked_moments,
    signal,
)

EPS = 1e-6


@dataclass
class IAPO(Method):
    """Tokens that tell more about the answer, or explore less in a correct completion, get more credit.

        s[i,t] = e[i,t] - e[i,t+1],   e[i,t] = H(y | q, o_<t)                      informativeness, nats
        c[i,t] = +pi_old(o_t | q, o_<t) if o_i is correct, else -pi_old(...)       exploration
        A[i,t] = norm(r_i, r_group) + alpha * norm(s[i,t], s_i) + beta * norm(c[i,t], c_i)

    norm over s_i and c_i is the z-score over the completion's real tokens (population std). It is exactly 0 where the
    signal varies by no more than the rounding of a forward pass, so also for a completion of one token.

    `informativeness`: "answer", the early-exit entropies, or "next_token" (ablation IAPO-NE): e[i,t] = H(o_t | q, o_<t)
    and 0 after the last token, where nothing is left to be generated. alpha = 0 is IAPO-NI.

    The rest are the released code's departures. `smoothing`: s[t] = (e[t-1] + e[t])/2 - e[t+1] with e = 0 before the
    first and after the last token. `exploration` = "entropy": c = -H(o_t | q, o_<t) if correct, else +H.
    `normalisation` = "mean_over_std": x - mean/std in place of (x - mean)/std. `unit_norm`: then divide by the row's
    Euclidean norm. All over real tokens, whereas the released code counts padding too.
    """

    name = "iapo"
    released: ClassVar[dict[str, Any]] = {
        "smoothing": True,
        "exploration": "entropy",
        "normalisation": "mean_over_std",
        "unit_norm": True,
        "loss": {"clip_high": 0.28, "reduction": "token_mean"},
    }
    loss: LossSpec = field(default_factory=lambda: LossSpec(kl_coef=0.001))
    format_reward: float = 0.5
    # Published for Qwen2.5-0.5B and 1.5B on GSM8K; other cells take 1e-6 to 1. Chosen under `unit_norm`, which makes a
    # weight act about sqrt(T) times weaker than the z-score does.
    alpha: float = 1.0
    beta: float = 1.0
    informativeness: Literal["answer", "next_token"] = "answer"
    exploration: Literal["probability", "entropy"] = "probability"
    smoothing: bool = False
    normalisation: Literal["z_score", "mean_over_std"] = "z_score"
    unit_norm: bool = False

    @property
    def needs(self) -> frozenset[Signal]:
        needs = set()
        if self.alpha:
            needs.add(Signal.ANSWER_ENTROPY if self.informativeness == "answer" else Signal.TOKEN_ENTROPY)
        if self.beta:
            needs.add(Signal.OLD_LOGP if self.exploration == "probability" else Signal.TOKEN_ENTROPY)
        return frozenset(needs)

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        advantages_BT = group_normalise(batch.rewards_B, batch.group_size)[:, None].double()
        if self.alpha:
            s_BT = self.token_informativeness(batch)
            advantages_BT = advantages_BT + self.alpha * self._normalise(s_BT, batch, batch.signal_noise.nats)
        if self.beta:
            noise = batch.signal_noise.share if self.exploration == "probability" else batch.signal_noise.nats
            c_BT = self.token_exploration(batch)
            advantages_BT = advantages_BT + self.beta * self._normalise(c_BT, batch, noise)
        return assign(advantages_BT, batch)

    def token_informativeness(self, batch: RolloutBatch) -> torch.Tensor:
        """s in nats, float64 (B, T); entries at padding mean nothing."""
        mask_BT = batch.completion_mask_BT
        if self.informativeness == "answer":
            e_BS = signal(batch, Signal.ANSWER_ENTROPY).double()
        else:
            e_BS = pad(signal(batch, Signal.TOKEN_ENTROPY).double() * mask_BT, (0, 1))
        if self.smoothing:
            e_BS = pad(e_BS[:, :-1] * mask_BT, (0, 1))
            return (pad(e_BS, (1, 0))[:, :-2] + e_BS[:, :-1]) / 2 - e_BS[:, 1:]
        return e_BS[:, :-1] - e_BS[:, 1:]

    def token_exploration(self, batch: RolloutBatch) -> torch.Tensor:
        """c, a probability or nats, float64 (B, T); entries at padding mean nothing."""
        if self.exploration == "probability":
            confidence_BT = signal(batch, Signal.OLD_LOGP).double().exp()
        else:
            confidence_BT = -signal(batch, Signal.TOKEN_ENTROPY).double()
        return torch.where(batch.correct_B[:, None], confidence_BT, -confidence_BT)

    def _normalise(self, values_BT: torch.Tensor, batch: RolloutBatch, noise: float) -> torch.Tensor:
        mask_BT = batch.completion_mask_BT
        mean_B1, std_B1 = masked_moments(values_BT, mask_BT, noise=noise)
        if self.normalisation == "z_score":
            values_BT = (values_BT - mean_B1) / (std_B1 + EPS)
        else:
            values_BT = values_BT - mean_B1 / (std_B1 + EPS)
        values_BT = torch.where(mask_BT & (std_B1 > 0), values_BT, 0.0)
        return values_BT / (values_BT.norm(dim=1, keepdim=True) + EPS) if self.unit_norm else values_BT
