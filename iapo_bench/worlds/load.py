"""The world that a configuration names."""

from pathlib import Path
from typing import Any

from iapo_bench.config.world import WorldConfig
from iapo_bench.plugins import OWN_DATASET, list_datasets, load_class
from iapo_bench.worlds import Problem, World
from iapo_bench.worlds.text import ChatWorld


def load_world(config: WorldConfig, seed: int) -> World:
    """The world of a tier. Raises UserError for an unknown option."""
    return (_own() if config.file else _dataset(config.name)).open(config, seed)


def stated(config: WorldConfig, seed: int) -> WorldConfig:
    """The section with the kind of golds in a user's own file filled in, so that jobs need not read the file again.
    Raises UserError for an unknown option, and a file that is missing, damaged or named like a published dataset."""
    world = load_world(config, seed)
    return config if config.golds or not config.file else config.model_copy(update={"golds": world.grader})


def local_files(config: WorldConfig) -> list[Path]:
    """The local problem files of a section; none if the problems come from the hub or are generated."""
    if config.file:
        return [Path(config.file)]
    return sorted(Path(config.data_dir).glob("*.jsonl")) if config.data_dir else []


def source_files(config: WorldConfig) -> list[Path]:
    """The source files of a section's dataset and of its held-out benchmarks."""
    own = OWN_DATASET if config.file else list_datasets()[config.name]
    return [own, *(list_datasets()[name] for name in config.held_out)]


def load_published(config: WorldConfig, seed: int) -> World:
    """`load_world` for problems that will be trained on or measured. Raises UserError too if they differ from the
    published dataset of that name."""
    world = load_world(config, seed)
    if isinstance(world, ChatWorld):
        world.recognise()
    return world


def load_held_out(config: WorldConfig) -> dict[str, list[Problem]]:
    """The benchmark problems that a tier keeps out of training, by dataset. Raises UserError as `load_published`
    does."""
    folder = Path(config.data_dir) if config.data_dir else None
    benchmarks = {name: _dataset(name)(folder) for name in config.held_out}
    for benchmark in benchmarks.values():
        benchmark.recognise()
    return {name: benchmark.benchmark() for name, benchmark in benchmarks.items()}


def _own() -> Any:
    return load_class(OWN_DATASET, object, "own")


def _dataset(name: str) -> Any:
    return load_class(list_datasets()[name], object, name)
