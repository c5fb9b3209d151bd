"""Checks that our attention and cache compute the same as the decoder's own, for any architecture.

Two checks, once for each model and length. The decoder must ask for plain attention: every position attends to all
earlier ones, without windows, biases or sinks. And our hidden states of a random sequence of that length must be the
decoder's own, up to rounding. So a model is reproduced exactly or refused with a reason.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from iapo_bench.errors import UserError, first_line
from iapo_bench.models.checkpoints import (
    ODD,
    attention_implementation,
    decoder_and_head,
    evaluating,
    require_finite,
    unobserved,
)
from iapo_bench.seeds import torch_stream

# Mean difference of log-probabilities, in nats, that rounding explains: two orders of summation in one dtype.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}

# From token ids (length,) to some positions and the hidden states there, (positions, D).
States = Callable[[PreTrainedModel, torch.Tensor], tuple[list[int], torch.Tensor]]

# Arguments that plain attention may get besides its mask; `sliding_window` is compared with the length.
_PLAIN = {"dropout", "scaling", "is_causal", "sliding_window", "position_ids", "cache_position", "deterministic"}
_PLAIN |= {"use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"}
_PLAIN |= {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}


@dataclass
class _Told:
    """What the layers of a decoder passed to attention: mask functions, and each call's arguments and shapes of keys
    and values."""

    masks: list[Callable[..., Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    shapes: list[tuple[torch.Size, torch.Size]] = field(default_factory=list)


_listening: list[_Told] = []
_told: WeakKeyDictionary[PreTrainedModel, _Told] = WeakKeyDictionary()
_exact: WeakKeyDictionary[PreTrainedModel, dict[str, int]] = WeakKeyDictionary()


def _hear_mask(*args: Any, mask_function: Callable[..., Any], **kwargs: Any) -> None:
    _listening[-1].masks.append(mask_function)


def _hear_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    _listening[-1].calls.append({name: told for name, told in kwargs.items() if told is not None})
    _listening[-1].shapes.append((key.shape, value.shape))
    scaling = kwargs.get("scaling")
    return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)[0], None


AttentionInterface.register("iapo_bench_probe", _hear_call)
AttentionMaskInterface.register("iapo_bench_probe", _hear_mask)


def require_exact(model: PreTrainedModel, length: int, what: str, states: States) -> None:
    """Raise UserError unless attention is plain and `states` gives the decoder's own hidden states for `length` random
    tokens; `what` names the computation in messages."""
    known = _exact.setdefault(model, {})
    before = known.get(what, 0)
    if length <= before:
        return
    known[what] = length  # before the checks: `states` may call this function
    try:
        _require_plain_attention(model, length)
        _require_same_states(model, length, what, states)
    except BaseException:
        known[what] = before
        raise


@torch.no_grad()
def _require_same_states(model: PreTrainedModel, length: int, what: str, states: States) -> None:
    decoder, head = decoder_and_head(model)
    vocabulary = model.config.get_text_config().vocab_size
    ids_L = torch.randint(vocabulary, (length,), generator=torch_stream(0, "exact", length)).to(model.device)
    with evaluating(model), unobserved(model):
        own_LD = decoder(input_ids=ids_L[None], use_cache=False).last_hidden_state[0]
        try:
            places, ours_ND = states(model, ids_L)
        except (UserError, torch.OutOfMemoryError):
            raise
        except ODD as error:
            reason = first_line(error)
            raise UserError(
                f"the {what} does not support {type(model).__name__} ({type(error).__name__}: {reason})"
            ) from error
        ours, own = (torch.log_softmax(head(hidden).float(), -1) for hidden in (ours_ND, own_LD[places]))
    require_finite(own, f"{type(model).__name__}, given {length} random tokens")
    gap = float((ours - own).abs().mean())
    tolerance = TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16])
    if not gap <= tolerance:
        raise UserError(
            f"the {what} differs by {gap:.3g} nats from {type(model).__name__} itself for {length} tokens, more than "
            f"the {tolerance:g} that rounding explains: this architecture is not supported"
        )


def _require_plain_attention(model: PreTrainedModel, length: int) -> None:
    """Raise UserError unless every position of a sequence of `length` tokens attends to all earlier ones, and keys are
    rotated by their own positions only, as our attention and caches assume."""
    name, config = type(model).__name__, model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    if odd := kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise UserError(f"{name} has layers of {min(odd)}, which is not supported")
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            raise UserError(f"{name} has length-dependent rotary embeddings ({parameters['rope_type']}): not supported")
    told = _listen(model)
    layers = getattr(config, "num_hidden_layers", len(told.calls))
    if len(told.calls) != layers:
        raise UserError(f"{name} has {layers} layers, {len(told.calls)} of them attention: not supported")
    for call in told.calls:
        if odd := call.keys() - _PLAIN:
            raise UserError(f"{name} does more than plain attention ({min(odd)}), which is not supported")
        if call.get("is_causal") is False:
            raise UserError(f"{name} attends to later tokens, which is not supported")
    windows = [call["sliding_window"] for call in told.calls if call.get("sliding_window")]
    windows += [_widest_view(mask, length, model.device) for mask in told.masks]
    if min(windows, default=length) < length:
        raise UserError(f"{name} has an attention window of {min(windows)} tokens: {length} are too many")


def cache_shapes(model: PreTrainedModel) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """For each layer of the decoder, (heads, head size) of its keys and of its values, as a cache keeps them."""
    return [((key[1], key[3]), (value[1], value[3])) for key, value in _listen(model).shapes]


@torch.no_grad()
def _listen(model: PreTrainedModel) -> _Told:
    """What the layers pass to attention for two tokens; the mask functions hold for any length."""
    if model in _told:
        return _told[model]
    decoder, _ = decoder_and_head(model)
    told = _Told()
    _listening.append(told)
    ids = torch.tensor([[0, 1]], device=model.device)
    try:
        with evaluating(model), unobserved(model), attention_implementation(decoder, "iapo_bench_probe"):
            decoder(input_ids=ids, use_cache=False)
    except (UserError, torch.OutOfMemoryError):
        raise
    except ODD as error:
        reason = first_line(error)
        raise UserError(
            f"{type(model).__name__} does not support custom attention functions ({type(error).__name__}: {reason})"
        ) from error
    finally:
        _listening.pop()
    _told[model] = told
    return told


def _widest_view(mask: Callable[..., Any], length: int, device: torch.device) -> int:
    """The largest number of tokens, its own included, that a position below `length` attends to.

    Raises UserError for a mask that shows later tokens.
    """
    places, zero = torch.arange(length, device=device), torch.zeros((), dtype=torch.long, device=device)

    def seen(query: int) -> torch.Tensor:
        shown = mask(zero, zero, torch.full_like(places, query), places)
        return torch.as_tensor(shown, device=device).expand(length)

    if seen(0)[1:].any():
        raise UserError("the model's attention mask is not causal, which is not supported")
    if bool(seen(length - 1).all()):
        return length
    return max(int(seen(query).sum()) for query in range(length))
