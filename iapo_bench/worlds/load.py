"""The world that a configuration names."""

from pathlib import Path
from typing import Any

from iapo_bench.config.world import WorldConfig
from iapo_bench.plugins import list_datasets, load_class
from iapo_bench.worlds import Problem, World


def load_world(config: WorldConfig, seed: int) -> World:
    """The world of a tier. Raises UserError for an option that it does not have."""
    return _dataset(config.name).open(config, seed)


def load_held_out(config: WorldConfig) -> dict[str, list[Problem]]:
    """The benchmarks that a tier keeps out of its training problems, by dataset."""
    folder = Path(config.data_dir) if config.data_dir else None
    return {name: _dataset(name)(folder).benchmark() for name in config.held_out}


def _dataset(name: str) -> Any:
    return load_class(list_datasets()[name], object, name)
