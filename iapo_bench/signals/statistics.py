"""Log-probabilities and entropies of completion tokens, without ever holding all logits at once.

Rows are left-aligned: prompt and completion without padding between them, all padding at the end, where a causal model
cannot see it. So no mask is needed, positions do not shift, and the fast attention path applies.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from iapo_bench.batch import SIGNAL_NOISE, Noise, RolloutBatch, as_mask
from iapo_bench.method import EXACT, Reading, Signal
from iapo_bench.models.checkpoints import CHUNK_LOGITS, decoder_and_head, evaluating
from iapo_bench.models.lora import without_lora
from iapo_bench.signals.informativeness import EVERY_PREFIX, AnswerReading, next_token_statistics, read_answers
from iapo_bench.signals.packed import PackedBatch, packed_blocks
from iapo_bench.signals.padded import padded_signals

CHUNK_TOKENS = 1024


def left_align(
    prompt_ids_BP: torch.Tensor,
    prompt_mask_BP: torch.Tensor,
    completion_ids_BT: torch.Tensor,
    completion_mask_BT: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of real tokens followed by padding, int64 (B, L), and prompt lengths, int64 (B,)."""
    prompt_mask_BP = as_mask(prompt_mask_BP, "prompt_mask_BP", prompt_ids_BP)
    completion_mask_BT = as_mask(completion_mask_BT, "completion_mask_BT", completion_ids_BT)
    ids = torch.cat([prompt_ids_BP, completion_ids_BT], dim=1)
    mask = torch.cat([prompt_mask_BP, completion_mask_BT], dim=1)
    order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)
    longest = int(mask.sum(dim=1).max())
    return ids.gather(1, order)[:, :longest], prompt_mask_BP.sum(dim=1)


def token_statistics(
    model: PreTrainedModel,
    batch: RolloutBatch,
    *,
    temperature: float,
    entropy: bool,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability and, if asked for, full-vocabulary entropy (nats) of every real completion token.

    Both are float32 (tokens,), the rows of `batch` one after another, and differentiable: the backward pass recomputes
    each chunk's logits.
    """
    decoder, head = decoder_and_head(model)
    ids_BL, prompt_lengths_B = left_align(
        batch.prompt_ids_BP, batch.prompt_mask_BP, batch.completion_ids_BT, batch.completion_mask_BT
    )
    hidden_BLD = decoder(input_ids=ids_BL, use_cache=False).last_hidden_state
    steps = torch.arange(ids_BL.shape[1] - 1, device=ids_BL.device)
    # The state at position j predicts the token at j + 1.
    first_B1 = prompt_lengths_B[:, None] - 1
    predicts = (steps >= first_B1) & (steps < first_B1 + batch.lengths_B[:, None])
    hidden_ND = hidden_BLD[:, :-1][predicts]
    targets_N = ids_BL[:, 1:][predicts]

    def statistics(hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logp = torch.log_softmax(head(hidden).float() / temperature, dim=-1)
        chosen = logp.gather(1, targets[:, None])[:, 0]
        return chosen, -(logp.exp() * logp).sum(dim=-1) if entropy else torch.zeros_like(chosen)

    chunk = max(1, min(chunk_tokens, CHUNK_LOGITS // model.config.get_text_config().vocab_size))
    parts = [
        checkpoint(statistics, hidden, targets, use_reentrant=False)
        if torch.is_grad_enabled()
        else statistics(hidden, targets)
        for hidden, targets in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
    ]
    logp_N = torch.cat([part[0] for part in parts])
    return logp_N, torch.cat([part[1] for part in parts]) if entropy else None


def signal_noise(model: PreTrainedModel) -> Noise:
    """Rounding error of the signals that `model` computes, by its dtype: see `SIGNAL_NOISE`."""
    return SIGNAL_NOISE[str(model.dtype).removeprefix("torch.")]


def micro_batches(batch: RolloutBatch, max_tokens: int) -> Iterator[torch.Tensor]:
    """Row indices in micro-batches of at most `max_tokens` padded tokens (or one row), rows of similar length
    together."""
    lengths = (batch.prompt_mask_BP.sum(dim=1) + batch.lengths_B).tolist()
    part: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if part and lengths[part[0]] * (len(part) + 1) > max_tokens:
            yield torch.tensor(part, device=batch.rewards_B.device)
            part = []
        part.append(row)
    yield torch.tensor(part, device=batch.rewards_B.device)


@torch.no_grad()
def compute_signals(
    model: PreTrainedModel,
    batch: RolloutBatch,
    needs: frozenset[Signal],
    *,
    temperature: float,
    micro_batch_tokens: int,
    postfix_ids: list[int],
    reference: PreTrainedModel | None = None,
    reading: AnswerReading = EVERY_PREFIX,
    entropies: Reading = EXACT,
    widths_B2: torch.Tensor | None = None,
) -> RolloutBatch:
    """The batch with the signals in `needs` and, given a `reference` model, its log-probabilities.

    `reference` runs with its adapters off, so a model with adapters can be its own reference.
    `entropies`: a method's departure from the exact entropies (see `padded.padded_entropies`, also for `widths_B2`);
    every prefix is then read, and `reading` is ignored.

    One packed pass serves all signals: the answer entropies reuse the keys and values of the pass that gives the
    log-probabilities and token entropies. Raises UserError for an architecture with more than plain attention.
    """
    pass_settings: dict[str, Any] = {"temperature": temperature, "micro_batch_tokens": micro_batch_tokens}
    departed = (
        padded_signals(model, batch, needs, entropies, postfix_ids=postfix_ids, widths_B2=widths_B2, **pass_settings)
        if entropies != EXACT
        else {}
    )
    needs = frozenset(wanted for wanted in needs if wanted.value not in departed)
    T = batch.completion_ids_BT.shape[1]
    answer_BS = batch.completion_mask_BT.new_zeros(len(batch.rewards_B), T + 1, dtype=torch.float32)
    flat: dict[str, list[torch.Tensor]] = {}
    blocks = packed_blocks(
        batch.prompt_ids_BP, batch.prompt_mask_BP, batch.completion_ids_BT, batch.completion_mask_BT, micro_batch_tokens
    )
    for block in blocks:
        targets_N = torch.cat(block.completions)
        if needs:
            with evaluating(model):
                packed = PackedBatch(model, block)
                if needs & {Signal.OLD_LOGP, Signal.TOKEN_ENTROPY}:
                    logp_N, entropy_N = next_token_statistics(packed.head, packed.predictive_ND, temperature, targets_N)
                    flat.setdefault("old_logp_BT", []).append(logp_N)
                    flat.setdefault("token_entropy_BT", []).append(entropy_N)
                if Signal.ANSWER_ENTROPY in needs:
                    rows = read_answers(
                        packed, torch.tensor(postfix_ids, device=targets_N.device), temperature, reading=reading
                    )
                    for row, e in zip(block.rows, rows, strict=True):
                        answer_BS[row, : len(e)] = e
        if reference is not None:
            with evaluating(reference), without_lora(reference):
                packed = PackedBatch(reference, block)
                logp_N, _ = next_token_statistics(packed.head, packed.predictive_ND, temperature, targets_N)
                flat.setdefault("ref_logp_BT", []).append(logp_N)
    asked = {"old_logp_BT": Signal.OLD_LOGP, "token_entropy_BT": Signal.TOKEN_ENTROPY}
    # Blocks hold the rows in order, so the tokens of all blocks fill the mask in order.
    filled: dict[str, Any] = {
        name: torch.zeros(batch.completion_mask_BT.shape, device=parts[0].device).masked_scatter(
            batch.completion_mask_BT, torch.cat(parts)
        )
        for name, parts in flat.items()
        if name not in asked or asked[name] in needs
    }
    if Signal.ANSWER_ENTROPY in needs:
        filled["answer_entropy_BS"] = answer_BS
    return replace(batch, signal_noise=signal_noise(model), **filled, **departed)
