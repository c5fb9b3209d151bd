"""The search on the validation split, and a grid over two options: the `tune` and `sensitivity` sections."""

from typing import Annotated

from pydantic import Field, model_validator

from iapo_bench.config.method import Candidate
from iapo_bench.config.report import Labels
from iapo_bench.config.section import Options, Positive, Section


class TuneConfig(Section):
    """The search on the validation split: the same number of trials for every method."""

    n_samples: Positive = Field(default=16, description="samples per validation problem")
    k: Positive = Field(default=16, description="trials are compared by Ratio@k, held to the base's Pass@k")
    seed: int = Field(default=7, description="training and sampling seed of every trial")
    tolerance: Annotated[float, Field(ge=0)] = Field(
        default=0.02, description="largest loss of validation Pass@k against the base that a chosen trial may have"
    )
    candidates: dict[str, Annotated[list[Candidate], Field(min_length=1)]] = Field(
        default={}, description="the trials of a method on this tier, in place of configs/methods/METHOD.yaml"
    )

    @model_validator(mode="after")
    def _samples_for_k(self) -> "TuneConfig":
        if self.k > self.n_samples:
            raise ValueError(f"k = {self.k} needs at least as many samples, not n_samples = {self.n_samples}")
        return self


class TuneJob(Section):
    """What the choice of settings reads, besides the grades of every trial."""

    k: Positive = Field(description="trials are compared by Ratio@k")
    tolerance: float = Field(description="how far Pass@k may fall below the base's")
    seed: int = Field(description="seed of every trial")
    trials: dict[str, list[Options]] = Field(description="what each trial of each method changes")
    completions: Positive = Field(description="budget of a trial")
    labels: Labels = Field(description="what all trials share")


class SensitivityConfig(Section):
    """A grid over two options of a method, every point trained with the table's budget and measured as in tuning."""

    method: str = Field(description="the method, an entry of `methods`")
    grid: Annotated[dict[str, Annotated[list[float | int], Field(min_length=1)]], Field(min_length=2, max_length=2)] = (
        Field(description="two options and their values; the second varies fastest")
    )

    def points(self) -> list[dict[str, int | float]]:
        """The options of every point; the second option varies fastest."""
        (first, xs), (second, ys) = self.grid.items()
        return [{first: x, second: y} for x in xs for y in ys]


class SensitivityJob(Section):
    """What the sensitivity table reads, besides the grades of every point."""

    k: Positive = Field(description="the k of the measures")
    tolerance: float = Field(description="how far Pass@k may fall below the base's in the point that is framed")
    sensitivity: SensitivityConfig = Field(description="the grid")
    labels: Labels = Field(description="what all points share")
