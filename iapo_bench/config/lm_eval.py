"""Measurements through lm-eval: the `lm_eval` section."""

from typing import Annotated, Literal

from pydantic import Field

from iapo_bench.config.model import Dtype
from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import FREE, Positive, Section
from iapo_bench.config.world import WorldConfig


class LmEvalConfig(Section):
    """What is measured through lm-eval: the tier's own test problems always, and standard tasks."""

    tasks: list[str] = Field(default=[], description="lm-eval's names of tasks that training may have harmed")
    limit: Positive | None = Field(default=None, description="problems per task, from the first; null: all")
    backend: Literal["hf", "vllm"] = Field(default="hf", description="the engine that generates")
    batch_size: Positive = Field(
        default=16,
        description="batch size of standard tasks with hf; the tier's own task uses evaluate.batch_size",
        json_schema_extra=FREE,
    )


class LmEvalJob(Section):
    """What `lm-eval` reads, besides a model and the test problems."""

    lm_eval: LmEvalConfig = Field(description="tasks and backend")
    max_tokens: Positive = Field(description="limit on completion tokens of the tier's own task")
    problems: Positive | None = Field(default=None, description="test problems, from the first; null: all")
    batch_size: Positive = Field(description="completions of the tier's task generated at once", json_schema_extra=FREE)
    engine_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of the GPU's memory that vllm may take", json_schema_extra=FREE
    )
    engine_deterministic: bool = Field(default=False, description="vllm's batch-invariant kernels")
    world: WorldConfig = Field(description="the problems' world, for prompts and the grader")
    world_seed: int = Field(description="seed of the world and its splits")
    prompt: PromptConfig = Field(default=PromptConfig(), description="how problems are put to the model")
    dtype: Dtype = Field(description="dtype of the weights")
