"""The preallocated key-value cache of the active rows, and attention of one new token per row over it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from iapo_bench.models.checkpoints import attention_implementation, decoder_and_head
from iapo_bench.models.exact import cache_shapes
from iapo_bench.rollout.decode_graph import Schedule

DECODE_ATTENTION = "iapo_bench_decode"


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of one query token per row, (R, heads, 1, D), with the query heads of a group as query positions.

    The stock path copies keys and values for every head of a group, at every token.
    """
    rows, heads, _, head_dim = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], head_dim)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, -1), None


AttentionInterface.register(DECODE_ATTENTION, _grouped_attention)


def decode_kernels(device: torch.device) -> AbstractContextManager[None]:
    """The kernels that may compute the decode attention.

    On CUDA the memory-efficient kernel, which accepts a mask and a slice of the cache. cuDNN would build an execution
    plan for every shape, and flash attention takes no mask.
    """
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if device.type == "cuda" else nullcontext()


class _SlotLayer(CacheLayerMixin):
    """Keys and values (slots, heads, width, head dim); each row writes at its own position."""

    def __init__(self, slots: int, width: int, shapes: tuple[tuple[int, int], ...], like: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = (like.new_zeros(slots, heads, width, size) for heads, size in shapes)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist."""

    def aim(self, row_R: torch.Tensor, position_R: torch.Tensor, span: int) -> None:
        self.row_R, self.position_R, self.span = row_R, position_R, span

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        self.keys[self.row_R, :, self.position_R] = key_states[:, :, 0]
        self.values[self.row_R, :, self.position_R] = value_states[:, :, 0]
        rows = len(self.row_R)
        return self.keys[:rows, :, : self.span], self.values[:rows, :, : self.span]

    def get_seq_length(self) -> int:
        return self.span - 1

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.span, 0


class SlotCache(Cache):
    """One preallocated cache for all slots; rows are left-aligned, without padding."""

    def __init__(self, model: PreTrainedModel, slots: int, width: int) -> None:
        like = next(model.parameters())
        super().__init__(layers=[_SlotLayer(slots, width, shapes, like) for shapes in cache_shapes(model)])
        self.dtype = like.dtype
        self.steps = torch.arange(width, device=model.device)
        self.slot_R = torch.arange(slots, device=model.device)

    def fill(self, rows: slice, prefill: DynamicCache, which: torch.Tensor) -> None:
        """Copy prompt `which[i]` of a prefilled cache into row `i` of `rows`."""
        for ours, theirs in zip(self.layers, prefill.layers, strict=True):
            width = theirs.keys.shape[2]
            ours.keys[rows, :, :width] = theirs.keys[which]
            ours.values[rows, :, :width] = theirs.values[which]

    def advance(self, position_R: torch.Tensor, span: int) -> torch.Tensor:
        """Let the next update write row i of the first R at `position_R[i]`, all below `span`.

        Returns the additive mask (R, 1, 1, span) of that step: each row sees the positions it has written.
        """
        for layer in self.layers:
            layer.aim(self.slot_R[: len(position_R)], position_R, span)
        unseen_R11S = (self.steps[:span] > position_R[:, None])[:, None, None]
        return torch.zeros(unseen_R11S.shape, dtype=self.dtype, device=unseen_R11S.device).masked_fill_(
            unseen_R11S, float("-inf")
        )

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy rows `source` onto rows `target`."""
        if len(source):
            for layer in self.layers:
                layer.keys[target] = layer.keys[source]
                layer.values[target] = layer.values[source]


def prefill(decoder: PreTrainedModel, ids_UP: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
    """States (U, P, D) and cache of right-padded prompts. Under a causal mask the padding reaches no real token."""
    cache = DynamicCache(config=decoder.config)
    return decoder(input_ids=ids_UP, past_key_values=cache, use_cache=True).last_hidden_state, cache


def decode(
    decoder: PreTrainedModel, cache: SlotCache, ids_R: torch.Tensor, position_R: torch.Tensor, mask_R11S: torch.Tensor
) -> torch.Tensor:
    """States (R, D) of one token per row at its position; `mask_R11S` comes from `SlotCache.advance`."""
    with attention_implementation(decoder, DECODE_ATTENTION), decode_kernels(ids_R.device):
        output = decoder(
            input_ids=ids_R[:, None],
            attention_mask=mask_R11S,
            position_ids=position_R[:, None],
            past_key_values=cache,
            use_cache=True,
        )
    return output.last_hidden_state[:, 0]


def decoded_states(schedule: Schedule, model: PreTrainedModel, ids_L: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """For `require_exact`: the states of the last tokens, decoded after a prefill of those before them."""
    decoder, _ = decoder_and_head(model)
    length = len(ids_L)
    places = list(range(max(1, length - 2), length))
    width = schedule.width(length)
    cache = SlotCache(model, 1, width)
    _, prefilled = prefill(decoder, ids_L[None, : places[0]])
    cache.fill(slice(0, 1), prefilled, torch.zeros(1, dtype=torch.long, device=ids_L.device))
    states = []
    for place in places:
        position_R = torch.tensor([place], device=ids_L.device)
        mask = cache.advance(position_R, schedule.span(place + 1, width))
        states.append(decode(decoder, cache, ids_L[place : place + 1], position_R, mask))
    return places, torch.cat(states)
