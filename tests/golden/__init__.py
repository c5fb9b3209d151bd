"""Golden trajectories: every method in both profiles, from files to files through the command line, in numbers.

`python -m tests.golden` renews `tests/golden/<instruction set>.json`.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from iapo_bench.config.tier_file import read_tier
from iapo_bench.models.checkpoints import save_model
from iapo_bench.worlds.datasets.micro import DIGITS, EOS, VOCABULARY, build_tokenizer

HERE = Path(__file__).parent
TIER = HERE / "tier.yaml"
# What a row of train.jsonl holds beside times; the gap is rounding noise.
UNTOLD = ("step", "logp_gap", "tokens_per_second")
MEASURED = ("grpo", "iapo")  # the runs that are sampled, graded and measured too
SEED = 2  # a first step without any spread would turn rounding noise into updates: AdamW divides by its size
TOLERANCE = 1e-6  # of the largest number of a list

Command = Callable[..., Any]


def golden_file() -> Path:
    """The trajectories for this processor: vector instructions of another width round otherwise."""
    return HERE / f"{torch.backends.cpu.get_cpu_capability().lower()}.json"


def read() -> dict[str, Any]:
    """The trajectories for this processor."""
    return json.loads(golden_file().read_text())


def write(found: dict[str, Any]) -> None:
    """Make `found` the trajectories for this processor, a line each column."""
    text = json.dumps(found, indent=1)
    golden_file().write_text(re.sub(r"\[[^][{}]*\]", lambda part: " ".join(part[0].split()), text) + "\n")


def arithmetic() -> str:
    """How this processor and these libraries round: a digest of a few logits and gradients."""
    model = _speaker().eval()  # dropout is chance and no arithmetic
    logits = model(torch.arange(40)[None]).logits
    logits.logsumexp(-1).sum().backward()
    bits = b"".join(each.detach().numpy().tobytes() for each in (logits, *(w.grad for w in model.parameters())))
    return hashlib.sha256(bits).hexdigest()[:12]


def trajectories() -> list[tuple[str, str]]:
    """Entry and profile of every run."""
    tier = read_tier(TIER)
    runs = [(method, profile) for method in tier.methods for profile in ("paper", "released")]
    return runs + [(name, "paper") for name in tier.ablations]


def make_base(command: Command, folder: Path) -> dict[str, Any]:
    """Prepare problems in `folder/data` and teach a base for a few steps; what they are, in numbers.

    Runs start from `folder/speaker`, which is right often enough to learn and the same on every machine.
    """
    command("prepare", "--config", TIER, "--out", folder / "data")
    command("base", "--config", TIER, "--out", folder / "base")
    save_model(_speaker(), build_tokenizer(), folder / "speaker")
    problems = {path.stem: path.read_text().splitlines() for path in sorted((folder / "data").glob("*.jsonl"))}
    return {"problems": problems, "weights": _weights(folder / "base")}


# What follows a word, and how often; any other word follows now and then.
_SAYS = {
    "?": {"<think>": 1.0},
    "<think>": {"so": 0.5, "8": 0.2, "</think>": 0.3},
    "so": {"well": 0.4, "so": 0.2, "</think>": 0.4},
    "well": {"8": 0.3, "so": 0.2, "check": 0.1, "</think>": 0.4},
    "check": {"ok": 0.5, "</think>": 0.5},
    "ok": {"so": 0.5, "</think>": 0.5},
    "</think>": {"<answer>": 1.0},
    "<answer>": {"6": 0.55, "2": 0.35, "1": 0.1},
    "</answer>": {"<eos>": 0.9, "<answer>": 0.1},
}


@torch.no_grad()
def _speaker() -> GPT2LMHeadModel:
    """A model that says what `_SAYS` says; its other weights are small waves, so that every layer has a gradient."""
    words = {word: i for i, word in enumerate(VOCABULARY)}
    size = {"vocab_size": len(words), "n_positions": 64, "n_embd": 48, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**size, tie_word_embeddings=False, eos_token_id=words[EOS], pad_token_id=0))
    start = 0
    for weight in model.parameters():
        wave = torch.arange(start, start + weight.numel(), dtype=torch.float64).mul(1.7).sin()
        start += weight.numel()
        if weight.dim() > 1:
            weight.copy_(0.03 * wave.view(weight.shape))
    chance = torch.full((len(words), len(words)), 5e-4)
    for word, nexts in {**{key: {"</answer>": 0.9, "</think>": 0.1} for key in DIGITS}, **_SAYS}.items():
        for after, share in nexts.items():
            chance[words[word], words[after]] = share
    span = range(len(words))
    model.transformer.wte.weight[span, span] += 1.0
    # The last norm makes a one of 48 entries sqrt(47).
    model.lm_head.weight[:, : len(words)] += chance.log().T / 47**0.5
    return model


def record(command: Command, folder: Path, method: str, profile: str) -> dict[str, Any]:
    """Train one run from what `make_base` left in `folder`; its steps, weights and, for some, measures, in numbers."""
    out = folder / f"{method}-{profile}"
    options = () if profile == "paper" else ("--set", f"methods.{method}.profile={profile}")
    inputs = ("--data", folder / "data")
    command(
        *("train", "--config", TIER, *options, "--method", method, "--seed", SEED),
        *("--base", folder / "speaker", *inputs, "--out", out),
    )
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {"steps": _columns(rows), "weights": _weights(out / "model", folder / "speaker")}
    if method in MEASURED:
        found |= _measure(command, out, inputs, method)
    return found


def _measure(command: Command, out: Path, inputs: tuple[Any, ...], method: str) -> dict[str, Any]:
    command("sample", "--config", TIER, "--model", out / "model", *inputs, "--out", out / "test")
    samples, grades, summary = (out / "test" / name for name in ("samples.parquet", "grades.parquet", "summary.json"))
    command("grade", "--config", TIER, "--samples", samples, *inputs, "--out", grades)
    command(
        *("metrics", "--config", TIER, "--method", method, "--grades", grades, "--train-seed", SEED),
        *("--log", out / "train.jsonl", "--out", summary),
    )
    graded = pd.read_parquet(grades)
    told = json.loads(summary.read_text())
    return {
        "tokens": [list(map(int, ids)) for ids in pd.read_parquet(samples)["token_ids"]],
        "graded": {name: graded[name].tolist() for name in ("problem_id", "seed", "outcome", "formatted")},
        "cells": {key: _rounded(cell) for key, cell in told["cells"].items()},
        "seeds": [told["train_seeds"], told["sampling_seeds"]],
    }


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [name for name in names if name not in UNTOLD and not name.startswith("seconds_")]
    return {name: [_rounded(row.get(name)) for row in rows] for name in kept}


def _weights(model: Path, base: Path | None = None) -> dict[str, float]:
    """The norm of the weights, and a coordinate of them that no other model shares: along a direction that depends on
    sizes only. With `base`, both of the difference too."""
    found = {}
    now = _flat(model)
    for name, vector in {"": now, **({"moved_": now - _flat(base)} if base else {})}.items():
        direction = torch.arange(len(vector), dtype=torch.float64).mul(12.9898).sin()
        found |= {f"{name}norm": _rounded(float(vector.norm())), f"{name}along": _rounded(float(vector @ direction))}
    return found


def _flat(folder: Path) -> torch.Tensor:
    weights = load_file(folder / "model.safetensors")
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.9g}") if isinstance(value, float) and math.isfinite(value) else value
