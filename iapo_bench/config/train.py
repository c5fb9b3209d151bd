"""How a method is trained: the `train` section."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from iapo_bench.config.lora import LoraConfig
from iapo_bench.config.model import Dtype, Engine
from iapo_bench.config.profiles import Profile
from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import FREE, Options, Positive, Section
from iapo_bench.config.world import WorldConfig
from iapo_bench.errors import unknown
from iapo_bench.plugins import list_methods, list_rewards

LrSchedule = Literal["constant", "linear"]
TrainGrader = Literal["world", "exact"]
FormatRule = Literal["tags", "one_line"]
Tracker = Literal["tensorboard", "trackio", "wandb"]
_MOST_SEEDS = 10_000
# Monitoring switched off, for runs that are not results.
UNWATCHED: dict[str, Any] = {"report_to": [], "validate_every": None, "keep_rollouts": []}


class TrainConfig(Section):
    """One budget for every method. A method may change it only where its tuned or own settings say so."""

    completions: Positive = Field(description="budget: completions that a method may generate in total")
    prompts_per_step: Positive = Field(default=32, description="prompts per step")
    group_size: Positive = Field(default=8, description="completions per prompt, which are compared with each other")
    max_tokens: Positive = Field(description="limit on completion tokens")
    temperature: Annotated[float, Field(gt=0)] = Field(default=1.0, description="sampling temperature of rollouts")
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-6, description="learning rate of AdamW")
    lr_schedule: LrSchedule = Field(default="constant", description="linear: the learning rate falls to 0 over the run")
    updates_per_rollout: Positive = Field(default=1, description="optimiser steps on each step's completions")
    clip_norm: Annotated[float, Field(gt=0)] = Field(default=1.0, description="limit on the norm of the gradient")
    grader: TrainGrader = Field(
        default="world", description="grader of the rewards: the world's, or exact strings, as released"
    )
    format_rule: FormatRule = Field(
        default="tags",
        description="which completions keep the format; one_line: no newline in the thoughts, as released",
    )
    max_draws: Positive = Field(
        default=4, description="rounds of new prompts that dynamic sampling may ask for in a step"
    )
    importance_cap: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="truncated importance sampling: weigh tokens by the ratio of the trainer's to the engine's "
        "probability, capped at this; 2 is usual",
    )
    answer_stride: Positive = Field(
        default=1, description="tokens between readings of the answer's entropy; 1 is exact"
    )
    skip_answer: bool = Field(default=False, description="skip answer-entropy readings after </think>")
    lora: LoraConfig | None = Field(
        default=None, description="train LoRA adapters beside frozen weights; saved weights have them merged in"
    )
    problems: Positive | None = Field(default=None, description="training problems, from the first; null: all")
    rewards: Annotated[dict[str, float], Field(min_length=1)] = Field(
        default={"correct": 1.0},
        description="rewards of training: files of rewards/, each with its weight; `correct` is the task's "
        "own, +1 or -1",
    )
    engine: Engine = Field(default="transformers", description="the engine that generates completions")
    engine_deterministic: bool = Field(
        default=False,
        description="vllm's batch-invariant kernels: a completion does not depend on its batch; slower; needs a GPU of "
        "compute capability 9.0",
    )
    engine_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.4,
        description="share of the GPU's memory that the vllm engine may take beside the trainer",
        json_schema_extra=FREE,
    )
    micro_batch_tokens: Positive = Field(
        default=4096, description="padded tokens per pass with gradients; bounds memory", json_schema_extra=FREE
    )
    rollout_batch_size: Positive = Field(
        default=256, description="completions generated at once; bounds memory", json_schema_extra=FREE
    )
    sharded: bool = Field(
        default=False,
        description="shard weights, gradients and optimiser state over several processes (FSDP2)",
        json_schema_extra=FREE,
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations in the backward pass instead of keeping them: slower, less memory",
        json_schema_extra=FREE,
    )
    checkpoint_every: Positive = Field(default=10, description="steps between checkpoints", json_schema_extra=FREE)
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        default=0,
        description="minimum minutes between checkpoints, for models whose checkpoints take long to write",
        json_schema_extra=FREE,
    )
    report_to: list[Tracker] = Field(
        default=[],
        description="log the numbers of each row of train.jsonl to these as well, under the same names; each needs its "
        "extra of pyproject.toml",
        json_schema_extra=FREE,
    )
    validate_every: Positive | None = Field(
        default=None,
        description="steps between measurements of accuracy and length on validation problems; the last step is "
        "measured too; no choice depends on them; null: none",
        json_schema_extra=FREE,
    )
    validate_problems: Positive = Field(
        default=64,
        description="number of validation problems, from the first, one completion each",
        json_schema_extra=FREE,
    )
    keep_rollouts: list[Annotated[int, Field(ge=0)]] = Field(
        default=[],
        description="steps, from 0, whose completions are kept in rollouts/, with the advantage of every token",
        json_schema_extra=FREE,
    )
    seeds: Annotated[list[int], Field(min_length=1)] = Field(
        default=[0],
        description="training seeds, one run each; a number n stands for 0 to n - 1",
        json_schema_extra=FREE,  # changes which runs exist, not what a run does
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_is_a_range(cls, value: Any) -> Any:
        if type(value) is int and value > 0:
            if value > _MOST_SEEDS:
                raise ValueError(f"at most {_MOST_SEEDS} seeds, not {value}")
            return list(range(value))
        if not isinstance(value, list):
            raise ValueError(f"must be a number of seeds (3 means 0, 1 and 2) or a list of seeds, not '{value}'")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value) or min(value) < 0:
            raise ValueError(f"training seeds must be distinct and not negative, are {value}")
        return value

    @field_validator("rewards")
    @classmethod
    def _rewards_exist(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value.keys() - list_rewards().keys():
            raise ValueError(str(unknown("reward", name, list_rewards())))
        return value

    @model_validator(mode="after")
    def _a_group_at_least(self) -> "TrainConfig":
        if self.completions < self.group_size:
            raise ValueError(f"completions = {self.completions} is less than one group of {self.group_size}: raise it")
        return self

    @model_validator(mode="after")
    def _an_engine_that_can(self) -> "TrainConfig":
        if self.engine_deterministic and self.engine != "vllm":
            raise ValueError("engine_deterministic needs engine: vllm")
        return self

    @model_validator(mode="after")
    def _one_way_to_save_memory(self) -> "TrainConfig":
        if self.sharded and self.lora:
            raise ValueError("sharded and lora cannot be combined: set only one of them (adapters are small)")
        return self


class MethodChoice(Section):
    """A method as it is trained: its name, profile and options."""

    name: str = Field(description="a file of methods/ or baselines/, without .py")
    profile: Profile = Field(default="paper", description="the equations, or the released code")
    options: Options = Field(default={}, description="fields of the method's class")


class TrainJob(Section):
    """Everything that decides one training run, and nothing that belongs to another."""

    method: MethodChoice = Field(description="what is trained")
    train: TrainConfig = Field(description="how it is trained")
    world: WorldConfig = Field(description="the problems' world, for prompts and the grader")
    prompt: PromptConfig = Field(default=PromptConfig(), description="how problems are put to the model")
    dtype: Dtype = Field(description="dtype of weights and gradients")
    world_seed: int = Field(description="seed of the world and its splits")
    seed: int = Field(description="seed of data order, sampling and the method's own random draws")
    gpus: int = Field(default=0, description="processes, one GPU each", json_schema_extra=FREE)

    @property
    def plugins(self) -> list[Path]:
        """The files of the method and of the rewards."""
        return [list_methods()[self.method.name], *(list_rewards()[name] for name in self.train.rewards)]
