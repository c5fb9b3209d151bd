"""The checkpoint that a training run resumes from: a file or, for a sharded model, a directory to which every rank
writes its own part (`torch.distributed.checkpoint`) and which any number of ranks can read.

A checkpoint is written whole or not at all, each of its files ends with a checksum, and the previous checkpoint is kept
beside it.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PreTrainedModel

from iapo_bench.errors import UserError
from iapo_bench.files import remove, whole_directory, whole_file
from iapo_bench.machine import parallel
from iapo_bench.machine.resume import is_sound, seal
from iapo_bench.models import sharding
from iapo_bench.models.checkpoints import require_finite

_METADATA, _REST = ".metadata", "rest.pt"  # files in the directory, beside the ranks' parts


def save_state(state: dict[str, Any], path: Path, what: str) -> None:
    """Write the nested dict `state`, with weights under "model"; the checkpoint at `path` becomes the previous one.

    Every rank must call this. Raises UserError, naming `what`, for a number that is not finite.
    """
    rest, parts = sharding.split(state)
    require_finite({name: part.to_local() for name, part in parts.items()}, what)
    if parallel.is_main():
        require_finite(rest, what)
    if parts:
        _save_directory(rest, parts, path)
    elif parallel.is_main():
        with whole_file(path) as partial:
            _write_tensors(rest, partial)
            _set_aside(path)


def find_state(path: Path, shapes: dict[str, torch.Size]) -> tuple[Path | None, list[Path]]:
    """The newest sound checkpoint of weights of these shapes, `path` or the previous one, and the damaged ones.

    A damaged `path` is removed if the previous one is sound. Every rank must call this. Raises UserError if only some
    ranks see a checkpoint.
    """
    damaged: list[Path] = []
    for candidate in (path, _before(path)):
        if not _all_see(candidate):
            continue
        files = [candidate] if candidate.is_file() else sorted(candidate.iterdir())
        own = files[parallel.rank() :: parallel.size()]
        if all(parallel.gather([all(map(is_sound, own))])) and all(parallel.gather([_shapes(candidate) == shapes])):
            if damaged and parallel.is_main():
                remove(path)  # or the next save would put it in the place of the sound one
            return candidate, damaged
        damaged.append(candidate)
    return None, damaged


def load_state(path: Path, model: PreTrainedModel) -> dict[str, Any]:
    """The state saved at `path`, which must be sound. For a sharded `model`, tensors that were sharded are resharded
    over the current ranks. Every rank must call this."""
    if path.is_file():
        # Memory-mapped: a rank of a sharded model reads only its own part, and none holds the whole file.
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    stored = _tensors(dcp.FileSystemReader(path).read_metadata())
    parts = {name: sharding.room(model, kind.size, kind.properties.dtype) for name, kind in stored.items()}
    with _together(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a single process can read too
        dcp.load(parts, storage_reader=dcp.FileSystemReader(path), no_dist=parallel.size() == 1)
    return sharding.join(torch.load(path / _REST, weights_only=True, map_location="cpu"), parts)


def devices(state: Any) -> list[str]:
    """The type of device of each tensor in nested values."""
    return [tensor.device.type for tensor in tree_leaves(state) if isinstance(tensor, torch.Tensor)]


def put_back(state: Any, devices: list[str], device: torch.device) -> Any:
    """Nested values as loaded, with the tensors on `device` that were not on the CPU when `devices` was asked."""
    types = iter(devices)
    return tree_map_only(torch.Tensor, lambda each: each if next(types) == "cpu" else each.to(device), state)


def _save_directory(rest: dict[str, Any], parts: Mapping[str, torch.Tensor], path: Path) -> None:
    with whole_directory(path) if parallel.is_main() else nullcontext() as made:
        folder = Path(parallel.gather([str(made)])[0])
        _all_see(folder)
        with _together():
            dcp.save(dict(parts), storage_writer=dcp.FileSystemWriter(folder))
        for part in folder.glob(f"__{parallel.rank()}_*.distcp"):
            seal(part)
        if parallel.is_main():
            seal(folder / _METADATA)
            _write_tensors(rest, folder / _REST)
        parallel.gather([])
        if parallel.is_main():
            _set_aside(path)


def _all_see(path: Path) -> bool:
    """Whether `path` exists. Raises UserError if only some ranks see it."""
    seen = parallel.gather([path.exists()])
    if any(seen) and not all(seen):
        raise UserError(f"not every process sees {path}: put the output in a directory that all processes share")
    return seen[0]


def _shapes(path: Path) -> dict[str, torch.Size] | None:
    """The shapes of the weights in a sound checkpoint; None if a part of it is missing."""
    if path.is_file():
        weights = torch.load(path, weights_only=True, map_location="meta")["model"]
        return {name: weight.shape for name, weight in weights.items()}
    if not ((path / _METADATA).exists() and (path / _REST).exists()):
        return None
    metadata = dcp.FileSystemReader(path).read_metadata()
    if any(not (path / place.relative_path).exists() for place in metadata.storage_data.values()):
        return None
    stored = _tensors(metadata).items()
    return {name.removeprefix("model."): kind.size for name, kind in stored if name.startswith("model.")}


def _tensors(metadata: dcp.Metadata) -> dict[str, dcp.TensorStorageMetadata]:
    described = metadata.state_dict_metadata.items()
    return {name: kind for name, kind in described if isinstance(kind, dcp.TensorStorageMetadata)}


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}.before{path.suffix}")


def _set_aside(path: Path) -> None:
    if not path.exists():
        return
    before = _before(path)
    if before.exists() and (before.is_dir() or path.is_dir()):  # a file replaces a file
        remove(before)
    path.replace(before)


def _write_tensors(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)
    seal(path)


@contextmanager
def _together() -> Iterator[None]:
    """Raise one rank's error on every rank."""
    try:
        with parallel.in_touch():
            yield
    except dcp.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
