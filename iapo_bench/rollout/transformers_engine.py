"""Rollouts with a transformers model, in this process, with continuous batching.

`generate` lets every row wait for the slowest, and copies the whole key-value cache at every token. Here a finished row
leaves at once (the last active row takes its place, so the active rows are always a prefix of one preallocated cache),
waiting prompts take the free slots, and a prompt's keys and values are computed once for all of its samples.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from iapo_bench.errors import UserError
from iapo_bench.models import (
    attention_implementation,
    decoder_and_head,
    evaluating,
    require_plain_attention,
)
from iapo_bench.rollout import Completion, Sampling
from iapo_bench.seeds import row_uniforms, stream_seed
from iapo_bench.sharding import whole


class TransformersEngine:
    """Generates with `model` as it is at the time: in training the engine and the trainer share the weights.

    `batch_size`: how many completions are under way at once.
    """

    def __init__(self, model: PreTrainedModel, *, batch_size: int = 256, progress: bool = False) -> None:
        self.model = model
        self.batch_size = batch_size
        self.progress = progress

    def sync(self, model: PreTrainedModel) -> None:
        """Use `model` from now on."""
        self.model = model

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        """`samples_per_prompt` completions for each prompt, adjacent, in order.

        Raises UserError for a prompt that leaves no room for `max_tokens` in the model's context.
        """
        context = self.model.config.max_position_embeddings
        longest = max(map(len, prompts), default=0)
        if longest + sampling.max_tokens > context:
            raise UserError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} more exceed the model's context of {context}"
            )
        require_plain_attention(self.model, longest + sampling.max_tokens)
        with whole(self.model) as model, evaluating(model), torch.inference_mode():
            return _Run(model, prompts, sampling, self.batch_size, self.progress).finish()


@dataclass(frozen=True)
class _Request:
    index: int
    prompt: int


class _Run:
    """One call of `generate`. Rows 0 to `active` - 1 of every per-row tensor and of the cache are under way."""

    def __init__(
        self, model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling, batch_size: int, progress: bool
    ) -> None:
        self.decoder, self.head = decoder_and_head(model)
        self.device = model.device
        self.prompts = prompts
        self.sampling = sampling
        n = sampling.samples_per_prompt
        self.waiting = [_Request(p * n + s, p) for p in range(len(prompts)) for s in range(n)][::-1]
        self.done: list[Completion | None] = [None] * len(self.waiting)
        self.slots = min(batch_size, len(self.waiting))
        self.active = 0
        width = max(map(len, prompts), default=0) + sampling.max_tokens
        self.cache = _SlotCache(model, self.slots, width)
        long = {"dtype": torch.long, "device": self.device}
        self.request_R = torch.zeros(self.slots, **long)  # index into done
        self.place_R = torch.zeros(self.slots, **long)  # where a row's output stands; never moves, unlike the row
        self.last_R = torch.zeros(self.slots, **long)  # the token to feed next
        self.position_R = torch.zeros(self.slots, **long)  # its position
        self.count_R = torch.zeros(self.slots, **long)  # completion tokens so far
        self.free_places = list(range(self.slots))
        self.ids_RT = torch.zeros(self.slots, sampling.max_tokens, **long)
        self.logp_RT = torch.zeros(self.slots, sampling.max_tokens, device=self.device)
        self.uniform_RT = torch.zeros(self.slots, sampling.max_tokens, dtype=torch.float64, device=self.device)
        self.eos = torch.tensor(sampling.eos_ids, **long)
        self.bar = tqdm(total=len(self.waiting), desc="generate", unit="completion", disable=not progress)

    def finish(self) -> list[Completion]:
        while self.waiting or self.active:
            free = self.slots - self.active
            # Prefill in large parts: one forward for a handful of prompts costs as much as one for many.
            if self.waiting and (free >= max(1, self.slots // 4) or free >= len(self.waiting)):
                self._admit(min(free, len(self.waiting)))
            else:
                self._step()
            self._retire()
        self.bar.close()
        return [completion for completion in self.done if completion is not None]

    def _admit(self, n: int) -> None:
        requests = [self.waiting.pop() for _ in range(n)]
        unique = sorted({request.prompt for request in requests})
        rows = slice(self.active, self.active + n)
        which = torch.tensor([unique.index(request.prompt) for request in requests], device=self.device)
        ids_UP = pad_sequence([torch.tensor(self.prompts[p]) for p in unique], batch_first=True).to(self.device)
        length_U = torch.tensor([len(self.prompts[p]) for p in unique], device=self.device)
        prefill = DynamicCache(config=self.decoder.config)
        # Right padding under a causal mask needs no mask: what comes after a prompt cannot reach it.
        hidden_UPD = self.decoder(input_ids=ids_UP, past_key_values=prefill, use_cache=True).last_hidden_state
        self.cache.fill(rows, prefill, which)
        last_UD = hidden_UPD[torch.arange(len(unique), device=self.device), length_U - 1]

        places = [self.free_places.pop() for _ in range(n)]
        first = self.sampling.first_index
        seeds = [stream_seed(self.sampling.seed, "completion", first + request.index) for request in requests]
        uniforms = torch.from_numpy(row_uniforms(seeds, self.sampling.max_tokens)).to(self.device)
        self.place_R[rows] = torch.tensor(places, device=self.device)
        self.uniform_RT[self.place_R[rows]] = uniforms
        self.request_R[rows] = torch.tensor([request.index for request in requests], device=self.device)
        self.position_R[rows] = length_U[which] - 1
        self.count_R[rows] = 0
        self.active += n
        self._choose(rows, self.head(last_UD)[which])

    def _step(self) -> None:
        rows = slice(0, self.active)
        position_R1 = self.position_R[rows, None]
        self.cache.advance(self.active, self.position_R[rows])
        with attention_implementation(self.decoder, "iapo_bench_decode"):
            output = self.decoder(
                input_ids=self.last_R[rows, None],
                attention_mask=self.cache.visible(),
                position_ids=position_R1,
                past_key_values=self.cache,
                use_cache=True,
            )
        self._choose(rows, self.head(output.last_hidden_state[:, 0]))

    def _choose(self, rows: slice, logits_RV: torch.Tensor) -> None:
        """Draw the next token of `rows` and record it."""
        place_R, count_R = self.place_R[rows], self.count_R[rows]
        logp_RV = torch.log_softmax(logits_RV.float() / (self.sampling.temperature or 1.0), dim=-1)
        if self.sampling.temperature == 0:
            token_R = logp_RV.argmax(dim=-1)
        else:
            token_R = invert_cdf(logp_RV, self.uniform_RT[place_R, count_R], self.sampling.top_p)
        self.ids_RT[place_R, count_R] = token_R
        self.logp_RT[place_R, count_R] = logp_RV.gather(1, token_R[:, None])[:, 0]
        self.last_R[rows] = token_R
        self.count_R[rows] += 1
        self.position_R[rows] += 1

    def _retire(self) -> None:
        """Hand over the completions that ended, and close the gaps that they leave."""
        rows = slice(0, self.active)
        stopped_R = torch.isin(self.last_R[rows], self.eos)
        ended_R = stopped_R | (self.count_R[rows] >= self.sampling.max_tokens)
        if not ended_R.any():
            return
        ended = ended_R.nonzero()[:, 0]
        places = self.place_R[ended]
        ids, logps = self.ids_RT[places].cpu().numpy(), self.logp_RT[places].cpu().numpy()
        counts, requests = self.count_R[ended].tolist(), self.request_R[ended].tolist()
        for i, (count, request, stopped) in enumerate(zip(counts, requests, stopped_R[ended].tolist(), strict=True)):
            self.done[request] = Completion(
                tuple(ids[i, :count].tolist()), tuple(logps[i, :count].tolist()), "stop" if stopped else "length"
            )
        self.free_places += places.tolist()
        self.bar.update(len(counts))

        remaining = self.active - len(counts)
        holes = ended[ended < remaining]
        movers = (~ended_R[remaining:]).nonzero()[:, 0] + remaining
        for tensor in (self.request_R, self.place_R, self.last_R, self.position_R, self.count_R):
            tensor[holes] = tensor[movers]
        self.cache.move(movers, holes)
        self.active = remaining


def invert_cdf(logp_RV: torch.Tensor, uniform_R: torch.Tensor, top_p: float = 1.0) -> torch.Tensor:
    """The token at which each row's cumulative probability passes its uniform number, int64 (R,).

    One number a token, so that a draw depends on the row alone. In float64: a float32 sum over a large vocabulary
    loses the tail.
    """
    probability_RV = logp_RV.double().exp()
    if top_p < 1:
        ordered, order = probability_RV.sort(dim=-1, descending=True)
        ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0
        probability_RV = torch.zeros_like(probability_RV).scatter(1, order, ordered)
    cdf_RV = probability_RV.cumsum(dim=-1)
    target_R1 = uniform_R[:, None] * cdf_RV[:, -1:]
    return torch.searchsorted(cdf_RV, target_R1, right=True)[:, 0].clamp(max=logp_RV.shape[1] - 1)


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of one query token a row, (R, heads, 1, D), with the query heads of a group as its query positions.

    The stock path copies keys and values once for each head of a group, at every token.
    """
    rows, heads, _, head_dim = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], head_dim)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, head_dim), None


AttentionInterface.register("iapo_bench_decode", _grouped_attention)


class _SlotLayer(CacheLayerMixin):
    """Keys and values (slots, heads, width, head dim); each row writes at its own position."""

    def __init__(self, slots: int, heads: int, width: int, head_dim: int, like: torch.Tensor) -> None:
        super().__init__()
        self.keys = like.new_zeros(slots, heads, width, head_dim)
        self.values = like.new_zeros(slots, heads, width, head_dim)
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


class _SlotCache(Cache):
    """One preallocated cache for all slots; rows lie left-aligned, without padding."""

    def __init__(self, model: PreTrainedModel, slots: int, width: int) -> None:
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        like = next(model.parameters())
        super().__init__(
            layers=[_SlotLayer(slots, heads, width, head_dim, like) for _ in range(config.num_hidden_layers)]
        )
        self.steps = torch.arange(width, device=model.device)
        self.slot_R = torch.arange(slots, device=model.device)

    def fill(self, rows: slice, prefill: DynamicCache, which: torch.Tensor) -> None:
        """Take over prompt `which[i]` of a prefilled cache as row `i` of `rows`."""
        for ours, theirs in zip(self.layers, prefill.layers, strict=True):
            width = theirs.keys.shape[2]
            ours.keys[rows, :, :width] = theirs.keys[which]
            ours.values[rows, :, :width] = theirs.values[which]

    def advance(self, active: int, position_R: torch.Tensor) -> None:
        """Let the next update write at these positions."""
        self.position_R = position_R
        span = int(position_R.max()) + 1
        for layer in self.layers:
            layer.aim(self.slot_R[:active], position_R, span)

    def visible(self) -> torch.Tensor:
        """The mask of the next step, bool (rows, 1, 1, span): each row sees what it has written."""
        span = self.layers[0].span
        return (self.steps[:span] <= self.position_R[:, None])[:, None, None]

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy rows `source` onto rows `target`."""
        if len(source):
            for layer in self.layers:
                layer.keys[target] = layer.keys[source]
                layer.values[target] = layer.values[source]
