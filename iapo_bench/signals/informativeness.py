"""Information of each token about the answer: the early-exit estimator of IAPO (arXiv 2602.19049).

After every prefix of a completion, a postfix such as `</think><answer>` makes the model answer at once. e[t] is the
entropy of the next token; a token's conditional mutual information with the answer is the entropy that it removes,
s[t] = e[t] - e[t + 1]. The distribution is that of the FIRST answer token: a proxy for the whole answer.

Three implementations, equal up to rounding, for a postfix of K tokens:

naive          one full forward pass per prefix: the definition, and the tests' oracle.
kv_replicated  the paper's scheme (KV preloading and chunk-wise forwarding): the keys and values of a completion are
               computed once and copied for each prefix of a chunk.
shared_kv      the postfixes of a chunk read one shared cache, without padding or a copy per prefix, and a prompt is
               computed once for all of its completions: K + 1 token-forwards per token, at any length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from transformers import DynamicCache, PreTrainedModel

from iapo_bench.batch import as_mask
from iapo_bench.errors import unknown
from iapo_bench.models.checkpoints import decoder_and_head, evaluating, require_finite
from iapo_bench.models.exact import require_exact
from iapo_bench.signals.packed import Block, PackedBatch, packed_blocks

Implementation = Literal["shared_kv", "kv_replicated", "naive"]
REPLICATED_CHUNK = 64  # prefixes; each holds a copy of the cache
HEAD_ELEMENTS = 2**24  # float32 logits held at once
PASS_BYTES = 2**23  # activations of one pass on a CPU; more are no faster
PASS_TOKENS = 2**13  # most in one pass on a GPU: the block mask is made for every pair of query and key


@dataclass(frozen=True)
class AnswerReading:
    """Which prefixes of a completion to read. By default all; fewer save passes and are an approximation.

    `stride`: read every stride-th prefix and the last, and interpolate the entropy linearly between them. `stop_ids`:
    read none past the first occurrence of these tokens, such as those of `</think>`; the entropy stays constant from
    there, as if the answer's tokens carried no information.
    """

    stride: int = 1
    stop_ids: tuple[int, ...] = ()

    def prefixes(self, completion: torch.Tensor) -> list[int]:
        """Lengths of the prefixes to read, in ascending order from 0."""
        end = len(completion)
        if self.stop_ids and end >= len(self.stop_ids):
            windows = completion.unfold(0, len(self.stop_ids), 1)
            found = (windows == torch.tensor(self.stop_ids, device=completion.device)).all(dim=1).nonzero()
            end = int(found[0]) if len(found) else end
        return [*range(0, end, self.stride), end]

    def fill(self, e: torch.Tensor, prefixes: Sequence[int], length: int) -> torch.Tensor:
        """Entropies at every prefix, (length + 1,), interpolated from those at `prefixes`."""
        if len(prefixes) == length + 1:
            return e
        at = torch.tensor(prefixes, device=e.device)
        steps = torch.arange(length + 1, device=e.device).clamp(max=prefixes[-1])
        right = torch.searchsorted(at, steps)
        left = (right - 1).clamp(min=0)
        share = (steps - at[left]) / (at[right] - at[left]).clamp(min=1)
        return torch.lerp(e[left], e[right], share)


EVERY_PREFIX = AnswerReading()


@torch.no_grad()
def answer_entropies(
    model: PreTrainedModel,
    prompt_ids_BP: torch.Tensor,
    prompt_mask_BP: torch.Tensor,
    completion_ids_BT: torch.Tensor,
    completion_mask_BT: torch.Tensor,
    postfix_ids_K: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    implementation: Implementation = "shared_kv",
    reading: AnswerReading = EVERY_PREFIX,
) -> torch.Tensor:
    """Entropy (nats) of the token after `prompt + completion[:t] + postfix`, t = 0..T: float32 (B, T+1).

    Entries beyond a row's length are 0. Masks are bool or integers of 0 and 1. Prompts are left-padded, completions
    right-padded, and rows of one prompt adjacent. `chunk`: prefixes per pass; by default chosen by memory.

    Raises UserError for an architecture that the implementation cannot follow (`naive` follows every decoder with an
    output layer) and for entropies that are not finite. Raises ValueError for an empty prompt or postfix, an invalid
    mask, and a `temperature` or `chunk` that is not positive.
    """
    if implementation not in get_args(Implementation):
        raise unknown("implementation", implementation, get_args(Implementation))
    if not (0 < temperature < float("inf")) or (chunk is not None and chunk < 1):
        raise ValueError(f"temperature must be positive and finite, is {temperature}; chunk at least 1, is {chunk}")
    prompt_mask_BP = as_mask(prompt_mask_BP, "prompt_mask_BP", prompt_ids_BP)
    completion_mask_BT = as_mask(completion_mask_BT, "completion_mask_BT", completion_ids_BT)
    if not prompt_mask_BP.any(dim=1).all() or not len(postfix_ids_K):
        raise ValueError("answer entropies need at least one prompt token and one postfix token")
    if (completion_mask_BT[:, 1:] & ~completion_mask_BT[:, :-1]).any():
        raise ValueError("completion_mask_BT is not right-padded: entry t of a row is the entropy after t tokens")
    B, T = completion_ids_BT.shape
    out_BS = torch.zeros(B, T + 1, device=completion_ids_BT.device)
    with evaluating(model):
        for block in packed_blocks(
            prompt_ids_BP, prompt_mask_BP, completion_ids_BT, completion_mask_BT, pass_tokens(model)
        ):
            if implementation == "shared_kv":
                packed = PackedBatch(model, block)
                rows = read_answers(packed, postfix_ids_K, temperature, chunk=chunk, reading=reading)
            else:
                rows = _read_apart(model, block, postfix_ids_K, temperature, chunk, reading, implementation)
            for row, e in zip(block.rows, rows, strict=True):
                out_BS[row, : len(e)] = e
    require_finite(out_BS, "answer entropies")
    return out_BS


def _read_apart(
    model: PreTrainedModel,
    block: Block,
    postfix_K: torch.Tensor,
    temperature: float,
    chunk: int | None,
    reading: AnswerReading,
    implementation: Implementation,
) -> list[torch.Tensor]:
    """`read_answers` for the two implementations that read one row at a time."""
    _, head = decoder_and_head(model)
    rows = []
    for owner, completion in zip(block.owners, block.completions, strict=True):
        prefixes = reading.prefixes(completion)
        if implementation == "naive":
            hidden_ND = _naive(model, block.prompts[owner], completion, prefixes, postfix_K)
        else:
            chunk = chunk or REPLICATED_CHUNK
            hidden_ND = _kv_replicated(model, block.prompts[owner], completion, prefixes, postfix_K, chunk)
        _, e = next_token_statistics(head, hidden_ND, temperature)
        rows.append(reading.fill(e, prefixes, len(completion)))
    return rows


def read_answers(
    packed: PackedBatch,
    postfix_ids_K: torch.Tensor,
    temperature: float,
    *,
    chunk: int | None = None,
    reading: AnswerReading = EVERY_PREFIX,
) -> list[torch.Tensor]:
    """Answer entropies (nats) of each row of a packed batch at prefixes 0 to its length: float32 (length + 1,) each."""
    read = [reading.prefixes(completion) for completion in packed.completions]
    prefixes = [(row, t) for row, ts in enumerate(read) for t in ts]
    chunk = chunk or max(1, pass_tokens(packed.model) // len(postfix_ids_K))
    parts = []
    for i in range(0, len(prefixes), chunk):
        hidden_ND = packed.read_postfix(postfix_ids_K, prefixes[i : i + chunk])
        parts.append(next_token_statistics(packed.head, hidden_ND, temperature)[1])
    rows = torch.cat(parts).split([len(ts) for ts in read])
    return [
        reading.fill(e, ts, len(completion)) for e, ts, completion in zip(rows, read, packed.completions, strict=True)
    ]


def next_token_statistics(
    head: torch.nn.Module, hidden_ND: torch.Tensor, temperature: float, targets_N: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target and entropy of each next-token distribution (nats), both float32 (N,).

    Never holds all logits at once. Without targets the log-probabilities are 0.
    """
    chosen, entropy = [], []
    step = max(1, HEAD_ELEMENTS // int(head.weight.shape[0]))  # type: ignore[index]
    for start in range(0, len(hidden_ND), step):
        logits = head(hidden_ND[start : start + step]).float() / temperature
        logits -= logits.amax(dim=-1, keepdim=True)
        weights = logits.exp()
        total = weights.sum(dim=-1)
        entropy.append(total.log() - torch.linalg.vecdot(weights, logits) / total)
        if targets_N is None:
            chosen.append(torch.zeros_like(total))
        else:
            chosen.append(logits.gather(1, targets_N[start : start + step, None])[:, 0] - total.log())
    return torch.cat(chosen), torch.cat(entropy)


def pass_tokens(model: PreTrainedModel) -> int:
    """Tokens per forward pass, as many as the memory for their activations allows."""
    config = model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    width = 8 * config.hidden_size + 3 * (max(inner) if isinstance(inner, list) else inner)
    if (device := model.device).type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
        free = torch.cuda.mem_get_info(device)[0] + cached
        return max(1, min(PASS_TOKENS, free // 16 // (width * model.dtype.itemsize)))
    return max(1, PASS_BYTES // (width * model.dtype.itemsize))


def _naive(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    completion: torch.Tensor,
    prefixes: Sequence[int],
    postfix_K: torch.Tensor,
) -> torch.Tensor:
    decoder, _ = decoder_and_head(model)
    return torch.stack(
        [
            decoder(torch.cat([prompt, completion[:t], postfix_K])[None], use_cache=False).last_hidden_state[0, -1]
            for t in prefixes
        ]
    )


def _kv_replicated(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    completion: torch.Tensor,
    prefixes: Sequence[int],
    postfix_K: torch.Tensor,
    chunk: int,
) -> torch.Tensor:
    decoder, _ = decoder_and_head(model)
    K = len(postfix_K)
    require_exact(model, len(prompt) + len(completion) + K, "replicated cache", replicated_states)
    whole = DynamicCache(config=decoder.config)
    decoder(torch.cat([prompt, completion])[None], past_key_values=whole, use_cache=True)
    parts = []
    for start in range(0, len(prefixes), chunk):
        ends_C = len(prompt) + torch.tensor(prefixes[start : start + chunk], device=prompt.device)
        C, width = len(ends_C), int(ends_C[-1])
        copies = DynamicCache(config=decoder.config)
        for index, layer in enumerate(whole.layers):
            copies.update(
                layer.keys[:, :, :width].repeat(C, 1, 1, 1), layer.values[:, :, :width].repeat(C, 1, 1, 1), index
            )
        sees_prefix = (torch.arange(width, device=prompt.device) < ends_C[:, None])[:, None].expand(C, K, width)
        sees_itself = torch.ones(K, K, dtype=torch.bool, device=prompt.device).tril().expand(C, K, K)
        mask_CKL = torch.cat([sees_prefix, sees_itself], dim=2)
        if decoder.config._attn_implementation == "eager":  # eager attention adds its mask to the scores
            lowest = torch.finfo(decoder.dtype).min
            mask_CKL = torch.zeros(mask_CKL.shape, dtype=decoder.dtype, device=prompt.device).masked_fill(
                ~mask_CKL, lowest
            )
        hidden_CKD = decoder(
            postfix_K.expand(C, K),
            attention_mask=mask_CKL[:, None],
            position_ids=ends_C[:, None] + torch.arange(K, device=prompt.device),
            past_key_values=copies,
            use_cache=True,
        ).last_hidden_state
        parts.append(hidden_CKD[:, -1])
    return torch.cat(parts)


def replicated_states(model: PreTrainedModel, ids_L: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """For `require_exact`: the state of a postfix of one token after all others."""
    prompt, completion, postfix = ids_L[:1], ids_L[1:-1], ids_L[-1:]
    prefixes = sorted({0, len(completion)})
    return [len(ids_L) - 1], _kv_replicated(model, prompt, completion, prefixes, postfix, 2)[-1:]
