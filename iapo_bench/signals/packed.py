"""Forward passes over a batch without padding: each prompt once for all of its completions, then any prefixes.

The tokens of all rows are concatenated into a batch of one, so the linear layers see real tokens only. The first pass
keeps every row's keys and values. A later pass reads any number of prefixes of any rows from that one cache: the K
query tokens of a prefix (the postfix) see the prefix and themselves, and the cache stays as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, PreTrainedModel

from iapo_bench.batch import as_mask
from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import attention_implementation, decoder_and_head
from iapo_bench.models.exact import require_exact

SPAN = 128  # most queries per attention call, so that early queries of a row skip the keys that come after them
# For short queries torch would choose the decoding kernel, which takes all queries of a key head as one block and fails
# to compile for more than 128 of them, as with 65 queries and 2 query heads per key head.
_KERNEL = {"BACKEND": "TRITON"}


@dataclass(frozen=True)
class _Span:
    """Prefixes of one row, adjacent in a pass: prefix i of `count` sees the row's first `seen + i * step` keys."""

    first: int
    count: int
    row_start: int
    seen: int
    step: int = 1

    @property
    def width(self) -> int:
        """Number of keys that the last prefix sees."""
        return self.seen + (self.count - 1) * self.step

    def split(self, size: int) -> Iterator["_Span"]:
        for i in range(0, self.count, size):
            yield _Span(self.first + i, min(size, self.count - i), self.row_start, self.seen + i * self.step, self.step)


@dataclass(frozen=True)
class _Pass:
    """Queries of one pass and what they see. `source_S`: in the first pass, the token that fills each cache place."""

    spans: Sequence[_Span]
    lanes: int  # query tokens per prefix, adjacent
    cache: dict[int, tuple[torch.Tensor, torch.Tensor]]  # keys and values, (key heads, places, head dim), by layer
    source_S: torch.Tensor | None = None

    @cached_property
    def _masks(self) -> dict[tuple[int, int, int], torch.Tensor]:
        return {}

    def mask(self, span: _Span, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask (1, 1, count, width), made once for all layers and equal spans."""
        key = (span.count, span.seen, span.step)
        if key not in self._masks:
            unseen = torch.arange(span.width) >= span.seen + span.step * torch.arange(span.count)[:, None]
            self._masks[key] = torch.zeros(unseen.shape, dtype=dtype).masked_fill(unseen, float("-inf"))[None, None]
        return self._masks[key]

    @cached_property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """First cache place that each query sees, and one past its last: int64 (queries,) each."""
        starts, ends = [], []
        for span in self.spans:
            starts.append(torch.full((span.count,), span.row_start))
            ends.append(torch.arange(span.count) * span.step + span.row_start + span.seen)
        keys = next(iter(self.cache.values()))[0]
        repeat = [torch.cat(part).repeat_interleave(self.lanes).to(keys.device) for part in (starts, ends)]
        return repeat[0], repeat[1]

    @cached_property
    def block_mask(self) -> BlockMask:
        """`bounds` as a block-sparse mask over the cached keys and, except in the first pass, the queries' own keys."""
        keys = next(iter(self.cache.values()))[0]
        start_Q, end_Q = self.bounds
        places, own = keys.shape[1], 0 if self.source_S is not None else len(start_Q)
        last_own_Q = torch.arange(len(start_Q), device=keys.device) + places
        first_own_Q = last_own_Q - (last_own_Q - places) % self.lanes

        # Closes over tensors only: numbers would become symbols, which not every torch version can compile here.
        def sees(batch, head, query, key):
            prefix = (key >= start_Q[query]) & (key < end_Q[query])
            return prefix | ((key >= first_own_Q[query]) & (key <= last_own_Q[query]))

        return create_block_mask(sees, None, None, len(start_Q), places + own, device=keys.device)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    packed: _Pass | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed pass: query (1, heads, tokens, head dim) to (1, tokens, heads, head dim)."""
    if packed is None or softcap is not None or s_aux is not None:
        raise UserError(f"{type(module).__name__} does more than plain attention, which is not supported here")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if packed.source_S is not None:
        packed.cache[layer] = (key[0][:, packed.source_S], value[0][:, packed.source_S])
    keys, values = packed.cache[layer]
    own = None if packed.source_S is not None else (key, value)
    attend = _attend_flash if query.device.type == "cpu" else _attend_flex
    return attend(packed, query, keys, values, own, scaling), None


@cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    # A model needs about eight variants. Past the limit it would run uncompiled and hold all scores.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(flex_attention, dynamic=True)


def _attend_flex(
    packed: _Pass,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor] | None,
    scaling: float | None,
) -> torch.Tensor:
    """One kernel over the cached keys followed by the queries' own; blocks that no query sees are skipped."""
    if own is not None:
        keys, values = torch.cat([keys, own[0][0]], dim=1), torch.cat([values, own[1][0]], dim=1)
    out = _compiled_flex()(
        query,
        keys[None],
        values[None],
        block_mask=packed.block_mask,
        scale=scaling,
        enable_gqa=True,
        kernel_options=_KERNEL,
    )
    return out.transpose(1, 2)


def _attend_flash(
    packed: _Pass,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor] | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attend to prefix and own keys separately and merge by log-sum-exp, so that one mask serves all lanes."""
    # The public function does not return the log-sum-exp.
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    heads, tokens, head_dim = query.shape[1:]
    lanes = packed.lanes
    query_MHKD = query[0].reshape(heads, tokens // lanes, lanes, head_dim).transpose(0, 1)
    prefix_MHKD = torch.empty_like(query_MHKD)
    prefix_lse_MHK = torch.empty(query_MHKD.shape[:3], device=query.device)
    for span in packed.spans:
        rows = slice(span.first, span.first + span.count)
        places = slice(span.row_start, span.row_start + span.width)
        out_KHMD, lse_KHM = flash(
            query_MHKD[rows].permute(2, 1, 0, 3),
            keys[:, places].expand(lanes, -1, -1, -1),
            values[:, places].expand(lanes, -1, -1, -1),
            attn_mask=packed.mask(span, query.dtype),
            scale=scaling,
        )
        prefix_MHKD[rows] = out_KHMD.permute(2, 1, 0, 3)
        prefix_lse_MHK[rows] = lse_KHM.permute(2, 1, 0)
    if own is None:
        joined_MHKD = prefix_MHKD
    else:
        key_MHKD, value_MHKD = (
            part[0].reshape(part.shape[1], tokens // lanes, lanes, head_dim).transpose(0, 1) for part in own
        )
        own_MHKD, own_lse_MHK = flash(query_MHKD, key_MHKD, value_MHKD, is_causal=True, scale=scaling)
        share = torch.sigmoid(prefix_lse_MHK - own_lse_MHK)[..., None].to(query.dtype)
        joined_MHKD = torch.lerp(own_MHKD, prefix_MHKD, share)
    return joined_MHKD.transpose(1, 2).reshape(1, tokens, heads, head_dim)


AttentionInterface.register("iapo_bench_packed", _attend)


@dataclass(frozen=True)
class Block:
    """Rows of a batch with their real tokens. The prompt of `rows[i]` is `prompts[owners[i]]`."""

    rows: list[int]
    prompts: list[torch.Tensor]
    completions: list[torch.Tensor]
    owners: list[int]


def packed_blocks(
    prompt_ids_BP: torch.Tensor,
    prompt_mask_BP: torch.Tensor,
    completion_ids_BT: torch.Tensor,
    completion_mask_BT: torch.Tensor,
    max_tokens: int,
) -> Iterator[Block]:
    """Consecutive rows in blocks of at most `max_tokens` tokens (or one row); adjacent equal prompts become one.

    Masks are bool, or integers of 0 and 1. Raises ValueError for any other mask and for a row without a prompt.
    """
    prompt_mask_BP = as_mask(prompt_mask_BP, "prompt_mask_BP", prompt_ids_BP)
    completion_mask_BT = as_mask(completion_mask_BT, "completion_mask_BT", completion_ids_BT)
    if not prompt_mask_BP.any(dim=1).all():
        raise ValueError("a row needs at least one prompt token")
    block = Block([], [], [], [])
    tokens = 0
    for row in range(len(prompt_ids_BP)):
        prompt = prompt_ids_BP[row][prompt_mask_BP[row]]
        completion = completion_ids_BT[row][completion_mask_BT[row]]
        cost = len(prompt) + len(completion)
        if block.rows and tokens + cost > max_tokens:
            yield block
            block, tokens = Block([], [], [], []), 0
        if not block.prompts or not torch.equal(block.prompts[-1], prompt):
            block.prompts.append(prompt)
        block.rows.append(row)
        block.completions.append(completion)
        block.owners.append(len(block.prompts) - 1)
        tokens += cost
    yield block


class PackedBatch:
    """A block after its first pass.

    `hidden_ND`: final states of all prompts' tokens, then of all completions'. The model must be in evaluation mode; no
    gradients. Raises UserError for an architecture with more than plain attention.
    """

    def __init__(self, model: PreTrainedModel, block: Block) -> None:
        prompts, completions, owners = block.prompts, block.completions, block.owners
        self.completions = completions
        self.model = model
        self.decoder, self.head = decoder_and_head(model)
        self.device = model.device
        self.prompt_lengths = [len(prompts[owner]) for owner in owners]
        self.lengths = [len(completion) for completion in completions]
        place = 0
        prompt_places, places, source = [], [], []
        for prompt in prompts:
            prompt_places.append(torch.arange(place, place + len(prompt)))
            place += len(prompt)
        for completion in completions:
            places.append(torch.arange(place, place + len(completion)))
            place += len(completion)
        self.row_starts: list[int] = []
        spans: dict[int, _Span] = {}
        width = 0
        for row, owner in enumerate(owners):
            self.row_starts.append(width)
            source += [prompt_places[owner], places[row]]
            if owner not in spans:
                spans[owner] = _Span(int(prompt_places[owner][0]), len(prompts[owner]), width, 1)
            width += self.prompt_lengths[row] + self.lengths[row]
        rows = [
            _Span(int(places[row][0]), self.lengths[row], start, self.prompt_lengths[row] + 1)
            for row, start in enumerate(self.row_starts)
            if self.lengths[row]
        ]
        # The state that predicts a completion's first token is its prompt's last.
        self._before = [torch.cat([prompt_places[owner][-1:], places[row]])[:-1] for row, owner in enumerate(owners)]
        positions = [torch.arange(len(prompt)) for prompt in prompts] + [
            torch.arange(length) + start for length, start in zip(self.lengths, self.prompt_lengths, strict=True)
        ]
        self.cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        first = _Pass(
            [part for span in (*spans.values(), *rows) for part in span.split(SPAN)],
            lanes=1,
            cache=self.cache,
            source_S=torch.cat(source).to(self.device),
        )
        self.hidden_ND = self._forward(torch.cat([*prompts, *completions]), torch.cat(positions), first)

    @property
    def predictive_ND(self) -> torch.Tensor:
        """The states that predict the completion tokens, rows one after another: (tokens, D)."""
        return self.hidden_ND[torch.cat(self._before).to(self.device)]

    def read_postfix(self, postfix_K: torch.Tensor, prefixes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Final states after `prompt + completion[:t] + postfix` for each (row, t): (prefixes, D)."""
        K = len(postfix_K)
        ends_M = torch.tensor([self.prompt_lengths[row] + t for row, t in prefixes])
        positions_MK = ends_M[:, None] + torch.arange(K)
        reading = _Pass(self._spans(prefixes), K, self.cache)
        return self._forward(postfix_K.repeat(len(prefixes)), positions_MK.reshape(-1), reading)[K - 1 :: K]

    def _spans(self, prefixes: Sequence[tuple[int, int]]) -> list[_Span]:
        """`prefixes` as spans of at most `SPAN`, each of one row and one step."""
        bounds = [0]
        for i in range(1, len(prefixes)):
            first = bounds[-1]
            row, t = prefixes[first]
            step = prefixes[first + 1][1] - t
            if prefixes[i][0] != row or prefixes[i][1] - prefixes[i - 1][1] != step or i - first == SPAN:
                bounds.append(i)
        bounds.append(len(prefixes))
        spans = []
        for first, end in pairwise(bounds):
            row, t = prefixes[first]
            step = prefixes[first + 1][1] - t if end > first + 1 else 1
            spans.append(_Span(first, end - first, self.row_starts[row], self.prompt_lengths[row] + t, step))
        return spans

    def _forward(self, ids_N: torch.Tensor, positions_N: torch.Tensor, packed: _Pass) -> torch.Tensor:
        require_exact(self.model, int(positions_N.max()) + 1, "packed pass", _packed_states)
        with attention_implementation(self.decoder, "iapo_bench_packed"):
            output = self.decoder(
                input_ids=ids_N[None].to(self.device),
                position_ids=positions_N[None].to(self.device),
                use_cache=False,
                packed=packed,
            )
        return output.last_hidden_state[0]


def _packed_states(model: PreTrainedModel, ids_L: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """For `require_exact`: the states of a row's last token and of a postfix after it; short rows have no postfix."""
    end = max(1, len(ids_L) - 2)
    start = (end + 1) // 2
    block = Block([0, 1], [ids_L[:start]], [ids_L[start:end], ids_L[start:start]], [0, 0])
    packed = PackedBatch(model, block)
    states, places = [packed.hidden_ND[end - 1 :][:1]], [end - 1]
    if end < len(ids_L):
        states.append(packed.read_postfix(ids_L[end:], [(1, 0), (0, end - start)])[1:])
        places.append(len(ids_L) - 1)
    return places, torch.cat(states)
