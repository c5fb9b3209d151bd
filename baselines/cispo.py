"""CISPO: Clipped Importance Sampling Policy Optimization (MiniMax 2025, arXiv 2506.13585)."""

from dataclasses import dataclass, field

from iapo_bench.method import LossSpec, Method


@dataclass
class CISPO(Method):
    """Caps the weight of a token instead of cutting its gradient.

        loss = -sg(min(rho[i,t], cap)) * A_i * log pi(o_t | q, o_<t),   A_i = norm(r_i, r_group), sg: no gradient

    Loss: token mean, no lower bound, no KL. With one update per rollout rho is 1 and the method is token-mean GRPO.

    The cap is 1 + `clip_high` of the loss: 5, as in ScaleRL (Khatri et al. 2025, arXiv 2510.13786); in TRL 1.16
    `epsilon_high` is the cap itself. Open: the value that MiniMax used is not known.
    """

    name = "cispo"
    loss: LossSpec = field(default_factory=lambda: LossSpec(clip_high=4.0, objective="cispo", reduction="token_mean"))
