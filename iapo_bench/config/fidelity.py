"""Settings of the table of departures."""

from pydantic import Field

from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.report import Labels
from iapo_bench.config.section import Options, Section
from iapo_bench.config.train import TrainConfig
from iapo_bench.config.world import WorldConfig


class FidelityJob(Section):
    """What the comparison with the released code reads, besides a model, problems and summaries."""

    labels: Labels = Field(description="what all rows share")
    train: TrainConfig = Field(description="how rollouts are drawn")
    world: WorldConfig = Field(description="the problems' world")
    prompt: PromptConfig = Field(description="how problems are put to a chat model")
    world_seed: int = Field(description="seed of the world and its splits")
    dtype: str = Field(description="dtype of the weights")
    methods: dict[str, Options] = Field(description="methods to compare, each with its options under `paper`")
    departed: dict[str, str] = Field(description="variants that were trained, each with the departure that it follows")
