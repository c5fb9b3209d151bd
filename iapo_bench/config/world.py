"""Where the problems come from: the `world` section."""

from typing import Any, Literal

from pydantic import Field, field_validator

from iapo_bench.config.section import FREE, Section
from iapo_bench.errors import unknown
from iapo_bench.plugins import list_datasets


class WorldConfig(Section):
    """Where the problems come from."""

    name: str = Field(description="the dataset: a file of iapo_bench/worlds/datasets, without .py")
    data_dir: str | None = Field(
        default=None,
        description="directory of local JSONL files, read by content; without it, the hub",
        json_schema_extra=FREE,  # what lies in it counts (see `files` of the jobs), not where it lies
    )
    options: dict[str, float | int] = Field(default={}, description="options of the dataset, such as sizes of micro's")
    splits: Literal["honest", "published"] = Field(
        default="honest",
        description="published: the splits of the paper's code, whose validation is the test split; to compare only",
    )
    held_out: list[str] = Field(
        default=[], description="datasets whose test problems are kept out of the training problems too"
    )

    @field_validator("name", "held_out")
    @classmethod
    def _exists(cls, value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value:
            if name not in list_datasets():
                raise ValueError(str(unknown("dataset", name, list_datasets())))
        return value


class PrepareJob(Section):
    """What `prepare` reads."""

    world: WorldConfig = Field(description="where the problems come from")
    seed: int = Field(description="seed of problems that are made here")
    files: dict[str, str] = Field(default={}, description="SHA-256 of each file of world.data_dir")
