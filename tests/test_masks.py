"""Masks are bool: integers of 0 and 1 are taken, everything else is refused."""

from dataclasses import replace

import pytest
import torch
from builders import ragged_batch
from test_informativeness import build, rows_of

from iapo_bench.batch import as_mask
from iapo_bench.informativeness import answer_entropies
from iapo_bench.method import Signal, assign, masked_moments, masked_normalise, padded_widths
from iapo_bench.signals.packed import packed_blocks
from iapo_bench.signals.statistics import compute_signals, left_align


def test_masks_of_integers_are_masks():
    model, batch = build("llama"), ragged_batch()
    prompt, prompt_mask, ids, mask = rows_of(batch)
    postfix = torch.tensor([4, 5])
    for implementation in ("shared_kv", "kv_replicated", "naive"):
        expected = answer_entropies(model, *rows_of(batch), postfix, implementation=implementation)
        for dtype in (torch.long, torch.int32, torch.uint8):
            got = answer_entropies(
                *(model, prompt, prompt_mask.to(dtype), ids, mask.to(dtype), postfix), implementation=implementation
            )
            assert torch.equal(got, expected)
    for one, other in zip(
        packed_blocks(*rows_of(batch), 60), packed_blocks(prompt, prompt_mask.long(), ids, mask.long(), 60), strict=True
    ):
        assert [part.tolist() for part in one.completions] == [part.tolist() for part in other.completions]
    ours, theirs = left_align(*rows_of(batch)), left_align(prompt, prompt_mask.long(), ids, mask.long())
    assert torch.equal(ours[0], theirs[0])
    for wrong in (mask.float(), mask.long() * 2, mask[:, :-1], mask.tolist()):
        with pytest.raises(ValueError, match="completion_mask_BT"):
            answer_entropies(model, prompt, prompt_mask, ids, wrong, postfix)
        with pytest.raises(ValueError, match="completion_mask_BT"):
            next(packed_blocks(prompt, prompt_mask, ids, wrong, 60))
    with pytest.raises(ValueError, match="right-padded"):
        answer_entropies(model, prompt, prompt_mask, ids, mask.flip(1), postfix)
    with pytest.raises(ValueError, match="what prompt_mask_BP masks must be a tensor, is list"):
        left_align(prompt.tolist(), prompt_mask, ids, mask)
    assert as_mask(torch.tensor([1, 0]), "mask").dtype == torch.bool


def test_a_batch_turns_masks_of_integers_into_bool_and_refuses_what_is_none():
    model, batch = build("llama"), ragged_batch()
    mask = batch.completion_mask_BT
    settings = {"temperature": 1.0, "micro_batch_tokens": 60, "postfix_ids": [4, 5]}
    expected = compute_signals(model, batch, frozenset(Signal), **settings)
    for dtype in (torch.long, torch.uint8):
        other = replace(batch, completion_mask_BT=mask.to(dtype), prompt_mask_BP=batch.prompt_mask_BP.to(dtype))
        assert other.completion_mask_BT.dtype == torch.bool
        got = compute_signals(model, other.validate(), frozenset(Signal), **settings)
        for signal in Signal:
            assert torch.equal(getattr(got, signal.value), getattr(expected, signal.value))
        values = batch.sampler_logp_BT
        assert torch.equal(masked_normalise(values, mask.to(dtype)), masked_normalise(values, mask))
        assert torch.equal(padded_widths(mask.to(dtype), 2, 1), padded_widths(mask, 2, 1))
        assert torch.equal(assign(values, batch, mask.to(dtype)).weights_BT, mask.float())
    for wrong in (mask.float(), mask.long() - 1, mask.tolist()):
        with pytest.raises(ValueError, match="completion_mask_BT must"):
            replace(batch, completion_mask_BT=wrong)
        with pytest.raises(ValueError, match="mask_RM must"):
            masked_moments(batch.sampler_logp_BT, wrong)
