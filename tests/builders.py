"""Rollout batches and grades from a few numbers, for tests of anything that reads them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from iapo_bench.batch import RolloutBatch
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import parse_tier, read_tier
from iapo_bench.config.world import WorldConfig
from iapo_bench.method import Credit, Method
from iapo_bench.models.checkpoints import save_model
from iapo_bench.models.sources import _byte_tokenizer
from iapo_bench.rollout import Completion
from iapo_bench.rollout.collate import collate
from iapo_bench.worlds import TAGS, World
from iapo_bench.worlds.load import load_world
from iapo_bench.worlds.prepare import prepare
from iapo_bench.worlds.text import TextWorld

Rows = Sequence[Sequence[float]]


def make_batch(
    lengths: Sequence[int],
    correct: Sequence[bool | int],
    *,
    group_size: int | None = None,
    formatted: Sequence[bool | int] | None = None,
    truncated: Sequence[bool | int] | None = None,
    max_tokens: int | None = None,
    old_logp: Rows | None = None,
    token_entropy: Rows | None = None,
    answer_entropy: Rows | None = None,
    extra_completion: int = 0,
    extra_prompt: int = 0,
    junk: float = 0.0,
) -> RolloutBatch:
    """A valid batch of `len(lengths)` rows, one group unless `group_size` says otherwise.

    Signals are ragged: one number a token, one more for `answer_entropy`. `extra_completion` and `extra_prompt` are
    columns of padding beyond what is needed; `junk` is what signals hold at padding.
    """
    B, T, P = len(lengths), max(lengths) + extra_completion, 2 + extra_prompt
    group_size = group_size or B
    mask_BT = torch.arange(T) < torch.tensor(lengths)[:, None]

    def ragged(rows: Rows | None, width: int) -> torch.Tensor | None:
        if rows is None:
            return None
        return torch.tensor([[*row, *[junk] * (width - len(row))] for row in rows], dtype=torch.float32)

    def flags(values: Sequence[bool | int] | None, default: bool) -> torch.Tensor:
        return torch.tensor([default] * B if values is None else values, dtype=torch.bool)

    prompt_mask_BP = (torch.arange(P) >= extra_prompt).expand(B, P)
    return RolloutBatch(
        prompt_ids_BP=prompt_mask_BP * (2 + torch.arange(B) // group_size)[:, None],
        prompt_mask_BP=prompt_mask_BP,
        completion_ids_BT=mask_BT.long(),
        completion_mask_BT=mask_BT,
        rewards_B=flags(correct, False).float() * 2 - 1,
        correct_B=flags(correct, False),
        truncated_B=flags(truncated, False),
        formatted_B=flags(formatted, True),
        group_size=group_size,
        max_tokens=max_tokens or max(lengths),
        sampler_logp_BT=torch.zeros(B, T),
        old_logp_BT=ragged(old_logp, T),
        token_entropy_BT=ragged(token_entropy, T),
        answer_entropy_BS=ragged(answer_entropy, T + 1),
    ).validate()


def assign_credit(method: Method, batch: RolloutBatch, seed: int = 0) -> Credit:
    """What a training step does with a method: shape the rewards, observe, assign credit."""
    batch = replace(batch, rewards_B=method.shape_rewards(batch))
    method.observe(batch)
    return method.credit(batch, torch.Generator().manual_seed(seed))


def ragged_batch(seed: int = 0, groups: int = 3, vocabulary: int = 42) -> RolloutBatch:
    """Prompts and completions of every length from random ids; log-probabilities stand in as -1."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, vocabulary, (n,), generator=generator).tolist()

    prompts = [ids(4 + 3 * group) for group in range(groups)]
    completions = []
    for row in range(2 * groups):
        tokens = tuple(ids(1 + (5 * row) % 11))
        completions.append(Completion(tokens, (-1.0,) * len(tokens), "stop" if row % 3 else "length"))
    correct = [row % 2 == 0 for row in range(2 * groups)]
    return collate(prompts, completions, correct, correct, group_size=2, max_tokens=12, pad_id=0)


def write_grades(path: Path, right: int, length: int) -> Path:
    """Two problems of four samples, `right` of them correct, each of `length` tokens; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"problem_id": p, "sample": s, "seed": 7, "n_tokens": length, "finish_reason": "stop"}
        | {"outcome": "CORRECT" if s < right else "WRONG"}
        for p in ("a", "b")
        for s in range(4)
    ]
    pd.DataFrame(rows).to_parquet(path)
    return path


@contextmanager
def any_problems() -> Iterator[None]:
    """Within it a test's own problems may stand under the name of a published dataset, whose format they have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextWorld, "recognise", lambda self: None)
        yield


PERFECT = "1 + 1 </think><answer>4</answer>"


def odd_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes, tags as special tokens, and a chat template that drops earlier reasoning, opens `<think>` and ends a turn
    with an ordinary token."""
    tokenizer = _byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(TAGS)})
    tokenizer.add_tokens(["<turn>"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] if m.role == 'assistant' "
        "else m.content }}<turn>\n{% endfor %}<|im_start|>assistant\n{{ '<think>\n' }}"
    )
    return tokenizer


def perfect_base(folder: Path) -> TierConfig:
    """A tier of GSM8K with its problems in `folder/data` and a base in `folder/base` that answers each of them right.

    All about it is odd: its template drops earlier reasoning and opens `<think>`, its tags are special tokens, and its
    turns end with an ordinary token that is no end of sequence; where that does not stop it, it talks on.
    """
    tokenizer = odd_tokenizer()
    for split, count in (("train", 520), ("test", 3)):
        rows = [
            {"question": f"What is 2 + 2? ({split[:2]} {n})", "answer": "2+2=4\n#### 4"}
            for n in range(100, 100 + count)
        ]
        (folder / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = read_tier("smollm2", {"world": {"data_dir": str(folder)}}).model_dump(mode="json")
    small = {"completions": 8, "prompts_per_step": 2, "group_size": 4, "max_tokens": 40, "problems": 8}
    changes = {"train": small, "evaluate": {"max_tokens": 40, "ks": [1], "n_samples": 1, "seeds": [0]}}
    tier = parse_tier(content, changes, source="test")
    with any_problems():
        prepare(tier.prepare_job(), folder / "data")
    world = load_world(tier.world, tier.seed)
    said = tokenizer(PERFECT + "<turn>", add_special_tokens=False).input_ids
    (length,) = {len(world.encode_prompt(p, tokenizer)) for split in ("train", "test") for p in world.load(split)}
    save_model(reciter(len(tokenizer), said, length), tokenizer, folder / "base")
    return tier


@torch.no_grad()
def reciter(vocabulary: int, said: list[int], after: int) -> GPT2LMHeadModel:
    """A model that says `said` after any `after` tokens: its layers add nothing, and each position, which has a
    direction of its own, has its token."""
    size = {"vocab_size": vocabulary, "n_positions": 1024, "n_embd": 64, "n_layer": 1, "n_head": 1}
    model = GPT2LMHeadModel(GPT2Config(**size, tie_word_embeddings=False, bos_token_id=None, eos_token_id=258))
    for weight in (model.transformer.wte, model.transformer.wpe, model.lm_head, *model.transformer.h[0].parameters()):
        getattr(weight, "weight", weight).zero_()
    for i, token in enumerate(said):
        model.transformer.wpe.weight[after - 1 + i, i] = 1.0
        model.lm_head.weight[token, i] = 100.0
    return model


def open_world(name: str, data_dir: Path | None = None, splits: str = "honest") -> World:
    """A dataset as a tier opens it."""
    return load_world(WorldConfig(name=name, data_dir=str(data_dir) if data_dir else None, splits=splits), seed=0)
