"""GSPO: Group Sequence Policy Optimization (Zheng et al. 2025, arXiv 2507.18071)."""

from dataclasses import dataclass, field

from iapo_bench.method import LossSpec, Method


@dataclass
class GSPO(Method):
    """GRPO with the ratio, and so the clipping, per completion instead of per token.

        J = mean_i min(s_i * A_i, clip(s_i, 1 - 3e-4, 1 + 4e-4) * A_i),   A_i = norm(r_i, r_group)
        s_i = exp(mean_t log(pi/pi_old)(o_t | q, o_<t))

    Loss: sequence mean, no KL. The paper takes four updates per rollout (`updates_per_rollout`); with one, s is 1 and
    the method is GRPO.
    """

    name = "gspo"
    loss: LossSpec = field(default_factory=lambda: LossSpec(clip_low=3e-4, clip_high=4e-4, ratio="sequence"))
