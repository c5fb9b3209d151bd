"""What a method is tried for on the first batch of a run: mistakes that would train without a word."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch.nn.functional import pad

from iapo_bench.batch import RolloutBatch
from iapo_bench.errors import UserError
from iapo_bench.method import Credit, Method

EXTRA_COLUMNS = 3
JUNK = 9.0  # what signals are made to hold at padding


def try_method(method: Method, batch: RolloutBatch, make_generator: Callable[[], torch.Generator]) -> None:
    """Raise UserError, naming file and line, when what stands at padding, or how much there is, changes the method's
    rewards or its credit. `batch`: before `shape_rewards`.

    Entropies that are read at padding on purpose (`Reading.padding`) are let be.
    """
    if method.reading.padding:
        return
    padded = more_padding(batch)
    rewards = [method.shape_rewards(each) for each in (batch, padded)]
    if not _alike(*rewards):
        raise _blame(method.shape_rewards, "the rewards change with padding")
    plain, other = (
        method.credit(replace(each, rewards_B=rewards_B), make_generator())
        for each, rewards_B in zip((batch, padded), rewards, strict=True)
    )
    mask_BT = batch.completion_mask_BT
    for name in ("advantages_BT", "weights_BT"):
        values = [getattr(credit, name)[:, : mask_BT.shape[1]][mask_BT] for credit in (plain, other)]
        if not _alike(*values):
            raise _blame(method.credit, f"{name} change with padding")


def require_rewards_read(method: Method, batch: RolloutBatch, make_generator: Callable[[], torch.Generator]) -> None:
    """Raise UserError when the method's credit is the same whatever `batch.rewards_B` is before `shape_rewards`."""

    def credit(rewards_B: torch.Tensor) -> Credit:
        given = replace(batch, rewards_B=rewards_B)
        return method.credit(replace(given, rewards_B=method.shape_rewards(given)), make_generator())

    others_B = torch.arange(len(batch.rewards_B), dtype=torch.float32, device=batch.rewards_B.device)
    if torch.equal(credit(batch.rewards_B).advantages_BT, credit(others_B).advantages_BT):
        raise UserError(
            f"{method.name} makes its own reward, so train.rewards would change nothing: drop them, or train a method "
            "that reads batch.rewards_B, such as grpo"
        )


def more_padding(batch: RolloutBatch) -> RolloutBatch:
    """The same rows with more columns of padding on the right, and other signals at padding."""
    real = {"BT": batch.completion_mask_BT}
    real["BS"] = pad(real["BT"], (1, 0), value=True)  # a prefix more than tokens
    changes: dict[str, Any] = {}
    for field in fields(batch):
        value, dims = getattr(batch, field.name), field.name.rsplit("_", 1)[-1]
        if isinstance(value, torch.Tensor) and dims in real:
            junk = JUNK if value.is_floating_point() else 0
            value = value if value.dtype == torch.bool else torch.where(real[dims], value, junk)
            changes[field.name] = pad(value, (0, EXTRA_COLUMNS), value=junk)
    return replace(batch, **changes)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _blame(hook: Callable, what: str) -> UserError:
    code = hook.__func__.__code__  # type: ignore[attr-defined]
    return UserError(
        f"{code.co_filename}:{code.co_firstlineno}: {what}: reduce over real tokens, with batch.completion_mask_BT"
    )
