"""Resources that jobs request from a machine or a cluster: the `job` section."""

from typing import Annotated, Literal

from pydantic import Field

from iapo_bench.config.section import FREE, Positive, Section

Kind = Literal["prepare", "base", "train", "sample", "grade", "lm_eval"]
# Those that load the model.
LARGE: tuple[Kind, ...] = ("base", "train", "sample", "lm_eval")


class JobRequest(Section):
    """What one kind of job asks for; null: what jobs of its size do."""

    mem_mb: Positive | None = Field(default=None, description="main memory, MB", json_schema_extra=FREE)
    runtime: Positive | None = Field(default=None, description="limit in minutes", json_schema_extra=FREE)
    cpus: Positive | None = Field(default=None, description="CPU cores, and torch's threads", json_schema_extra=FREE)


class BaseRequest(JobRequest):
    """What the making of the base asks for: one job, which all others wait for."""

    cpus: Positive | None = Field(default=4, description="CPU cores, and torch's threads", json_schema_extra=FREE)


class JobConfig(Section):
    """What jobs ask for, beside their GPUs. The first three: of jobs that load the model."""

    mem_mb: Positive = Field(default=4000, description="main memory, MB", json_schema_extra=FREE)
    runtime: Positive = Field(
        default=60,
        description="limit in minutes; training goes on where a job was stopped",
        json_schema_extra=FREE,
    )
    cpus: Positive = Field(default=1, description="CPU cores, and torch's threads", json_schema_extra=FREE)
    prepare: JobRequest = Field(default=JobRequest(), description="the problems")
    base: BaseRequest = Field(default=BaseRequest(), description="the base model, fetched or taught")
    train: JobRequest = Field(default=JobRequest(), description="training, all processes together")
    sample: JobRequest = Field(default=JobRequest(), description="sampling, and scores of tokens")
    grade: JobRequest = Field(default=JobRequest(), description="grading")
    lm_eval: JobRequest = Field(default=JobRequest(), description="lm-eval")


class Request(Section):
    """What a job asks for."""

    gpus: Annotated[int, Field(ge=0)]
    cpus: Positive
    mem_mb: Positive
    runtime: Positive

    @property
    def resources(self) -> dict[str, int]:
        """As Snakemake calls them, but for cores. It would cut a request for `gpu` to what it may hand out; `lease` is
        the number that the job takes."""
        return {"gpu": self.gpus, "lease": self.gpus, "mem_mb": self.mem_mb, "runtime": self.runtime}


# Tables and figures ask for what the profile says of all jobs.
SMALL = Request(gpus=0, cpus=1, mem_mb=4000, runtime=60)
