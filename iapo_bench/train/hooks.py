"""A method's hooks as the core calls them: each sees a batch of its own, its result is checked, and an error names
the method's file and line."""

import dataclasses
from typing import Any

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.credit import Credit, require_tensor
from iapo_bench.method import Method, Signal, blaming


def visible(batch: RolloutBatch, method: Method) -> RolloutBatch:
    """The batch as the method's hooks see it: signals outside `needs` are None, and tensors are copies, so that a hook
    that writes to one changes only its own batch."""
    hidden = {each.value for each in Signal if each not in method.needs}
    held = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    seen: dict[str, Any] = {name: value.clone() for name, value in held.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **{**seen, **dict.fromkeys(hidden)})


def shaped_batch(method: Method, batch: RolloutBatch) -> RolloutBatch:
    """The batch with the method's shaped rewards. Raises UserError, naming method and file, unless they are finite
    float32 (B,)."""
    with blaming(method, "shape_rewards"):
        rewards_B = method.shape_rewards(visible(batch, method))
        require_tensor("the result", rewards_B, batch.rewards_B.shape, torch.float32, batch.rewards_B.device)
    return dataclasses.replace(batch, rewards_B=rewards_B)


def accepts(method: Method, correct_G: torch.Tensor) -> bool:
    """Whether the method trains on a group. Raises UserError, naming method and file, unless its answer is a bool."""
    with blaming(method, "accept_group"):
        verdict = method.accept_group(correct_G)
        if not isinstance(verdict, bool):
            raise ValueError(f"the result must be bool, is {type(verdict).__name__}")
    return verdict


def checked_credit(method: Method, batch: RolloutBatch, generator: torch.Generator) -> Credit:
    """Let the method observe the batch, then return its credit. Raises UserError, naming method and file, if a hook
    fails or the credit does not pass `Credit.validate`."""
    with blaming(method, "observe"):
        method.observe(visible(batch, method))
    with blaming(method, "credit"):
        credit = method.credit(visible(batch, method), generator)
        if not isinstance(credit, Credit):
            raise ValueError(f"the result must be a Credit, is {type(credit).__name__}")
        return credit.validate(batch)
