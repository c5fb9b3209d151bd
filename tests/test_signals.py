"""Log-probabilities, entropies and informativeness, against the plainest computation of each."""

from dataclasses import replace

import pytest
import torch
from builders import ragged_batch
from torch.utils._python_dispatch import TorchDispatchMode

from iapo_bench.method import Signal
from iapo_bench.models.checkpoints import build_micro
from iapo_bench.signals.statistics import compute_signals, micro_batches, token_statistics


def plain_statistics(model, batch, temperature):
    """One unpadded forward a row, all logits at once."""
    logps, entropies = [], []
    for row in range(len(batch.rewards_B)):
        prompt = batch.prompt_ids_BP[row][batch.prompt_mask_BP[row]]
        completion = batch.completion_ids_BT[row][batch.completion_mask_BT[row]]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits / temperature, -1)
        logps.append(logp.gather(1, completion[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(-1))
    return torch.cat(logps), torch.cat(entropies)


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_statistics_and_their_gradients(any_model, chunk):
    batch = ragged_batch()
    logp, entropy = token_statistics(any_model, batch, temperature=0.8, entropy=True, chunk_tokens=chunk)
    plain_logp, plain_entropy = plain_statistics(any_model, batch, 0.8)
    torch.testing.assert_close(logp, plain_logp, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, plain_entropy, atol=1e-5, rtol=0)
    weights = torch.linspace(-1, 1, len(logp))
    ours = torch.autograd.grad((weights * logp + weights.flip(0) * entropy).sum(), list(any_model.parameters()))
    theirs = torch.autograd.grad(
        (weights * plain_logp + weights.flip(0) * plain_entropy).sum(), list(any_model.parameters())
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


class _LargestFloat(TorchDispatchMode):
    """The most elements that any float tensor made meanwhile has over the vocabulary dimension."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.most_rows = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == self.vocabulary:
                self.most_rows = max(self.most_rows, tensor.numel() // self.vocabulary)
        return out


def test_all_logits_never_exist_at_once(model):
    batch = ragged_batch(groups=6)
    tokens = int(batch.lengths_B.sum())
    with _LargestFloat(model.config.vocab_size) as seen:
        logp, _ = token_statistics(model, batch, temperature=1.0, entropy=False, chunk_tokens=32)
        logp.sum().backward()
    assert seen.most_rows == 32 < tokens


def test_micro_batches_are_a_partition_within_the_budget():
    batch = ragged_batch(groups=6)
    lengths = batch.prompt_mask_BP.sum(1) + batch.lengths_B
    parts = list(micro_batches(batch, 40))
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    assert len(parts) > 2
    assert all(len(part) * int(lengths[part].max()) <= 40 for part in parts)
    assert len(list(micro_batches(batch, 1))) == 12


def test_signals_only_when_needed_and_where_they_belong(model, tokenizer):
    batch = ragged_batch()
    options = {"temperature": 0.8, "micro_batch_tokens": 30, "postfix_ids": [4, 5]}
    empty = compute_signals(model, batch, frozenset(), **options)
    assert empty.old_logp_BT is None
    assert empty.token_entropy_BT is None
    assert empty.answer_entropy_BS is None
    reference = build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=2).eval()
    full = compute_signals(model, batch, frozenset(Signal), **options, reference=reference).validate()
    logp, entropy = plain_statistics(model, batch, 0.8)
    ref_logp, _ = plain_statistics(reference, batch, 0.8)
    assert (logp - ref_logp).abs().max() > 0.01
    mask = batch.completion_mask_BT
    torch.testing.assert_close(full.old_logp_BT[mask], logp, atol=1e-5, rtol=0)
    torch.testing.assert_close(full.ref_logp_BT[mask], ref_logp, atol=1e-5, rtol=0)
    torch.testing.assert_close(full.token_entropy_BT[mask], entropy, atol=1e-5, rtol=0)
    assert (full.old_logp_BT[~mask] == 0).all()
    assert not full.old_logp_BT.requires_grad


BROKEN = {
    "cannot be split into groups": lambda b: replace(b, group_size=4),
    "expected": lambda b: replace(b, rewards_B=torch.zeros(5)),
    "NaN or infinity": lambda b: replace(b, sampler_logp_BT=b.sampler_logp_BT + float("nan")),
    "must be bool": lambda b: replace(b, correct_B=b.correct_B.float()),
    "not left-padded": lambda b: replace(b, prompt_mask_BP=b.prompt_mask_BP.flip(1)),
    "not right-padded": lambda b: replace(b, completion_mask_BT=b.completion_mask_BT.flip(1)),
    "empty completion": lambda b: replace(b, completion_mask_BT=torch.zeros_like(b.completion_mask_BT)),
    "longer than the limit": lambda b: replace(b, max_tokens=3),
    "different prompts": lambda b: replace(b, prompt_ids_BP=b.prompt_ids_BP + torch.arange(6)[:, None]),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_batch_never_passes(message):
    ragged_batch().validate()
    with pytest.raises(ValueError, match=message):
        BROKEN[message](ragged_batch()).validate()
