"""What a job asks of a machine or a cluster: the `job` section."""

from pydantic import Field

from iapo_bench.config.section import FREE, Positive, Section


class JobConfig(Section):
    """What a training, sampling or scoring job asks a cluster for, beside its GPUs; without one, nothing."""

    mem_mb: Positive = Field(default=4000, description="main memory, MB", json_schema_extra=FREE)
    runtime: Positive = Field(
        default=60,
        description="limit in minutes; training goes on where a job was stopped",
        json_schema_extra=FREE,
    )
