"""Settings of one method: an entry of `methods` or `ablations`, or a trial of the search."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from iapo_bench.config.profiles import Profile
from iapo_bench.config.section import Options, Positive, Section
from iapo_bench.config.train import FormatRule, LrSchedule, TrainGrader

Selection = Literal["validation", "published", "by hand", "defaults"]


class MethodConfig(Section):
    """Options of a method's class and changes to the `train` section."""

    method: str | None = Field(
        default=None, description="the method that this entry is a variant of; by default the entry's own name"
    )
    checkpoint: str | None = Field(
        default=None,
        description="a model that is measured and not trained: a hub id with optional '@REVISION', or a directory",
    )
    subfolder: str | None = Field(default=None, description="the model's folder in the checkpoint's repository")
    profile: Profile = Field(default="paper", description="the equations, or the released code")
    lr: Annotated[float, Field(gt=0)] | None = Field(default=None, description="in place of train.lr")
    updates_per_rollout: Positive | None = Field(default=None, description="in place of train.updates_per_rollout")
    lr_schedule: LrSchedule | None = Field(default=None, description="in place of train.lr_schedule")
    grader: TrainGrader | None = Field(default=None, description="in place of train.grader")
    format_rule: FormatRule | None = Field(default=None, description="in place of train.format_rule")
    options: Options = Field(default={}, description="fields of the method's class")
    selection: Selection | None = Field(
        default=None, description="source of these settings, if it differs from the tier's `selection`"
    )

    @model_validator(mode="after")
    def _measured_or_trained(self) -> "MethodConfig":
        if self.checkpoint is None and self.subfolder is not None:
            raise ValueError("subfolder needs a checkpoint: set 'checkpoint', or leave subfolder out")
        if self.checkpoint is not None and self.model_fields_set - {"checkpoint", "subfolder"}:
            other = min(self.model_fields_set - {"checkpoint", "subfolder"})
            raise ValueError(f"a checkpoint is not trained: leave {other} out, or drop the checkpoint")
        return self


class Candidate(Section):
    """A trial of the search: changes to one method, the learning rate as a multiple of the tier's."""

    lr_times: Annotated[float, Field(gt=0)] = Field(default=1.0, description="learning rate, times train.lr")
    updates_per_rollout: Positive | None = Field(default=None, description="in place of train.updates_per_rollout")
    options: Options = Field(default={}, description="fields of the method's class")
