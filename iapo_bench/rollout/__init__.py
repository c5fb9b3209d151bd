"""Rollout engines: prompts in, completions with their log-probabilities out."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from transformers import PreTrainedModel

from iapo_bench.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. `temperature` 0 is greedy. Draws depend on `seed`, not on the batch size.

    `first_index`: index of the first completion, so that a part of a larger call gets the same draws as in the whole.
    """

    max_tokens: int
    eos_ids: tuple[int, ...]
    samples_per_prompt: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    first_index: int = 0


@dataclass(frozen=True)
class Completion:
    """One completion: token ids (end of sequence included), the sampler's log-probabilities (nats), the finish reason.

    Raises UserError for a log-probability that is not finite: the model that drew the token is broken.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]

    def __post_init__(self) -> None:
        for token, logprob in enumerate(self.logprobs):
            if not math.isfinite(logprob):
                raise UserError(
                    f"the model's log-probability of completion token {token} is {logprob}: its logits are not finite, "
                    "so its weights are broken or overflow in this dtype; sample an earlier checkpoint"
                )


class RolloutEngine(Protocol):
    """A rollout engine. Completions come back in the order of the prompts, a prompt's samples adjacent."""

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]: ...

    def sync(self, model: PreTrainedModel) -> float | None:
        """Use the weights of `model` from now on. Returns the mean gap (nats) between the engine's log-probabilities
        and the model's; None for an engine that runs `model` itself."""
        ...

    def close(self) -> None:
        """Free the engine's memory; the engine cannot generate afterwards."""
        ...
