"""Rollout engines: prompts in, completions with their log-probabilities out."""

from dataclasses import dataclass
from typing import Literal, Protocol

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; `seed` alone decides the draws, whatever the batch size.

    `first_index`: the number of the first completion. A part of a larger call, so numbered, has the draws of the whole.
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
    """One completion: token ids (end-of-sequence included), the sampler's log-probability of each, why it ended."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


class RolloutEngine(Protocol):
    """What generates. Completions come back in the order of the prompts, a prompt's samples adjacent."""

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]: ...

    def sync(self, model: PreTrainedModel) -> None:
        """Use the weights of `model` from now on."""
        ...
