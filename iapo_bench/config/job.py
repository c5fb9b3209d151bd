"""Resources that jobs request from a machine or a cluster: the `job` section."""

from typing import Annotated, Literal

from pydantic import Field

from iapo_bench.config.section import FREE, Positive, Section

Kind = Literal["prepare", "base", "train", "sample", "grade", "lm_eval"]
# Kinds that load the model.
LARGE: tuple[Kind, ...] = ("base", "train", "sample", "lm_eval")


class JobRequest(Section):
    """Resources that one kind of job requests; null: the default for jobs of its size."""

    mem_mb: Positive | None = Field(default=None, description="main memory, MB", json_schema_extra=FREE)
    runtime: Positive | None = Field(default=None, description="limit in minutes", json_schema_extra=FREE)
    cpus: Positive | None = Field(default=None, description="CPU cores, and torch's threads", json_schema_extra=FREE)


class BaseRequest(JobRequest):
    """Resources for making the base: one job, for which all others wait."""

    cpus: Positive | None = Field(default=4, description="CPU cores, and torch's threads", json_schema_extra=FREE)


class JobConfig(Section):
    """Resources that jobs request, besides GPUs. The first three apply to jobs that load the model."""

    mem_mb: Positive = Field(default=4000, description="main memory, MB", json_schema_extra=FREE)
    runtime: Positive = Field(
        default=60,
        description="limit in minutes; training resumes where a job was stopped",
        json_schema_extra=FREE,
    )
    cpus: Positive = Field(default=1, description="CPU cores, and torch's threads", json_schema_extra=FREE)
    prepare: JobRequest = Field(default=JobRequest(), description="the problems")
    base: BaseRequest = Field(default=BaseRequest(), description="the base model, fetched or taught")
    train: JobRequest = Field(default=JobRequest(), description="training, all processes together")
    sample: JobRequest = Field(default=JobRequest(), description="sampling, and scoring of tokens")
    grade: JobRequest = Field(default=JobRequest(), description="grading")
    lm_eval: JobRequest = Field(default=JobRequest(), description="lm-eval")


class Request(Section):
    """The resources that a job requests."""

    gpus: Annotated[int, Field(ge=0)]
    cpus: Positive
    mem_mb: Positive
    runtime: Positive

    @property
    def resources(self) -> dict[str, int]:
        """Snakemake's resources, without cores. Snakemake caps `gpu` at what is available; `lease` keeps the number of
        GPUs that the job takes. `nodes`: Slurm would spread several GPUs over several."""
        return {"gpu": self.gpus, "lease": self.gpus, "mem_mb": self.mem_mb, "runtime": self.runtime, "nodes": 1}


# Jobs that do not load the model. Tables and figures get the default resources of the Snakemake profile.
SMALL = Request(gpus=0, cpus=1, mem_mb=4000, runtime=60)
