"""Log-probabilities and entropies of completion tokens, without ever holding all logits at once.

Rows are read left-aligned: prompt and completion without the padding between them, what is left of it at the end, where
a causal model cannot see it. So no mask is needed, nothing shifts a position, and the fast attention path applies.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from iapo_bench.batch import RolloutBatch
from iapo_bench.informativeness import answer_entropies
from iapo_bench.method import Signal
from iapo_bench.models import decoder_and_head

CHUNK_TOKENS = 1024
CHUNK_LOGITS = 2**26  # 256 MiB of float32


def left_align(
    prompt_ids_BP: torch.Tensor,
    prompt_mask_BP: torch.Tensor,
    completion_ids_BT: torch.Tensor,
    completion_mask_BT: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of real tokens followed by padding, int64 (B, L), and prompt lengths, int64 (B,)."""
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

    chunk = max(1, min(chunk_tokens, CHUNK_LOGITS // model.config.vocab_size))
    parts = [
        checkpoint(statistics, hidden, targets, use_reentrant=False)
        if torch.is_grad_enabled()
        else statistics(hidden, targets)
        for hidden, targets in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
    ]
    logp_N = torch.cat([part[0] for part in parts])
    return logp_N, torch.cat([part[1] for part in parts]) if entropy else None


def micro_batches(batch: RolloutBatch, max_tokens: int) -> Iterator[torch.Tensor]:
    """Row indices in parts of at most `max_tokens` padded tokens (or one row), rows of like length together."""
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
) -> RolloutBatch:
    """The batch with the signals in `needs`, and the reference model's log-probabilities if there is one."""
    was_training = model.training
    model.eval()
    filled: dict[str, Any] = {}

    def put(name: str, rows: torch.Tensor, flat_N: torch.Tensor) -> None:
        mask_BT = batch.completion_mask_BT[rows]
        part = torch.zeros(mask_BT.shape, device=flat_N.device).masked_scatter(mask_BT, flat_N)
        filled.setdefault(name, torch.zeros(batch.completion_mask_BT.shape, device=flat_N.device))[rows] = part

    entropy = Signal.TOKEN_ENTROPY in needs
    for rows in micro_batches(batch, micro_batch_tokens):
        part = batch.rows(rows)
        if entropy or Signal.OLD_LOGP in needs:
            logp_N, entropy_N = token_statistics(model, part, temperature=temperature, entropy=entropy)
            put("old_logp_BT", rows, logp_N)
            if entropy_N is not None:
                put("token_entropy_BT", rows, entropy_N)
        if reference is not None:
            put("ref_logp_BT", rows, token_statistics(reference, part, temperature=temperature, entropy=False)[0])
    if Signal.ANSWER_ENTROPY in needs:
        filled["answer_entropy_BS"] = answer_entropies(
            model,
            batch.prompt_ids_BP,
            batch.prompt_mask_BP,
            batch.completion_ids_BT,
            batch.completion_mask_BT,
            torch.tensor(postfix_ids, device=batch.rewards_B.device),
            temperature=temperature,
        )
    model.train(was_training)
    return replace(batch, **filled)
