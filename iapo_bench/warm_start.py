"""The micro tier's base model: supervised steps on traces that say more than they need."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iapo_bench.models import build_micro
from iapo_bench.seeds import numpy_stream
from iapo_bench.worlds.micro import MicroWorld

IGNORED = -100


@dataclass(frozen=True)
class WarmStart:
    """Size of the model and length of its schooling: few steps leave it fallible, which is what training is to mend."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    steps: int = 500
    batch_size: int = 64
    lr: float = 3e-3
    seed: int = 0


def warm_start(
    world: MicroWorld, tokenizer: PreTrainedTokenizerBase, settings: WarmStart
) -> tuple[PreTrainedModel, list[dict]]:
    """A model that answers chains with traces, and one row of its loss every tenth step.

    The loss counts completion tokens only; the learning rate warms up over a twentieth of the steps, then falls.
    """
    model = build_micro(
        tokenizer, hidden=settings.hidden, layers=settings.layers, heads=settings.heads, seed=settings.seed
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01)
    warmup = max(1, settings.steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.steps - warmup)),
        ],
        [warmup],
    )
    pairs = [
        (tokenizer(question).input_ids, tokenizer(trace).input_ids)
        for question, trace in world.traces(settings.steps * settings.batch_size)
    ]
    batches = _batches([len(question) + len(trace) for question, trace in pairs], settings)
    log = []
    bar = trange(settings.steps, desc="warm start", unit="step", mininterval=1)
    for step in bar:
        ids_BT, labels_BT = _collate([pairs[i] for i in batches[step]], tokenizer.pad_token_id)
        # Right padding under a causal mask reaches no real token, and its labels are ignored.
        logits_BTV = model(input_ids=ids_BT[:, :-1]).logits
        loss = cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == settings.steps - 1:
            log.append({"step": step, "loss": round(loss.item(), 5)})
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval(), log


def _batches(lengths: list[int], settings: WarmStart) -> list[list[int]]:
    """Indices by batch. Within a window of batches like lengths go together, which halves the padding."""
    rng = numpy_stream(settings.seed, "warm-start-order")
    size, window = settings.batch_size, 16 * settings.batch_size
    batches = []
    for start in range(0, len(lengths), window):
        ordered = sorted(range(start, min(start + window, len(lengths))), key=lengths.__getitem__)
        parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        batches += [parts[i] for i in rng.permutation(len(parts))]
    return batches


def _collate(pairs: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(question) + len(trace) for question, trace in pairs)
    ids_BT = torch.full((len(pairs), width), pad_id)
    labels_BT = torch.full((len(pairs), width), IGNORED)
    for row, (question, trace) in enumerate(pairs):
        ids_BT[row, : len(question) + len(trace)] = torch.tensor(question + trace)
        labels_BT[row, len(question) : len(question) + len(trace)] = torch.tensor(trace)
    return ids_BT, labels_BT
