"""Adapters: the `train.lora` section."""

from typing import Annotated

from pydantic import Field

from iapo_bench.config.section import Positive, Section


class LoraConfig(Section):
    """Adapters on every linear layer but the output layer, trained instead of the weights."""

    rank: Positive = Field(default=16, description="rank of the adapters")
    alpha: Annotated[float, Field(gt=0)] = Field(default=32.0, description="adapters are scaled by alpha / rank")
