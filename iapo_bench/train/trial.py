"""Checks of a method on the first batch of a run: mistakes that would train without an error."""

import copy
import io
import pickle
import re
from dataclasses import fields, replace
from typing import Any

import torch
from torch.nn.functional import pad

from iapo_bench.batch import RolloutBatch
from iapo_bench.credit import Credit
from iapo_bench.errors import UserError
from iapo_bench.method import Method, blaming
from iapo_bench.seeds import torch_stream
from iapo_bench.train.hooks import checked_credit, shaped_batch, visible

EXTRA_COLUMNS = 3
JUNK = 9.0  # value written into signals at padding


def try_method(method: Method, batch: RolloutBatch, seed: int, *, own_rewards: bool = False) -> None:
    """Raise UserError, naming file and line, if padding changes a method's rewards or credit, if chance changes its
    credit, if a checkpoint cannot hold its state or lacks a part of it, or (with `own_rewards`) if rewards do not
    change its credit. `batch`: before `shape_rewards`.

    Methods that read entropies at padding on purpose (`Reading.padding`) skip the padding check.
    """
    _require_state_kept(method)
    method = _twin(method)
    _require_repeatable(method, batch, seed)
    if not method.reading.padding:
        _require_no_padding_read(method, batch, seed)
    if own_rewards:
        _require_rewards_read(method, batch, seed)


def _require_no_padding_read(method: Method, batch: RolloutBatch, seed: int) -> None:
    padded = more_padding(batch)
    read = "change with padding: reduce over real tokens, with batch.completion_mask_BT"
    rewards = [shaped_batch(method, each).rewards_B for each in (batch, padded)]
    with blaming(method, "shape_rewards"):
        if not _alike(*rewards):
            raise ValueError(f"the rewards {read}")
    for credit in (_credit, _next_credit):
        _require_same(method, credit(_twin(method), batch, seed), credit(_twin(method), padded, seed), batch, read)


def _require_repeatable(method: Method, batch: RolloutBatch, seed: int) -> None:
    chance = "differ from call to call: draw random numbers with `generator`"
    _require_same(method, _credit(_twin(method), batch, seed), _credit(_twin(method), batch, seed), batch, chance)
    plain, resumed = _twin(method), _twin(method)
    _next_credit(plain, batch, seed)
    with blaming(method, "load_state_dict"):
        resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    lost = "would differ after a resume: `observe` must make every change of the method's state, `state_dict` hold it"
    _require_same(method, _next_credit(plain, batch, seed), _next_credit(resumed, batch, seed), batch, lost)


def _require_same(method: Method, one: Credit | None, other: Credit | None, batch: RolloutBatch, fault: str) -> None:
    mask_BT = batch.completion_mask_BT
    with blaming(method, "credit"):
        for name in ("advantages_BT", "weights_BT") if one and other else ():
            if not _alike(*(getattr(credit, name)[:, : mask_BT.shape[1]][mask_BT] for credit in (one, other))):
                raise ValueError(f"{name} {fault}")


def _require_rewards_read(method: Method, batch: RolloutBatch, seed: int) -> None:
    others_B = torch.arange(len(batch.rewards_B), device=batch.rewards_B.device).float()
    others = replace(batch, rewards_B=others_B)
    plain, other = _credit(_twin(method), batch, seed), _credit(_twin(method), others, seed)
    if torch.equal(plain.advantages_BT, other.advantages_BT):
        raise UserError(
            f"{method.name} makes its own reward, so train.rewards would change nothing: drop them, or train a method "
            "that reads batch.rewards_B, such as grpo"
        )


def _require_state_kept(method: Method) -> None:
    file = io.BytesIO()
    with blaming(method, "state_dict"):
        torch.save(method.state_dict(), file)
        file.seek(0)
        try:
            state = torch.load(file, weights_only=True)
        except pickle.UnpicklingError as error:
            what = re.search(r"GLOBAL (\S+)", str(error))
            raise ValueError(
                f"a checkpoint cannot hold {what[1] if what else 'these values'}: use only tensors, numbers and strings"
            ) from None
    with blaming(method, "load_state_dict"):
        _twin(method).load_state_dict(state)


def _twin(method: Method) -> Method:
    """A copy of the method with its own instance and class state: a trial must leave no trace in the run."""
    twin = copy.deepcopy(method)
    kind = type(method)
    twin.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__})
    return twin


def _credit(method: Method, batch: RolloutBatch, seed: int) -> Credit:
    shaped = shaped_batch(method, batch)
    with blaming(method, "credit"):
        return method.credit(visible(shaped, method), torch_stream(seed, "method", 0))


def _next_credit(method: Method, batch: RolloutBatch, seed: int) -> Credit | None:
    """The credit of one more step on the same batch; None if that fails, which the run will report, at its step."""
    try:
        return checked_credit(method, shaped_batch(method, batch), torch_stream(seed, "method", 0))
    except UserError:
        return None


def more_padding(batch: RolloutBatch) -> RolloutBatch:
    """The same rows with more columns of padding on the right, and other signals at padding."""
    real = {"BT": batch.completion_mask_BT}
    real["BS"] = pad(real["BT"], (1, 0), value=True)  # one more prefix than tokens
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
