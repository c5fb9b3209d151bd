"""Source of the problems: the `world` section."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from iapo_bench.config.section import FREE, Section, slug
from iapo_bench.errors import unknown
from iapo_bench.plugins import list_datasets

OWN_FORMATS = (".jsonl", ".csv", ".parquet")


class WorldConfig(Section):
    """Where the problems come from."""

    file: str | None = Field(
        default=None,
        description="your own problems in place of a dataset: JSONL, CSV or parquet with the columns question, answer "
        "and, optionally, solution and split",
        json_schema_extra=FREE,  # its content counts (see `files` of the jobs), not its path
    )
    name: str = Field(
        default="",
        description="the dataset: a file of iapo_bench/worlds/datasets, without .py; or the name of world.file in "
        "tables",
    )
    golds: Literal["integer", "math"] | None = Field(
        default=None, description="kind of the answers in world.file; by default detected"
    )
    data_dir: str | None = Field(
        default=None,
        description="directory of the dataset's JSONL files; without it, they come from the hub",
        json_schema_extra=FREE,  # its content counts (see `files` of the jobs), not its path
    )
    options: dict[str, float | int] = Field(
        default={},
        description="options of the dataset, such as micro's sizes; for world.file, the shares `test` and `validation` "
        "and the `seed` of splits that the file does not give",
    )
    splits: Literal["honest", "published"] = Field(
        default="honest",
        description="published: the splits of the paper's code, whose validation is the test split; for comparison "
        "only",
    )
    held_out: list[str] = Field(
        default=[], description="datasets whose test problems are kept out of the training problems too"
    )

    @model_validator(mode="before")
    @classmethod
    def _file_names_itself(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("file"), str) and not value.get("name"):
            return {**value, "name": slug(Path(value["file"]).stem)}
        return value

    @field_validator("name", "held_out")
    @classmethod
    def _exists(cls, value: Any, info: ValidationInfo) -> Any:
        own = info.field_name == "name" and info.data.get("file")
        for name in [] if own else [value] if isinstance(value, str) else value:
            if name not in list_datasets():
                raise ValueError(str(unknown("dataset", name, list_datasets())))
        return value

    @model_validator(mode="after")
    def _dataset_or_file(self) -> "WorldConfig":
        if self.file is None:
            if not self.name:
                raise ValueError("set 'name' to a dataset, or 'file' to a file of problems")
            if self.golds:
                raise ValueError(f"golds applies only to world.file: leave it out for {self.name}")
            return self
        if self.name != slug(self.name):
            raise ValueError(f"'{self.name}' cannot name a folder: use lower-case letters, digits, '-' or '_'")
        if self.data_dir or self.splits != "honest":
            raise ValueError(
                f"{'data_dir' if self.data_dir else 'splits'} applies to a dataset, not to world.file: leave it out"
            )
        return self


class PrepareJob(Section):
    """What `prepare` reads."""

    world: WorldConfig = Field(description="where the problems come from")
    seed: int = Field(description="seed of generated problems")
    files: dict[str, str] = Field(default={}, description="SHA-256 of each local file of problems")
