"""The world that a configuration names."""

import dataclasses
from pathlib import Path
from typing import Any

from iapo_bench.config import WorldConfig
from iapo_bench.errors import unknown
from iapo_bench.worlds import Problem, World
from iapo_bench.worlds.datasets.micro import MicroWorld
from iapo_bench.worlds.text import TextWorld


def load_world(config: WorldConfig, seed: int) -> World:
    """The world of a tier. Raises UserError for an option that it does not have."""
    if config.name == "micro":
        known = {field.name for field in dataclasses.fields(MicroWorld)} - {"seed"}
        for option in config.options:
            if option not in known:
                raise unknown("option of the micro world", option, known)
        options: dict[str, Any] = dict(config.options)
        return MicroWorld(**options, seed=seed)
    for option in config.options:
        raise unknown(f"option of {config.name}", option, ())
    return TextWorld(config.name, Path(config.data_dir) if config.data_dir else None, config.splits)


def load_held_out(config: WorldConfig) -> dict[str, list[Problem]]:
    """The benchmarks that a tier keeps out of its training problems, by dataset."""
    folder = Path(config.data_dir) if config.data_dir else None
    return {name: TextWorld(name, folder).benchmark() for name in config.held_out}
