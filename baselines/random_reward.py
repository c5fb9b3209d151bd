"""Random rewards, the control that a claim must beat (Shao et al. 2025, Spurious Rewards, arXiv 2506.10947)."""

from dataclasses import dataclass

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, Method, assign, group_normalise


@dataclass
class RandomReward(Method):
    """GRPO with coin flips as rewards: r_i is Bernoulli(1/2), independent of the completion.

        A_i = norm(r_i, r_group)

    Loss: sequence mean, clip .2, no KL. Any gain in accuracy is not learnt from correct answers. The published gains
    came through clipping, so with several updates per rollout. The coins come from the step's generator; the logged
    reward is the task's. A format reward does not enter the credit.
    """

    name = "random_reward"

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        """Raises ValueError without a generator: a fixed seed would repeat the coins at every step."""
        if generator is None:
            raise ValueError("random_reward needs a generator for its coins")
        coins_B = torch.randint(2, batch.correct_B.shape, generator=generator, device=generator.device)
        return assign(group_normalise(coins_B.to(batch.rewards_B), batch.group_size), batch)
