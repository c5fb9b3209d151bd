"""Credit: what a method decides, how much of the reward each token gets."""

from dataclasses import dataclass
from typing import Any

import torch

from iapo_bench.batch import RolloutBatch, as_mask


@dataclass(frozen=True)
class Credit:
    """Advantages and loss weights, float32 (B, T).

    A token with weight 0 leaves both the loss and its normaliser; one with weight 1 and advantage 0 stays in the
    normaliser. `counted_B`: bool (B,), the rows that a mean over rows counts; by default those with any weight, so that
    rows that a method drops leave the mean.
    """

    advantages_BT: torch.Tensor
    weights_BT: torch.Tensor
    counted_B: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> "Credit":
        """The credit of the rows `index`."""
        counted_B = None if self.counted_B is None else self.counted_B[index]
        return Credit(self.advantages_BT[index], self.weights_BT[index], counted_B)

    def validate(self, batch: RolloutBatch) -> "Credit":
        """Check type, shape, dtype, device and finiteness against the batch; return self. Raises ValueError."""
        mask_BT = batch.completion_mask_BT
        for name in ("advantages_BT", "weights_BT"):
            require_tensor(name, getattr(self, name), mask_BT.shape, torch.float32, mask_BT.device)
        if (self.weights_BT < 0).any():
            raise ValueError("weights_BT holds a negative number")
        if self.weights_BT[~mask_BT].any():
            raise ValueError("weights_BT is not 0 at padding")
        if self.counted_B is not None:
            require_tensor("counted_B", self.counted_B, mask_BT.shape[:1], torch.bool, mask_BT.device)
            if self.weights_BT[~self.counted_B].any():
                raise ValueError("counted_B is False for a row with non-zero weights")
        return self


def assign(
    advantages: torch.Tensor,
    batch: RolloutBatch,
    weights: torch.Tensor | None = None,
    *,
    counted: torch.Tensor | None = None,
) -> Credit:
    """The credit with these advantages, (B, T) or one per row (B,), and exact zeros at padding.

    `weights`: a mask (B, T) or (B, 1), bool or integers of 0 and 1, the tokens that count in the loss; without it, all
    real tokens do. `counted`: see `Credit.counted_B`. Raises ValueError for any other shape or mask.
    """
    mask_BT = batch.completion_mask_BT
    if not isinstance(advantages, torch.Tensor):
        raise ValueError(f"advantages must be a tensor, is {type(advantages).__name__}")
    (B, T), shape = mask_BT.shape, tuple(advantages.shape)
    if shape not in ((B,), (B, 1), (B, T)):
        raise ValueError(f"advantages have shape {shape}, expected ({B},), one per row, or ({B}, {T}), one per token")
    if weights is not None and tuple(weights.shape) not in ((B, 1), (B, T)):
        raise ValueError(f"weights have shape {tuple(weights.shape)}, expected ({B}, 1) or ({B}, {T})")
    advantages_BT = advantages[:, None] if advantages.dim() == 1 else advantages
    weights_BT = mask_BT if weights is None else mask_BT & as_mask(weights, "weights")
    return Credit(torch.where(mask_BT, advantages_BT, 0.0).float().detach(), weights_BT.float(), counted)


def require_tensor(name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError unless `value` is a finite tensor of this shape, dtype and device, without a gradient."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, is {type(value).__name__}")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
    if value.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, is {value.dtype}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the batch on {device}")
    if value.requires_grad:
        raise ValueError(f"{name} has a gradient: detach it")
    if not value.isfinite().all():
        raise ValueError(f"{name} contains NaN or infinity")
