"""How checkpoints are sampled and measured: the `evaluate` section."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from iapo_bench.config.model import Dtype, Engine
from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import FREE, Positive, Section
from iapo_bench.config.world import OWN_FORMATS, WorldConfig


class EvalConfig(Section):
    """How checkpoints are sampled and measured."""

    ks: Annotated[list[Positive], Field(min_length=1)] = Field(
        default=[2, 4, 8, 16, 32],
        description="the ks of Pass@k, Length@k and Ratio@k",
        json_schema_extra=FREE,  # changes what is measured, not the samples
    )
    n_samples: Positive = Field(default=32, description="samples per problem and sampling seed")
    seeds: Annotated[list[int], Field(min_length=1)] = Field(default=[42, 142, 242], description="sampling seeds")
    max_tokens: Positive = Field(description="limit on completion tokens")
    temperature: Annotated[float, Field(ge=0)] = Field(default=1.0, description="0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="probability mass of nucleus sampling")
    batch_size: Positive = Field(
        default=256, description="completions generated at once; bounds memory", json_schema_extra=FREE
    )
    engine: Engine = Field(default="transformers", description="the engine that generates completions")
    engine_deterministic: bool = Field(
        default=False, description="as train's: vllm's batch-invariant kernels, for sampling and for lm-eval"
    )
    engine_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9, description="share of the GPU's memory that the vllm engine may take", json_schema_extra=FREE
    )
    also: list[WorldConfig] = Field(
        default=[],
        description="other datasets (names or files of problems) on whose test splits the models are measured too; "
        "each adds a part to the table",
        json_schema_extra=FREE,  # changes what else is measured
    )
    problems: Positive | None = Field(default=None, description="number of problems, from the first; null: all")

    @field_validator("also", mode="before")
    @classmethod
    def _names_and_files(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list):
            return value
        return [
            {"file" if Path(name).suffix in OWN_FORMATS else "name": name} if isinstance(name, str) else name
            for name in names
        ]

    @model_validator(mode="after")
    def _consistent(self) -> "EvalConfig":
        if self.n_samples < max(self.ks):
            raise ValueError(
                f"k={max(self.ks)} needs at least {max(self.ks)} samples a problem, n_samples is {self.n_samples}: "
                "raise n_samples or drop the larger ks"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"sampling seeds must differ, are {self.seeds}")
        if self.engine_deterministic and self.engine != "vllm":
            raise ValueError("engine_deterministic needs engine: vllm")
        return self


class SampleJob(Section):
    """What `sample` reads, besides a model and the problems of a split."""

    evaluate: EvalConfig = Field(description="how the model is sampled")
    world: WorldConfig = Field(description="the problems' world, for prompts")
    world_seed: int = Field(description="seed of the world and its splits")
    prompt: PromptConfig = Field(default=PromptConfig(), description="how problems are put to the model")
    dtype: Dtype = Field(description="dtype of the weights")
    split: str = Field(default="test", description="train, validation or test")
