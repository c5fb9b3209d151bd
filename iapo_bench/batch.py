"""A rollout as every method sees it: tensors, their shapes and padding.

Dimensions: N prompts, G completions each, B = N*G rows with a prompt's completions adjacent, P prompt width,
T completion width, S = T + 1 prefixes (0 to T completion tokens).
"""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch


class Noise(NamedTuple):
    """Rounding noise of a forward pass. A spread of at most this times max(1, largest magnitude) counts as zero: a
    z-score would blow it up to full size."""

    nats: float  # of entropies and their differences
    share: float  # of probabilities and shares, from 0 to 1


# The error of bfloat16 against float32 (SmolLM2-135M, 64 completions of 60 tokens) spreads over a completion by at most
# .82 nats in differences of answer entropies (median .43) and .11 in token probabilities.
SIGNAL_NOISE = {"float32": Noise(1e-5, 1e-5), "bfloat16": Noise(0.85, 0.12)}


def as_mask(mask: torch.Tensor, name: str, like: torch.Tensor | None = None) -> torch.Tensor:
    """The mask as bool, from bool or from integers 0 and 1, as tokenizers return them.

    Raises ValueError for anything else, which indexing would read as row numbers, and for a shape other than `like`'s.
    """
    for value, role in ((mask, name), (mask if like is None else like, f"what {name} masks")):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{role} must be a tensor, is {type(value).__name__}")
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(f"{name} must be bool or integers of 0 and 1, is {mask.dtype}")
    if like is not None and mask.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {tuple(like.shape)}")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{name} must be 0 or 1, holds {int(mask.min())} to {int(mask.max())}")
    return mask.bool()


@dataclass(frozen=True)
class RolloutBatch:
    """One rollout. Masks are converted to bool: true on real tokens, the end-of-sequence token included.

    Signals that no method asked for are None. All tensors are detached. Raises ValueError for a mask that is neither
    bool nor integers 0 and 1.
    """

    prompt_ids_BP: torch.Tensor  # int64, left-padded
    prompt_mask_BP: torch.Tensor
    completion_ids_BT: torch.Tensor  # int64, right-padded
    completion_mask_BT: torch.Tensor
    rewards_B: torch.Tensor  # float32: +1 correct, -1 otherwise, until a method's `shape_rewards`
    correct_B: torch.Tensor  # bool
    truncated_B: torch.Tensor  # bool: stopped by the token limit, no end-of-sequence
    formatted_B: torch.Tensor  # bool: the completion has the requested format
    group_size: int  # G
    max_tokens: int  # the rollout's limit on completion tokens
    sampler_logp_BT: torch.Tensor  # float32: log-probabilities as the rollout engine reported them
    signal_noise: Noise = SIGNAL_NOISE["float32"]  # for the dtype of the passes that computed the signals
    old_logp_BT: torch.Tensor | None = None  # float32: log pi_old(o_t | q, o_<t), nats
    ref_logp_BT: torch.Tensor | None = None  # float32: the same under the reference model
    token_entropy_BT: torch.Tensor | None = None  # float32: full-vocabulary entropy of pi_old at t, nats
    answer_entropy_BS: torch.Tensor | None = None  # float32: entropy of the answer after each prefix, nats

    def __post_init__(self) -> None:
        for name in ("prompt_mask_BP", "completion_mask_BT"):
            object.__setattr__(self, name, as_mask(getattr(self, name), name))

    @property
    def lengths_B(self) -> torch.Tensor:
        """Completion lengths in tokens (end-of-sequence included), int64 (B,)."""
        return self.completion_mask_BT.sum(dim=1)

    def rows(self, index: torch.Tensor) -> "RolloutBatch":
        """The rows `index`, which must be whole groups, of every per-row tensor."""
        cut: dict[str, Any] = {
            f.name: value[index] for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **cut)

    def validate(self) -> "RolloutBatch":
        """Check shapes, masks, finiteness and group adjacency; return self.

        Raises ValueError naming the first invalid field: a wrong batch must never train a model.
        """
        B, P = self.prompt_ids_BP.shape
        T = self.completion_ids_BT.shape[1]
        if self.group_size < 1 or B % self.group_size:
            raise ValueError(f"{B} rows cannot be split into groups of {self.group_size}")
        expected = {"B": (B,), "BP": (B, P), "BT": (B, T), "BS": (B, T + 1)}
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, torch.Tensor):
                continue
            shape = expected[field.name.rsplit("_", 1)[1]]
            if tuple(value.shape) != shape:
                raise ValueError(f"{field.name} has shape {tuple(value.shape)}, expected {shape}")
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"{field.name} contains NaN or infinity")
            if field.name.rsplit("_", 1)[0] in _BOOLEAN and value.dtype != torch.bool:
                raise ValueError(f"{field.name} must be bool, is {value.dtype}")
        if (self.prompt_mask_BP[:, 1:] < self.prompt_mask_BP[:, :-1]).any():
            raise ValueError("prompt_mask_BP is not left-padded")
        if (self.completion_mask_BT[:, 1:] > self.completion_mask_BT[:, :-1]).any():
            raise ValueError("completion_mask_BT is not right-padded")
        if not self.prompt_mask_BP.any(dim=1).all() or not self.completion_mask_BT.any(dim=1).all():
            raise ValueError("a row has an empty prompt or an empty completion")
        if (self.lengths_B > self.max_tokens).any():
            raise ValueError(f"a completion is longer than the limit of {self.max_tokens} tokens")
        prompts = (self.prompt_ids_BP * self.prompt_mask_BP).view(-1, self.group_size, P)
        if (prompts != prompts[:, :1]).any():
            raise ValueError(f"rows of one group of {self.group_size} have different prompts")
        return self


_BOOLEAN = {"correct", "truncated", "formatted"}
