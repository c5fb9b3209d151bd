"""AdamW in float32 for a model of any dtype."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from iapo_bench.models import sharding


class FullPrecisionAdamW(torch.optim.AdamW):
    """AdamW on float32 master copies of lower-precision weights, written back rounded after each step.

    In bfloat16 a step of 1e-6 would be lost in every weight above about 3e-4. Float32 weights are updated in place.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], **options: Any) -> None:
        self.weights = list(parameters)
        self.masters = [
            weight if weight.dtype == torch.float32 else torch.nn.Parameter(weight.detach().float())
            for weight in self.weights
        ]
        super().__init__(self.masters, **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from the gradients of the weights."""
        copies = [(w, m) for w, m in zip(self.weights, self.masters, strict=True) if m is not w]
        for weight, master in copies:
            master.grad = None if weight.grad is None else weight.grad.float()
        super().step()
        for weight, master in copies:
            weight.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the weights."""
        for weight in self.weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the master copies, which the rounded weights cannot restore."""
        copies = [m.detach() for w, m in zip(self.weights, self.masters, strict=True) if m is not w]
        return {**super().state_dict(), "masters": copies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`, for the same weights; full tensors are sharded where the weights are."""
        copies = [m for w, m in zip(self.weights, self.masters, strict=True) if m is not w]
        moments = {i: dict.fromkeys(("exp_avg", "exp_avg_sq"), weight) for i, weight in enumerate(self.weights)}
        state_dict = sharding.distribute(state_dict, {"state": moments, "masters": copies})
        with torch.no_grad():
            for master, saved in zip(copies, state_dict["masters"], strict=True):
                master.copy_(saved)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "masters"})


def make_optimizer(model: PreTrainedModel, lr: float) -> torch.optim.Optimizer:
    """AdamW over the trainable weights, in float32 for any dtype, with the betas of the IAPO paper and no weight decay.

    Frozen weights get no master copy.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return FullPrecisionAdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
