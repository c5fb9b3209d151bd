"""Entropies read from a padded batch, as the code released with the IAPO paper reads them (`method.Reading`).

A forward pass over rows padded on both sides keeps every key and value. The postfix then reads each prefix in place;
`Reading` sets how much padding the postfix sees, and its positions. With every departure off, the entropies are
those of `informativeness.answer_entropies`.
"""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Reading, Signal, padded_widths
from iapo_bench.models.checkpoints import decoder_and_head, evaluating
from iapo_bench.models.exact import require_exact
from iapo_bench.signals.informativeness import HEAD_ELEMENTS, next_token_statistics, replicated_states


def part_widths(batch: RolloutBatch, reading: Reading) -> torch.Tensor:
    """Padded widths of prompt and completion in each row's part, int64 (B, 2)."""
    masks = (batch.prompt_mask_BP, batch.completion_mask_BT)
    return torch.stack([padded_widths(mask, batch.group_size, reading.ranks) for mask in masks], dim=1)


@torch.no_grad()
def padded_entropies(
    model: PreTrainedModel,
    batch: RolloutBatch,
    reading: Reading,
    *,
    temperature: float,
    micro_batch_tokens: int,
    postfix_ids: list[int] | None,
    widths_B2: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropies (nats) of each token (B, T) and of the answer after each prefix (B, T+1), float32.

    Without `postfix_ids` the latter are 0. Entries beyond a row's length are 0; with `reading.padding`, those beyond
    its part's width.
    `widths_B2`: the `part_widths` of the whole batch, if `batch` holds only some of its rows.

    The model should use rotary position embeddings: absolute positions count the padding. Raises UserError for an
    architecture with more than plain attention.
    """
    widths_B2 = part_widths(batch, reading) if widths_B2 is None else widths_B2
    B, T = batch.completion_mask_BT.shape
    tokens_BT = torch.zeros(B, T, device=widths_B2.device)
    answers_BS = torch.zeros(B, T + 1, device=widths_B2.device)
    postfix_K = torch.tensor(postfix_ids or [], dtype=torch.long, device=widths_B2.device)
    with evaluating(model):
        for prompt_width, width in torch.unique(widths_B2, dim=0).tolist():
            part = (widths_B2 == widths_B2.new_tensor([prompt_width, width])).all(dim=1).nonzero()[:, 0]
            for rows in part.split(max(1, micro_batch_tokens // (prompt_width + width))):
                padded = _Padded(model, batch.rows(rows), prompt_width, width, temperature, reading)
                tokens_BT[rows, :width] = padded.token_entropies()
                if postfix_ids:
                    answers_BS[rows, : width + 1] = padded.answer_entropies(postfix_K, micro_batch_tokens)
    if not reading.padding:
        steps_S = torch.arange(T + 1, device=widths_B2.device)
        tokens_BT = torch.where(batch.completion_mask_BT, tokens_BT, 0.0)
        answers_BS = torch.where(steps_S <= batch.lengths_B[:, None], answers_BS, 0.0)
    return tokens_BT, answers_BS


def padded_signals(
    model: PreTrainedModel,
    batch: RolloutBatch,
    needs: frozenset[Signal],
    reading: Reading,
    *,
    postfix_ids: list[int],
    **settings: Any,
) -> dict[str, Any]:
    """The entropies among `needs`, computed by `padded_entropies`, by their names in the batch."""
    asked = needs & {Signal.TOKEN_ENTROPY, Signal.ANSWER_ENTROPY}
    if not asked:
        return {}
    postfix = postfix_ids if Signal.ANSWER_ENTROPY in asked else None
    tokens_BT, answers_BS = padded_entropies(model, batch, reading, postfix_ids=postfix, **settings)
    read = {Signal.TOKEN_ENTROPY: tokens_BT, Signal.ANSWER_ENTROPY: answers_BS}
    return {signal.value: read[signal] for signal in asked}


class _Padded:
    """Rows of one part after their forward pass: P columns of prompt, T of completion."""

    def __init__(
        self, model: PreTrainedModel, batch: RolloutBatch, P: int, T: int, temperature: float, reading: Reading
    ) -> None:
        require_exact(model, P + T, "padded pass", replicated_states)
        self.P, self.T, self.temperature, self.reading = P, T, temperature, reading
        self.decoder, self.head = decoder_and_head(model)
        ids_BL = torch.cat([batch.prompt_ids_BP[:, -P:], batch.completion_ids_BT[:, :T]], dim=1)
        self.prompt_mask_BP = batch.prompt_mask_BP[:, -P:]
        mask_BL = torch.cat([self.prompt_mask_BP, batch.completion_mask_BT[:, :T]], dim=1)
        self.cache = DynamicCache(config=self.decoder.config)
        self.hidden_BLD = self.decoder(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            position_ids=torch.arange(P + T, device=ids_BL.device).expand_as(ids_BL),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def token_entropies(self) -> torch.Tensor:
        """Entropies of the completion's tokens, (rows, T)."""
        return self._entropy(self.hidden_BLD[:, self.P - 1 : -1])

    def answer_entropies(self, postfix_K: torch.Tensor, pass_tokens: int) -> torch.Tensor:
        """Entropies of the answer after each prefix, (rows, T + 1)."""
        B, K = len(self.hidden_BLD), len(postfix_K)
        parts = []
        for ends_C in torch.arange(self.T + 1, device=postfix_K.device).split(max(1, pass_tokens // (B * K))):
            C = len(ends_C)
            hidden_BQD = self.decoder(
                input_ids=postfix_K.repeat(B, C),
                attention_mask=self._mask(ends_C, K),
                position_ids=self._positions(ends_C, K).expand(B, C * K),
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
            self.cache.crop(-C * K)
            parts.append(self._entropy(hidden_BQD[:, K - 1 :: K]))
        return torch.cat(parts, dim=1)

    def _positions(self, ends_C: torch.Tensor, K: int) -> torch.Tensor:
        """Positions of the postfixes' tokens, (C * K,): after the prefix, or after the longest prefix of its chunk."""
        if chunk := self.reading.postfix_chunk:
            longest_C = ((ends_C // chunk + 1) * chunk).clamp(max=self.T) - 1
            ends_C = torch.maximum(ends_C, longest_C)  # the full prefix, which that code does not read, has no chunk
        return (self.P + ends_C[:, None] + torch.arange(K, device=ends_C.device)).view(-1)

    def _mask(self, ends_C: torch.Tensor, K: int) -> torch.Tensor:
        """Additive mask (rows, 1, C * K, P + T + C * K): each postfix sees its prefix and itself."""
        C, device = len(ends_C), ends_C.device
        prompt_BP = torch.ones_like(self.prompt_mask_BP) if self.reading.left_padding else self.prompt_mask_BP
        completion_CT = torch.arange(self.T, device=device) < ends_C[:, None]
        prefix_BCL = torch.cat(
            [prompt_BP[:, None].expand(-1, C, -1), completion_CT.expand(len(prompt_BP), C, self.T)], dim=2
        )
        own_QQ = torch.block_diag(*[torch.ones(K, K, device=device).tril()] * C).bool()
        seen_BQL = torch.cat(
            [prefix_BCL.repeat_interleave(K, dim=1), own_QQ.expand(len(prompt_BP), C * K, C * K)], dim=2
        )
        lowest = torch.finfo(self.decoder.dtype).min
        return torch.zeros(seen_BQL.shape, dtype=self.decoder.dtype, device=device).masked_fill(~seen_BQL, lowest)[
            :, None
        ]

    def _entropy(self, hidden_BND: torch.Tensor) -> torch.Tensor:
        hidden_ND = hidden_BND.flatten(0, 1)
        if not self.reading.bfloat16:
            return next_token_statistics(self.head, hidden_ND, self.temperature)[1].view(hidden_BND.shape[:2])
        entropy = []
        for part_ND in hidden_ND.split(max(1, HEAD_ELEMENTS // int(self.head.weight.shape[0]))):  # type: ignore[index]
            logp = torch.log_softmax(self.head(part_ND).bfloat16() / self.temperature, dim=-1)
            entropy.append(-(logp.exp() * logp).sum(dim=-1).float())
        return torch.cat(entropy).view(hidden_BND.shape[:2])
