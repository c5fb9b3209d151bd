"""Settings of the `time` command."""

from pydantic import Field

from iapo_bench.config.evaluate import SampleJob
from iapo_bench.config.report import Labels
from iapo_bench.config.section import Positive, Section
from iapo_bench.config.train import TrainJob


class TimingJob(Section):
    """What the timing of rows reads: a short sampling for all, a short training for each method."""

    labels: Labels = Field(description="what all rows share")
    sample: SampleJob = Field(description="the sampling that is timed")
    train: dict[str, TrainJob] = Field(description="the training that is timed, by method")
    rounds: Positive = Field(default=5, description="how often every row is timed")
