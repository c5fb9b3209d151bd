"""Supervised fine-tuning (SFT) before RL: all training of the micro model, the answer format for a fetched model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import CHUNK_LOGITS, build_micro, decoder_and_head, disable_dropout
from iapo_bench.progress import progress
from iapo_bench.seeds import numpy_stream
from iapo_bench.train.optimizer import FullPrecisionAdamW
from iapo_bench.worlds import Problem
from iapo_bench.worlds.datasets.micro import MicroWorld
from iapo_bench.worlds.dialogue import Dialogue

IGNORED = -100

# Token ids of a prompt, at least one, and of the completion to learn.
Example = tuple[list[int], list[int]]


@dataclass(frozen=True)
class SFT:
    """SFT settings. Few steps leave the model fallible, so that RL has something to improve.

    `micro_batch_tokens`, padding included, affects memory only. Raises UserError for a setting out of range.
    """

    steps: int = 200
    batch_size: int = 32
    lr: float = 5e-5
    micro_batch_tokens: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.name not in ("lr", "cut")
            positive = field.name not in ("seed", "cut")
            if not math.isfinite(value) or (whole and value != int(value)) or (positive and value <= 0):
                raise UserError(f"model.sft.{field.name} must be a {'whole ' * whole}number above 0, is {value}")
            if whole:
                object.__setattr__(self, field.name, int(value))  # YAML reads 1e3 as a float


@dataclass(frozen=True)
class TaughtSFT(SFT):
    """SFT settings of the micro world's own model, and its size. `cut`: share of examples whose trace is cut off and
    followed by the answer at once. The defaults made the shipped base."""

    steps: int = 1000
    batch_size: int = 64
    lr: float = 3e-3
    micro_batch_tokens: int = 16_384
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    cut: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cut <= 1:
            raise UserError(f"model.sft.cut is a share from 0 to 1, not {self.cut}")


def teach_micro(
    world: MicroWorld, tokenizer: PreTrainedTokenizerBase, settings: TaughtSFT
) -> tuple[PreTrainedModel, list[dict]]:
    """Train a model to answer chains with traces; return it and the rows of `fine_tune`."""
    model = build_micro(
        tokenizer, hidden=settings.hidden, layers=settings.layers, heads=settings.heads, seed=settings.seed
    )
    examples = [
        (tokenizer(prompt).input_ids, tokenizer(completion).input_ids)
        for prompt, completion in world.lessons(settings.steps * settings.batch_size, settings.cut)
    ]
    return model, fine_tune(model, examples, settings, pad_id=tokenizer.pad_token_id)


def encode_examples(
    dialogue: Dialogue, problems: Sequence[Problem], traces: Sequence[str], *, context: int
) -> list[Example]:
    """Token ids of every problem's chat prompt, and of its trace with the end of the turn.

    Raises UserError if the two together have more than `context` tokens.
    """
    examples = [
        (dialogue.encode(problem.question), dialogue.encode_reply(trace))
        for problem, trace in zip(problems, traces, strict=True)
    ]
    for problem, (prompt, completion) in zip(problems, examples, strict=True):
        if (length := len(prompt) + len(completion)) > context:
            raise UserError(
                f"problem '{problem.id}' has {length} tokens with its solution, the model's context {context}: "
                "set model.sft to null"
            )
    return examples


def fine_tune(model: PreTrainedModel, examples: Sequence[Example], settings: SFT, *, pad_id: int) -> list[dict]:
    """Train `model` in place on `examples`, over as many epochs as the steps need; return one row of loss (nats per
    completion token) every tenth step.

    The learning rate warms up over a twentieth of the steps, then decays along a cosine. The model is left in
    evaluation mode. Raises UserError for a loss or gradient norm that is not finite.
    """
    disable_dropout(model)
    model.train()
    optimizer = FullPrecisionAdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01)
    warmup = max(1, settings.steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.steps - warmup)),
        ],
        [warmup],
    )
    order = _epochs(len(examples), settings)
    lengths = [len(prompt) + len(completion) for prompt, completion in examples]
    batches = [[order[i] for i in batch] for batch in _batches([lengths[i] for i in order], settings)]
    log = []
    bar = progress(range(settings.steps), desc="SFT", unit="step")
    for step in bar:
        optimizer.zero_grad()
        loss = backward(
            model, [examples[i] for i in batches[step]], pad_id=pad_id, micro_batch_tokens=settings.micro_batch_tokens
        )
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        if not math.isfinite(loss + norm):
            raise UserError(f"SFT step {step} has a loss of {loss} and a gradient norm of {norm}: lower model.sft.lr")
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == settings.steps - 1:
            log.append({"step": step, "loss": round(loss, 5)})
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    optimizer.zero_grad()
    model.eval()
    return log


def backward(model: PreTrainedModel, examples: Sequence[Example], *, pad_id: int, micro_batch_tokens: int) -> float:
    """Accumulate the gradient of the mean loss over all completion tokens; return that mean (nats)."""
    tokens = sum(len(completion) for _, completion in examples)
    total = 0.0
    for part in _micro_batches(examples, micro_batch_tokens):
        loss = _summed_loss(model, part, pad_id) / tokens
        loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def mean_loss(model: PreTrainedModel, examples: Sequence[Example], *, pad_id: int, micro_batch_tokens: int) -> float:
    """The mean loss over all completion tokens (nats)."""
    tokens = sum(len(completion) for _, completion in examples)
    parts = _micro_batches(examples, micro_batch_tokens)
    return sum(_summed_loss(model, part, pad_id).item() for part in parts) / tokens


def _summed_loss(model: PreTrainedModel, examples: Sequence[Example], pad_id: int) -> torch.Tensor:
    """The loss summed over completion tokens; the backward pass recomputes each chunk's logits."""
    decoder, head = decoder_and_head(model)
    ids_BT, labels_BT = (tensor.to(model.device) for tensor in _collate(examples, pad_id))
    # Right padding under a causal mask reaches no real token, and its labels are ignored.
    hidden_BTD = decoder(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
    hidden_ND, labels_N = hidden_BTD.flatten(0, 1), labels_BT[:, 1:].flatten()
    chunk = max(1, CHUNK_LOGITS // model.config.get_text_config().vocab_size)
    if len(labels_N) > chunk:  # logits that fit in one chunk are not worth a gather
        hidden_ND, labels_N = hidden_ND[labels_N != IGNORED], labels_N[labels_N != IGNORED]

    def loss(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(hidden).float(), labels, ignore_index=IGNORED, reduction="sum")

    parts = zip(hidden_ND.split(chunk), labels_N.split(chunk), strict=True)
    return torch.stack([checkpoint(loss, *part, use_reentrant=False) for part in parts]).sum()


def _epochs(n_examples: int, settings: SFT) -> list[int]:
    """Indices of examples, one per row of each step: in the given order, then reshuffled for every further epoch."""
    order: list[int] = []
    count = settings.steps * settings.batch_size
    while len(order) < count:
        epoch = len(order) // n_examples
        rng = numpy_stream(settings.seed, "warm-start-epoch", epoch)
        order += rng.permutation(n_examples).tolist() if epoch else range(n_examples)
    return order[:count]


def _batches(lengths: list[int], settings: SFT) -> list[list[int]]:
    """Indices by batch. Within a window of 16 batches, similar lengths go together, which halves the padding."""
    rng = numpy_stream(settings.seed, "warm-start-order")
    size, window = settings.batch_size, 16 * settings.batch_size
    batches = []
    for start in range(0, len(lengths), window):
        ordered = sorted(range(start, min(start + window, len(lengths))), key=lengths.__getitem__)
        parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
        batches += [parts[i] for i in rng.permutation(len(parts))]
    return batches


def _micro_batches(examples: Sequence[Example], max_tokens: int) -> Iterator[list[Example]]:
    """The examples sorted by length, in micro-batches of at most `max_tokens` padded tokens (or one example)."""
    part: list[Example] = []
    for prompt, completion in sorted(examples, key=lambda example: len(example[0]) + len(example[1])):
        if part and (len(prompt) + len(completion)) * (len(part) + 1) > max_tokens:
            yield part
            part = []
        part.append((prompt, completion))
    yield part


def _collate(examples: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) + len(completion) for prompt, completion in examples)
    ids_BT = torch.full((len(examples), width), pad_id)
    labels_BT = torch.full((len(examples), width), IGNORED)
    for row, (prompt, completion) in enumerate(examples):
        ids_BT[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        labels_BT[row, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
    return ids_BT, labels_BT
