"""Random rewards, the control that a claim must beat (Shao et al. 2025, Spurious Rewards, arXiv 2506.10947)."""

from dataclasses import dataclass

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, Method, assign, group_normalise


@dataclass
class RandomReward(Method):
    """GRPO on coins: r_i is Bernoulli(1/2), whatever the completion says.

        A_i = norm(r_i, r_group)

    Loss: sequence mean, clip .2, no KL. Accuracy gained here is not from learning what is right. The published gains
    came through clipping, so with several updates per rollout. The coins come from the step's generator; the reward
    that is logged is the task's. A format reward has no part.
    """

    name = "random_reward"

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        """Raises ValueError without a generator: coins from a fixed seed would fall alike at every step."""
        if generator is None:
            raise ValueError("random_reward needs a generator for its coins")
        coins_B = torch.randint(2, batch.correct_B.shape, generator=generator, device=generator.device)
        return assign(group_normalise(coins_B.to(batch.rewards_B), batch.group_size), batch)
