"""The `transformers` rollout engine against plain `model.generate`: the same prompts, batch and natural lengths."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import trange

from iapo_bench.config import read_tier
from iapo_bench.models import eos_ids, load_model, load_tokenizer
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.worlds.load import load_world

BATCH, PER_PROMPT, MAX_TOKENS = 256, 8, 128


def bench_engine(base: Path, *, pairs: int) -> list[dict[str, Any]]:
    """One row: median of the paired ratios of generated tokens per second at batch 256."""
    tier = read_tier("micro")
    world = load_world(tier.world, tier.seed)
    model, tokenizer = load_model(base), load_tokenizer(base)
    problems = world.load("train")[: BATCH // PER_PROMPT]
    prompts = [world.encode_prompt(problem, tokenizer) for problem in problems]
    engine = TransformersEngine(model, batch_size=BATCH)

    def ours(seed: int) -> float:
        sampling = Sampling(
            max_tokens=MAX_TOKENS, eos_ids=eos_ids(model, tokenizer), samples_per_prompt=PER_PROMPT, seed=seed
        )
        started = time.perf_counter()
        completions = engine.generate(prompts, sampling)
        return sum(len(c.token_ids) for c in completions) / (time.perf_counter() - started)

    rows = [prompt for prompt in prompts for _ in range(PER_PROMPT)]
    inputs = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")

    def plain(seed: int) -> float:
        torch.manual_seed(seed)
        started = time.perf_counter()
        ids = model.generate(**inputs, do_sample=True, top_k=0, temperature=1.0, max_new_tokens=MAX_TOKENS)
        seconds = time.perf_counter() - started
        # One end of sequence a row at most; what follows is padding, which is another token.
        return int((ids[:, inputs["input_ids"].shape[1] :] != tokenizer.pad_token_id).sum()) / seconds

    ours(0)
    plain(0)
    speed = [(ours(seed), plain(seed)) for seed in trange(1, pairs + 1, desc="engine", unit="pair")]
    ratios = [a / b for a, b in speed]
    return [
        {
            "benchmark": f"engine against generate, batch {BATCH}, natural lengths",
            "ours_tokens_per_second": round(statistics.median(a for a, _ in speed), 1),
            "theirs_tokens_per_second": round(statistics.median(b for _, b in speed), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "target": 1.5,
            "pairs": pairs,
            "threads": torch.get_num_threads(),
        }
    ]
