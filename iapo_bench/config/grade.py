"""Settings of grading."""

from pydantic import Field

from iapo_bench.config.section import Section
from iapo_bench.config.world import WorldConfig


class GradeJob(Section):
    """What `grade` reads, besides samples and the problems of a split."""

    world: WorldConfig = Field(description="the problems' world, for the grader")
    world_seed: int = Field(description="seed of the world and its splits")
    split: str = Field(default="test", description="train, validation or test")
