"""What the tests of this folder check, by device: on a GPU there, and on a CPU to know that the checks themselves run.

The truth is always the plainest computation, in float32 on the CPU.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from iapo_bench.batch import RolloutBatch
from iapo_bench.bench.informativeness import with_extra_memory
from iapo_bench.config.train import TrainConfig
from iapo_bench.method import Credit, LossSpec, Signal
from iapo_bench.rollout import Completion
from iapo_bench.rollout.collate import collate
from iapo_bench.signals import packed
from iapo_bench.signals.informativeness import PASS_TOKENS, Implementation, answer_entropies
from iapo_bench.signals.statistics import compute_signals, token_statistics
from iapo_bench.train.optimizer import make_optimizer
from iapo_bench.train.update import backward, update

VOCABULARY = 500
POSTFIX_IDS = [4, 5, 6]
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Shape:
    """Heads, key heads and channels of a head, as in a published model: they decide which kernel runs."""

    heads: int
    kv_heads: int
    head_dim: int
    qwen: bool = False


SHAPES = {
    "smollm2-135m": Shape(9, 3, 64),
    "qwen2.5-0.5b": Shape(14, 2, 64, qwen=True),
    "qwen2.5-1.5b": Shape(6, 1, 128, qwen=True),  # half of the heads
    "micro": Shape(4, 2, 32),
}


def build(shape: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """Two layers whose next-token distributions differ: freshly initialised ones are nearly uniform and hide errors."""
    size = SHAPES[shape]
    config, decoder = (Qwen2Config, Qwen2ForCausalLM) if size.qwen else (LlamaConfig, LlamaForCausalLM)
    torch.manual_seed(5)
    model = decoder(
        config(
            vocab_size=VOCABULARY,
            max_position_embeddings=4096,
            hidden_size=size.heads * size.head_dim,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.to(device, dtype)


def ragged(longest: int, device: str) -> RolloutBatch:
    """Two groups of three, of 1 to `longest` tokens; a prompt is longer than a block of the attention kernel."""
    generator = torch.Generator().manual_seed(longest)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()

    lengths = [longest, 1, longest // 3 + 1, 2, longest // 4 + 1, 3]
    completions = [Completion(tuple(ids(n)), (-1.0,) * n, "stop") for n in lengths]
    flags = [row % 2 == 0 for row in range(len(lengths))]
    prompts = [ids(150), ids(7)]
    return collate(prompts, completions, flags, flags, group_size=3, max_tokens=max(lengths), pad_id=0, device=device)


def to_device(batch: RolloutBatch, device: str) -> RolloutBatch:
    """The same batch elsewhere."""
    tensors = {f.name: v.to(device) for f in fields(batch) if isinstance(v := getattr(batch, f.name), torch.Tensor)}
    return replace(batch, **tensors)


@torch.no_grad()
def plain_signals(model: PreTrainedModel, batch: RolloutBatch) -> dict[str, torch.Tensor]:
    """Log-probabilities and entropies by one forward a row, flat, and answer entropies by one a prefix; on the CPU."""
    logps, entropies, answers = [], [], []
    postfix = torch.tensor(POSTFIX_IDS, device=batch.rewards_B.device)
    for row in range(len(batch.rewards_B)):
        prompt = batch.prompt_ids_BP[row][batch.prompt_mask_BP[row]]
        completion = batch.completion_ids_BT[row][batch.completion_mask_BT[row]]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits.float() / TEMPERATURE, -1)
        logps.append(logp.gather(1, completion[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(-1))
        for t in range(len(completion) + 1):
            asked = torch.cat([prompt, completion[:t], postfix])
            last = torch.log_softmax(model(input_ids=asked[None]).logits[0, -1].float() / TEMPERATURE, -1)
            answers.append(-(last.exp() * last).sum())
    return {
        "logp": torch.cat(logps).cpu(),
        "entropy": torch.cat(entropies).cpu(),
        "answer": torch.stack(answers).cpu(),
    }


def our_signals(model: PreTrainedModel, reference: PreTrainedModel, batch: RolloutBatch) -> dict[str, torch.Tensor]:
    """The same, and the reference's log-probabilities, by the code that trains; on the CPU."""
    filled = compute_signals(
        model,
        batch,
        frozenset(Signal),
        temperature=TEMPERATURE,
        micro_batch_tokens=600,
        postfix_ids=POSTFIX_IDS,
        reference=reference,
    )
    mask_BT = batch.completion_mask_BT
    return {
        "logp": filled.old_logp_BT[mask_BT].cpu(),
        "reference": filled.ref_logp_BT[mask_BT].cpu(),
        "entropy": filled.token_entropy_BT[mask_BT].cpu(),
        "answer": _flat_answers(filled.answer_entropy_BS, batch),
    }


def _flat_answers(e_BS: torch.Tensor, batch: RolloutBatch) -> torch.Tensor:
    lengths = batch.lengths_B.tolist()
    return torch.cat([e[: length + 1] for e, length in zip(e_BS, lengths, strict=True)]).cpu()


def other(model: PreTrainedModel) -> PreTrainedModel:
    """A reference that is another model."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.get_output_embeddings().weight.mul_(0.9)
    return reference


def check_signals_float32(shape: str, device: str) -> None:
    """Every signal on `device` is that of plain forwards on the CPU, within 1e-4 nats."""
    model, batch = build(shape), ragged(140, "cpu")
    reference = other(model)
    expected = {**plain_signals(model, batch), "reference": plain_signals(reference, batch)["logp"]}
    got = our_signals(model.to(device), reference.to(device), to_device(batch, device))
    assert float((expected["logp"] - expected["reference"]).abs().max()) > 0.01
    for name, values in expected.items():
        torch.testing.assert_close(got[name], values, atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def check_signals_bfloat16(shape: str, device: str) -> None:
    """In bfloat16 every signal is as near to the same weights in float32 as a plain bfloat16 forward is, or half as
    far again."""
    model, batch = build(shape, torch.bfloat16), ragged(140, "cpu")
    reference = other(model)
    exact = copy.deepcopy(model).float()
    expected = {**plain_signals(exact, batch), "reference": plain_signals(other(model).float(), batch)["logp"]}
    model, reference, moved = model.to(device), reference.to(device), to_device(batch, device)
    plain = {**plain_signals(model, moved), "reference": plain_signals(reference, moved)["logp"]}
    got = our_signals(model, reference, moved)
    for name, values in expected.items():
        ours, theirs = (float((side[name] - values).square().mean().sqrt()) for side in (got, plain))
        assert 0 < theirs < 0.2, f"{name}: a plain forward is {theirs:.2g} nats off"
        assert ours <= 1.5 * theirs, f"{name}: {ours:.2g} nats off, a plain forward {theirs:.2g}"


def check_answer_entropies(shape: str, implementation: Implementation, longest: int, device: str) -> None:
    """One implementation on `device` is the definition on the CPU, at lengths on both sides of a kernel's block."""
    model, batch = build(shape), ragged(longest, "cpu")
    expected = plain_signals(model, batch)["answer"]
    model, moved = model.to(device), to_device(batch, device)
    rows = (moved.prompt_ids_BP, moved.prompt_mask_BP, moved.completion_ids_BT, moved.completion_mask_BT)
    for chunk in (None, 50, 100 // len(POSTFIX_IDS)):  # the last: from 65 to 127 queries a pass
        got = answer_entropies(
            model,
            *rows,
            torch.tensor(POSTFIX_IDS, device=device),
            temperature=TEMPERATURE,
            chunk=chunk,
            implementation=implementation,
        )
        torch.testing.assert_close(_flat_answers(got, batch), expected, atol=1e-4, rtol=0)


def check_shapes_share_kernels(device: str, lengths: Sequence[int]) -> None:
    """Batches of every size of a run are served by no more compiled kernels than torch keeps: beyond, it would go on
    without any, and hold all attention scores."""
    model = build("smollm2-135m", device=device)
    reference = other(model)
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for longest in lengths:
            for rows in ([0], [3, 4], range(6)):
                batch = ragged(longest, device)
                part = replace(batch.rows(torch.tensor(list(rows), device=device)), group_size=1)
                our_signals(model, reference, part)
    assert counters["frames"]["total"] <= torch._dynamo.config.recompile_limit


def compile_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU take a GPU's way through the attention, traced the same but not compiled."""
    traced = torch.compile(packed.flex_attention, dynamic=True, backend="eager")
    monkeypatch.setattr(packed, "_compiled_flex", lambda: traced)
    monkeypatch.setattr(packed, "_attend_flash", packed._attend_flex)


def _credit(batch: RolloutBatch) -> Credit:
    generator = torch.Generator().manual_seed(0)
    mask_BT = batch.completion_mask_BT.cpu()
    advantages = torch.randn(mask_BT.shape, generator=generator) * mask_BT
    return Credit(advantages.to(batch.rewards_B.device), mask_BT.float().to(batch.rewards_B.device))


SPEC = LossSpec(kl_coef=0.1, entropy_coef=0.1, reduction="token_mean")


def _gradients(model: PreTrainedModel, batch: RolloutBatch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batch = replace(batch, ref_logp_BT=torch.full_like(batch.sampler_logp_BT, -5.0) * batch.completion_mask_BT)
    backward(model, batch, _credit(batch), SPEC, temperature=TEMPERATURE, micro_batch_tokens=700)
    return _on_cpu(model)


def _on_cpu(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    # Copies: a model that moves takes its gradients along, in place.
    return {n: p.grad.to("cpu", torch.float32, copy=True) for n, p in model.named_parameters()}


def _plain_gradients(model: PreTrainedModel, batch: RolloutBatch) -> dict[str, torch.Tensor]:
    """Of the same loss, written out, one row at a time."""
    model.zero_grad()
    credit, tokens = _credit(batch), int(batch.completion_mask_BT.sum())
    for row in range(len(batch.rewards_B)):
        prompt = batch.prompt_ids_BP[row][batch.prompt_mask_BP[row]]
        mask = batch.completion_mask_BT[row]
        completion = batch.completion_ids_BT[row][mask]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits.float() / TEMPERATURE, -1)
        logp, entropy = logps.gather(1, completion[:, None])[:, 0], -(logps.exp() * logps).sum(-1)
        difference = -5.0 - logp
        kl = difference.exp() - difference - 1
        ratio = (logp - logp.detach()).exp()
        losses = -ratio * credit.advantages_BT[row][mask] + SPEC.kl_coef * kl - SPEC.entropy_coef * entropy
        (losses.sum() / tokens).backward()
    return _on_cpu(model)


def _relative(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    distance = sum(float((got[name] - value).square().sum()) for name, value in expected.items())
    return (distance / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


def check_gradients_float32(shape: str, device: str) -> None:
    """The gradient of a step on `device` is that of the loss written out, on the CPU."""
    model, batch = build(shape), ragged(140, "cpu")
    expected = _plain_gradients(model, batch)
    got = _gradients(model.to(device), to_device(batch, device))
    assert _relative(got, expected) < 1e-4
    for name, value in expected.items():
        assert float(value.norm()) > 0
        assert float((got[name] - value).norm()) < 1e-3 * float(value.norm()), name


def check_gradients_bfloat16(shape: str, device: str) -> None:
    """In bfloat16 it is as near to the same weights' in float32 as a plain backward pass is, or half as far again."""
    model, batch = build(shape, torch.bfloat16), ragged(140, "cpu")
    expected = _plain_gradients(copy.deepcopy(model).float(), batch)
    model, moved = model.to(device), to_device(batch, device)
    theirs, ours = _relative(_plain_gradients(model, moved), expected), _relative(_gradients(model, moved), expected)
    assert 0 < theirs < 0.2
    assert ours <= 1.5 * theirs, f"{ours:.2g} off, a plain backward pass {theirs:.2g}"


def check_step(device: str) -> None:
    """The weights after an optimiser step on `device` are those on the CPU; a step of AdamW hides the gradient's size,
    so the stats are compared too."""
    batch, settings = (
        ragged(60, "cpu"),
        TrainConfig(completions=8, max_tokens=9, temperature=TEMPERATURE, lr=1e-3, micro_batch_tokens=700),
    )
    weights, stats = [], []
    for place in ("cpu", device):
        model, moved = build("smollm2-135m", device=place), to_device(batch, place)
        optimizer = make_optimizer(model, settings.lr)
        optimizer.param_groups[0]["eps"] = (
            1e-3  # else a gradient near 0 moves its weight by its sign, which is rounding
        )
        moved = replace(moved, ref_logp_BT=torch.full_like(moved.sampler_logp_BT, -5.0) * moved.completion_mask_BT)
        stats.append(update(model, optimizer, moved, _credit(moved), SPEC, settings))
        weights.append({name: value.detach().cpu() for name, value in model.named_parameters()})
    before = dict(build("smollm2-135m").named_parameters())
    for name, value in weights[0].items():
        assert float((value - before[name].detach()).abs().max()) > 0
        torch.testing.assert_close(weights[1][name], value, atol=2e-5, rtol=0)
    for name in ("loss", "kl", "grad_norm", "logp_gap"):
        assert stats[1][name] == pytest.approx(stats[0][name], rel=1e-3)


def check_answer_memory(device: str, lengths: tuple[int, int], ceiling: Callable[[int], float]) -> None:
    """What `shared_kv` takes beyond the weights stays under `ceiling` (bytes, by length) at both lengths."""
    model = build("smollm2-135m", torch.bfloat16 if device == "cuda" else torch.float32, device)
    generator = torch.Generator().manual_seed(0)
    for T in lengths:
        prompt = torch.randint(3, VOCABULARY, (1, 64), generator=generator).expand(8, -1).to(device)
        ids = torch.randint(3, VOCABULARY, (8, T), generator=generator).to(device)
        rows = (prompt, torch.ones_like(prompt, dtype=torch.bool), ids, torch.ones_like(ids, dtype=torch.bool))
        postfix_K = torch.tensor(POSTFIX_IDS, device=device)
        answer_entropies(model, *rows, postfix_K)  # what is compiled stays
        _, extra = with_extra_memory(lambda: answer_entropies(model, *rows, postfix_K), model.device)  # noqa: B023
        assert extra < ceiling(T), f"{extra / 2**20:.0f} MiB at T = {T}, at most {ceiling(T) / 2**20:.0f} expected"


def dense_scores(T: int) -> float:
    """Bytes of float32 attention scores of one pass over its keys, the thing that must never exist."""
    queries = min(PASS_TOKENS, 8 * T * len(POSTFIX_IDS))
    return 4.0 * SHAPES["smollm2-135m"].heads * queries * (min(PASS_TOKENS, 8 * (T + 64)) + queries)


def check_logit_memory(device: str, tokens: int, vocabulary: int, chunk_tokens: int) -> None:
    """Log-probabilities, entropies and their gradients take less than half of the memory of all logits, in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(device)
    generator = torch.Generator().manual_seed(0)
    rows, length = tokens // 512, 512
    ids = torch.randint(3, vocabulary, (rows, length), generator=generator).tolist()
    completions = [Completion(tuple(row), (-1.0,) * length, "stop") for row in ids]
    flags = [True] * rows
    batch = collate([[3, 4]], completions, flags, flags, group_size=rows, max_tokens=length, pad_id=0, device=device)

    def run() -> None:
        logp, entropy = token_statistics(model, batch, temperature=1.0, entropy=True, chunk_tokens=chunk_tokens)
        (logp.sum() + entropy.sum()).backward()

    run()
    model.zero_grad()
    _, extra = with_extra_memory(run, model.device)
    logits = 4 * tokens * vocabulary
    assert 4 * chunk_tokens * vocabulary / 2 < extra < logits / 2, f"{extra / 2**20:.0f} of {logits / 2**20:.0f} MiB"
