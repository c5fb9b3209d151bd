"""Sharded training (FSDP2): every rank keeps its part of each weight, gradient and moment.

In an update the weights come together layer by layer, on all ranks at once. Generation and signals take another number
of passes on each rank, so there all weights come together before, and go apart after. On models that are not sharded
all of this does nothing.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor, empty
from transformers import PreTrainedModel

from iapo_bench.errors import UserError
from iapo_bench.machine import parallel
from iapo_bench.models.checkpoints import decoder_and_head, require_finite

_BITS = {2: torch.int16, 4: torch.int32}
FINGERPRINT_CHUNK = 2**22  # weights at once: their products take 32 MiB

Model = TypeVar("Model", PreTrainedModel, PreTrainedModel | None)


def shard(model: PreTrainedModel) -> None:
    """Share the weights of `model`, which must be alike on all ranks, among them; in a single process do nothing.

    A unit, which comes together at once, is a layer, or all that is in none. Raises UserError for a decoder without a
    list of layers.
    """
    if parallel.size() == 1:
        return
    decoder, _ = decoder_and_head(model)
    layers = next((module for module in decoder.children() if isinstance(module, torch.nn.ModuleList)), None)
    if layers is None:
        raise UserError(f"{type(model).__name__} has no list of layers to shard: set train.sharded to false")
    # A module of the same shape that owns no weights but between `whole`'s beginning and end, without hooks.
    shape = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    mesh = init_device_mesh(model.device.type, (parallel.size(),))
    # In float32: between bfloat16 numbers the sum would round once for every rank.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for unit in (*layers, model):
        fully_shard(unit, mesh=mesh, mp_policy=policy)
        # Ranks hold parts of one sum, not samples of a mean.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    _release(shape)
    model.unsharded = _Unsharded(shape)
    model.run_sharded = MethodType(_run, model)
    register_fsdp_forward_method(model, "run_sharded")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether `shard` has taken it apart."""
    return isinstance(model, FSDPModule)


def run(function: Callable[..., Any], model: PreTrainedModel, *arguments: Any, **options: Any) -> Any:
    """`function(model, ...)`, which may use any part of the model as often as it likes, with gradients.

    Of a sharded model every rank must make this call, and the backward pass after it, equally often.
    """
    return (model.run_sharded if is_sharded(model) else MethodType(_run, model))(function, *arguments, **options)


@contextmanager
def whole(model: Model) -> Iterator[Model]:
    """The model with all its weights, for any number of passes without gradients; itself where it is not sharded.

    Every rank must enter it. None stands for no model.
    """
    if model is None or not is_sharded(model):
        yield model
        return
    shape = model.unsharded.shape
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape.get_parameter(name).data = parameter.full_tensor()
    try:
        yield shape
    finally:
        _release(shape)


def clip_gradients(model: torch.nn.Module, max_norm: float) -> float:
    """Scale the gradients down to a norm of `max_norm`, all weights together; return what it was."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def fingerprint(model: torch.nn.Module) -> list[int]:
    """A number for each trained weight on this rank, which a changed bit changes: a sum of its bits by place.

    With sharded weights, of every rank's part.
    """
    parts = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            bits = local.detach().flatten().view(_BITS[local.element_size()])
            place = torch.arange(1, min(len(bits), FINGERPRINT_CHUNK) + 1, device=bits.device)
            sums = [(chunk * place[: len(chunk)]).sum() for chunk in bits.split(FINGERPRINT_CHUNK)]
            parts.append(torch.stack(sums).sum())
    numbers = torch.stack(parts).tolist()
    return parallel.gather(numbers) if is_sharded(model) else numbers


def require_finite_weights(model: PreTrainedModel) -> None:
    """Raise UserError, on every rank that holds a part of it, for a weight that is not finite."""
    weights = model.named_parameters()
    local = {name: weight.to_local() if isinstance(weight, DTensor) else weight for name, weight in weights}
    require_finite(local, "after the update")


def split(state: Any) -> tuple[Any, dict[str, DTensor]]:
    """A state dict, nested as it may be, with None for every sharded tensor, and these by their places, "model.x"."""
    parts: dict[str, DTensor] = {}

    def rest(value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {key: rest(part, f"{place}.{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [rest(part, f"{place}.{i}") for i, part in enumerate(value)]
        if isinstance(value, DTensor):
            parts[place.lstrip(".")] = value
            return None
        return value

    return rest(state, ""), parts


def join(rest: Any, parts: dict[str, torch.Tensor], place: str = "") -> Any:
    """The inverse of `split`."""
    if isinstance(rest, dict):
        return {key: join(value, parts, f"{place}.{key}") for key, value in rest.items()}
    if isinstance(rest, list):
        return [join(value, parts, f"{place}.{i}") for i, value in enumerate(rest)]
    return parts.get(place.lstrip("."), rest)


def room(model: PreTrainedModel, size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """A tensor to be filled: of a sharded model one that is sharded as its weights are, else a plain one."""
    if not is_sharded(model):
        return torch.empty(size, dtype=dtype)
    weight = next(model.parameters())
    return empty(size, dtype=dtype, device_mesh=weight.device_mesh, placements=weight.placements)


def distribute(state: Any, like: Any) -> Any:
    """This rank's part of every tensor that is whole and whose place in `like` is a sharded one's."""
    if isinstance(like, dict):
        return {key: distribute(value, like.get(key)) for key, value in state.items()}
    if isinstance(like, list):
        return [distribute(*pair) for pair in zip(state, like, strict=True)]
    if isinstance(like, DTensor) and not isinstance(state, DTensor):
        # Each rank has read the whole and cuts out its own.
        return distribute_tensor(state, like.device_mesh, like.placements, src_data_rank=None)
    return state


@dataclass(frozen=True)
class _Unsharded:
    """Holds a module without registering it as a submodule."""

    shape: PreTrainedModel


def _release(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def _run(model: PreTrainedModel, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return function(model, *arguments, **options)
