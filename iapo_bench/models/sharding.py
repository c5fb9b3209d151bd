"""Sharded training (FSDP2): every rank keeps its shard of each weight, gradient and optimiser moment.

An update all-gathers the weights layer by layer, on all ranks at once. Generation and signals take a different number
of passes on each rank, so all weights are gathered before and released after. Models that are not sharded are left as
they are.
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
    """Shard the weights of `model`, which must be equal on all ranks; a no-op in a single process.

    An FSDP unit is a layer, or everything outside the layers. Raises UserError for a decoder without a list of layers.
    """
    if parallel.size() == 1:
        return
    decoder, _ = decoder_and_head(model)
    layers = next((module for module in decoder.children() if isinstance(module, torch.nn.ModuleList)), None)
    if layers is None:
        raise UserError(f"{type(model).__name__} has no list of layers to shard: set train.sharded to false")
    # A copy without hooks for `whole`, outside of which it holds no weights.
    shape = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    mesh = init_device_mesh(model.device.type, (parallel.size(),))
    # In float32: a bfloat16 sum would round once per rank.
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
    """Whether `shard` has sharded the model."""
    return isinstance(model, FSDPModule)


def run(function: Callable[..., Any], model: PreTrainedModel, *arguments: Any, **options: Any) -> Any:
    """`function(model, ...)`, which may use any part of the model any number of times, with gradients.

    With a sharded model every rank must make this call, and the backward pass after it, equally often.
    """
    return (model.run_sharded if is_sharded(model) else MethodType(_run, model))(function, *arguments, **options)


@contextmanager
def whole(model: Model) -> Iterator[Model]:
    """The model with all its weights, for any number of passes without gradients; itself if it is not sharded, or None.

    Every rank must enter the block.
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
    """Clip the global norm of the gradients to `max_norm`; return the norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def fingerprint(model: torch.nn.Module) -> list[int]:
    """A number for each trained weight, the sum of its bits weighted by position, which a changed bit changes.

    For a sharded model, the numbers of every rank's shards.
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
    """Raise UserError for a weight that is not finite, on the ranks whose shard holds such a number."""
    weights = model.named_parameters()
    local = {name: weight.to_local() if isinstance(weight, DTensor) else weight for name, weight in weights}
    require_finite(local, "after the update")


def split(state: Any) -> tuple[Any, dict[str, DTensor]]:
    """A nested state dict with None for every sharded tensor, and the sharded tensors by their paths, "model.x"."""
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
    """An empty tensor to fill, sharded like the model's weights if the model is sharded."""
    if not is_sharded(model):
        return torch.empty(size, dtype=dtype)
    weight = next(model.parameters())
    return empty(size, dtype=dtype, device_mesh=weight.device_mesh, placements=weight.placements)


def distribute(state: Any, like: Any) -> Any:
    """`state` with this rank's shard of every full tensor whose counterpart in `like` is sharded."""
    if isinstance(like, dict):
        return {key: distribute(value, like.get(key)) for key, value in state.items()}
    if isinstance(like, list):
        return [distribute(*pair) for pair in zip(state, like, strict=True)]
    if isinstance(like, DTensor) and not isinstance(state, DTensor):
        # Each rank has read the full tensor and cuts out its own shard.
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
