"""The `transformers` rollout engine against plain `model.generate`: the same prompts, batch and natural lengths.

The floor of decoding is the time to read, at each step, every weight that multiplies a token and the key-value cache of
each unfinished row: bytes over the memory's bandwidth. `over_floor` is our time over that, prompts included, where the
bandwidth of the GPU is known.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import trange
from transformers import PreTrainedModel

from iapo_bench.bench.gpu import random_model
from iapo_bench.bench.informativeness import synchronise
from iapo_bench.config.tier_file import read_tier
from iapo_bench.machine.provenance import hardware
from iapo_bench.models.checkpoints import accelerator, eos_ids, load_model, load_tokenizer
from iapo_bench.plan.costs import DEVICES, LONGEST
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.worlds.load import load_world

BATCH, PER_PROMPT, MAX_TOKENS = 256, 8, 128
TARGET, TARGET_AT_SIZE = 1.5, 3.0


def bench_engine(base: Path, *, pairs: int) -> list[dict[str, Any]]:
    """One row: median of the paired ratios of generated tokens per second at batch 256, on the micro world's problems.

    On a GPU, if there is one, the model at `base` is bfloat16.
    """
    tier = read_tier("micro")
    world = load_world(tier.world, tier.seed)
    device = accelerator()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = load_model(base, dtype=dtype).to(device), load_tokenizer(base)
    problems = world.load("train")[: BATCH // PER_PROMPT]
    prompts = [world.encode_prompt(problem, tokenizer) for problem in problems]
    sampling = Sampling(max_tokens=MAX_TOKENS, eos_ids=eos_ids(model, tokenizer), samples_per_prompt=PER_PROMPT)
    row = compare_engines(model, prompts, sampling, pad_id=tokenizer.pad_token_id, pairs=pairs)
    return [{"benchmark": f"engine against generate, batch {BATCH}, natural lengths", **row, "target": TARGET}]


def engine_at_size(name: str, *, pairs: int, rows: int, prompt: int, length: int) -> list[dict[str, Any]]:
    """Two rows for random weights of a size in `bench.gpu.SIZES`, groups of 8: natural lengths, and all at the cap.

    Prompts have 3/4 `prompt` to `prompt` tokens, completions at most `length`. A random model draws all tokens about
    equally: with enough of them as ends of sequence, lengths spread as `costs.LONGEST` assumes.
    """
    with random_model(name) as model:
        V = model.config.vocab_size
        draws = torch.Generator().manual_seed(0)
        lengths = torch.linspace(0.75 * prompt, prompt, max(1, rows // PER_PROMPT)).long().tolist()
        prompts = [torch.randint(V, (n,), generator=draws).tolist() for n in lengths]
        ends = tuple(range(max(1, round(V * LONGEST / length))))
        return [
            {
                "benchmark": f"engine against generate, batch {rows}, {text}",
                "model": name,
                **compare_engines(
                    model, prompts, Sampling(length, chosen, samples_per_prompt=PER_PROMPT), pad_id=0, pairs=pairs
                ),
                "target": TARGET_AT_SIZE,
            }
            for text, chosen in (("natural lengths", ends), (f"all at the cap of {length}", ()))
        ]


def compare_engines(
    model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling, *, pad_id: int, pairs: int
) -> dict[str, Any]:
    """Medians over `pairs` interleaved pairs after a warm-up pair, all completions of `prompts` in one batch."""
    device = model.device
    rows = [torch.tensor(prompt) for prompt in prompts for _ in range(sampling.samples_per_prompt)]
    ids_RP = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left").to(device)
    length_R = torch.tensor([len(row) for row in rows])
    mask_RP = (torch.arange(ids_RP.shape[1]) >= ids_RP.shape[1] - length_R[:, None]).long().to(device)
    engine = TransformersEngine(model, batch_size=len(rows))
    ends = torch.tensor(sampling.eos_ids, dtype=torch.long, device=device)

    def ours(seed: int) -> tuple[float, torch.Tensor]:
        synchronise(device)
        started = time.perf_counter()
        completions = engine.generate(
            prompts, Sampling(sampling.max_tokens, sampling.eos_ids, sampling.samples_per_prompt, seed=seed)
        )
        return time.perf_counter() - started, torch.tensor([len(c.token_ids) for c in completions])

    def plain(seed: int) -> float:
        torch.manual_seed(seed)
        synchronise(device)
        started = time.perf_counter()
        ids = model.generate(
            input_ids=ids_RP,
            attention_mask=mask_RP,
            do_sample=True,
            top_k=0,
            temperature=1.0,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(sampling.eos_ids) or None,
            pad_token_id=pad_id,
        )
        synchronise(device)
        seconds = time.perf_counter() - started
        ended_RT = torch.isin(ids[:, ids_RP.shape[1] :], ends).int()
        # Count each row up to its end of sequence, without padding.
        return int((ended_RT.cumsum(dim=1) - ended_RT == 0).sum()) / seconds

    ours(0)
    plain(0)
    speed, over_floor = [], []
    bandwidth = _bandwidth(device)
    for seed in trange(1, pairs + 1, desc="engine", unit="pair"):
        seconds, made_R = ours(seed)
        speed.append((int(made_R.sum()) / seconds, plain(seed)))
        if bandwidth:
            over_floor.append(seconds * bandwidth / _bytes_read(model, length_R, made_R))
    ratios = [a / b for a, b in speed]
    return {
        "ours_tokens_per_second": round(statistics.median(a for a, _ in speed), 1),
        "theirs_tokens_per_second": round(statistics.median(b for _, b in speed), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "over_floor": round(statistics.median(over_floor), 2) if over_floor else None,
        "pairs": pairs,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": hardware(),
    }


def _bytes_read(model: PreTrainedModel, prompt_R: torch.Tensor, made_R: torch.Tensor) -> int:
    """Bytes that decoding must read, in one batch, to generate `made_R` tokens after prompts of `prompt_R` tokens. The
    prefill gives each row its first token."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    if embedding is not model.get_output_embeddings().weight:  # decoding reads only a few of its rows
        weights -= embedding.numel() * embedding.element_size()
    steps_R = made_R - 1
    positions = int((steps_R * prompt_R + steps_R * (steps_R + 1) // 2).sum())
    cache = positions * 2 * config.num_hidden_layers * heads * head_dim * embedding.element_size()
    return int(steps_R.max()) * weights + cache


def _bandwidth(device: torch.device) -> float | None:
    """Bytes/s of the GPU in use, by its name; None on a CPU and for one that `costs.DEVICES` does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((known.bandwidth for key, known in DEVICES.items() if key in name), None)
