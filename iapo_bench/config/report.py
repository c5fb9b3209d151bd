"""Settings of tables and figures, and the labels of their rows."""

from typing import Annotated

from pydantic import Field

from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import FREE, Options, Positive, Section
from iapo_bench.config.world import WorldConfig

BASE = "base"


def is_base(name: str) -> bool:
    """Whether a row is the untrained model, or made of its samples."""
    return name == BASE or name.startswith(f"{BASE}_")


def refused_row(name: str) -> str:
    """Why no row can have this name; empty if one can."""
    if is_base(name):
        return "is reserved for the untrained model: give the method another name"
    if name in ("", ".", "..", "data") or set(name) & set("/{}") or not name.isprintable():
        return "cannot name a folder of results: give the row another name"
    return ""


class Labels(Section):
    """Labels that all rows of a table share."""

    tier: str = Field(description="the tier's name")
    model: str = Field(description="the model's name")
    dataset: str = Field(description="the dataset's name")


class RowJob(Section):
    """What the summary of one row reads, besides grades."""

    labels: Labels = Field(description="what all rows share")
    method: str = Field(description="the row's name: a method, a variant, or 'base'")
    parent: str = Field(description="the method behind a variant; otherwise the row's own")
    profile: str = Field(default="", description="the method's profile; empty for the base")
    selection: str = Field(default="", description="how the row's settings were chosen; empty for the base")
    settings: Options = Field(default={}, description="what decided the row, except its training seeds")
    ks: Annotated[list[Positive], Field(min_length=1)] = Field(description="the ks of Pass@k, Length@k and Ratio@k")


class CostsJob(Section):
    """What the table of costs reads, besides summaries and training logs."""

    trials: dict[str, int] = Field(description="trials of each method on validation; 0 where nothing was tuned")
    completions: Positive = Field(description="budget of a trial, in completions")


class TokensJob(Section):
    """What scoring the tokens of a run's own completions reads."""

    world: WorldConfig = Field(description="the problems' world")
    world_seed: int = Field(description="seed of the world and its splits")
    dtype: str = Field(description="dtype of the weights")
    temperature: float = Field(description="sampling temperature of rollouts")
    micro_batch_tokens: Positive = Field(description="padded tokens per pass", json_schema_extra=FREE)


class CalibrationJob(TokensJob):
    """What the calibration of early answers reads, besides the base and its samples."""

    labels: Labels = Field(description="what the table and the figure call the base and its problems")


class RolesJob(Section):
    """What the tables of token roles read, besides the scores and samples of every run."""

    labels: Labels = Field(description="what all rows share")
    world: WorldConfig = Field(description="the problems' world")
    world_seed: int = Field(description="seed of the world and its splits")


class ProtocolJob(Section):
    """What the comparison of protocols reads, besides runs and problems."""

    labels: Labels = Field(description="what all rows share")
    world: WorldConfig = Field(description="the problems' world, for prompts and the grader")
    prompt: PromptConfig = Field(description="how problems are put to a chat model")
    world_seed: int = Field(description="seed of the world and its splits")
    k: Positive = Field(description="the k of Pass@k")
