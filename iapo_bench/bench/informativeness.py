"""The cost of answer entropies: `shared_kv` against `kv_replicated` and against the floor of its arithmetic.

The floor is measured, not computed: plain forwards, by the unchanged model, of the necessary tokens
(the prompt once, each completion K + 1 times after the cached prompt), and the output layer once for each prefix.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from iapo_bench.machine.provenance import hardware
from iapo_bench.models.checkpoints import accelerator, decoder_and_head, load_model, load_tokenizer
from iapo_bench.signals.informativeness import (
    REPLICATED_CHUNK,
    AnswerReading,
    answer_entropies,
    next_token_statistics,
)
from iapo_bench.worlds import POSTFIX

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # as `answer_entropies` takes them
LENGTHS, BATCHES = (64, 128, 256, 512), (1, 8)
PROMPT = 64
TARGETS = {"speedup": 2.5, "floor_ratio": 1.15, "memory_ratio": 0.2}


def bench_informativeness(
    base: Path,
    *,
    pairs: int,
    lengths: tuple[int, ...] = LENGTHS,
    batches: tuple[int, ...] = BATCHES,
    dtype: torch.dtype | None = None,
) -> list[dict[str, Any]]:
    """`compare_implementations` of the model at `base`, on the GPU if there is one.

    `dtype`: by default bfloat16 on a GPU and float32 on a CPU.
    """
    device = accelerator()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    tokenizer = load_tokenizer(base)
    model = _with_room(load_model(base, dtype=dtype), PROMPT + max(lengths) + 16).to(device)
    postfix_K = torch.tensor(tokenizer(POSTFIX, add_special_tokens=False).input_ids, device=device)
    return compare_implementations(model, postfix_K, pairs=pairs, lengths=lengths, batches=batches)


def compare_implementations(
    model: PreTrainedModel,
    postfix_K: torch.Tensor,
    *,
    pairs: int,
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    prompt: int = PROMPT,
) -> list[dict[str, Any]]:
    """A row for each completion length T and batch: seconds, extra peak memory (MiB), and median ratios of the pairs.

    Completions follow one prompt of `prompt` random tokens; a batch of 8 has T, 15/16 T, ... 9/16 T tokens. Every ratio
    is of runs taken in turn, each timed until the device is done.
    """
    cases = [(T, B) for B in batches for T in lengths]
    _floor(model, *_random_rows(model, 8, 1, prompt), len(postfix_K))  # warm up: weights are loaded on first use
    rows = []
    for T, B in tqdm(cases, desc=model.config.name_or_path or "informativeness", unit="case"):
        arguments = _random_rows(model, T, B, prompt)
        sides: dict[str, Callable[[], Any]] = {
            "shared_kv": partial(answer_entropies, model, *arguments, postfix_K),
            "kv_replicated": partial(answer_entropies, model, *arguments, postfix_K, implementation="kv_replicated"),
            "floor": partial(_floor, model, *arguments, len(postfix_K)),
        }
        if model.device.type == "cuda":
            for run in sides.values():  # kernels are compiled and chosen at the first call of a size
                run()
        first = {name: with_extra_memory(run, model.device) for name, run in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(pairs):
            for name, run in sides.items():
                seconds[name].append(timed(run, model.device))
        memory = {name: extra for name, (_, extra) in first.items()}
        gap = float((first["shared_kv"][0] - first["kv_replicated"][0]).abs().max())
        rows.append(
            {
                "T": T,
                "batch": B,
                "K": len(postfix_K),
                "tokens": int(arguments[3].sum()),
                **{f"seconds_{name}": round(statistics.median(values), 4) for name, values in seconds.items()},
                "speedup": _ratio(seconds["kv_replicated"], seconds["shared_kv"]),
                "floor_ratio": _ratio(seconds["shared_kv"], seconds["floor"]),
                **{f"mib_{name}": round(memory[name] / 2**20, 1) for name in ("shared_kv", "kv_replicated")},
                "memory_ratio": round(memory["shared_kv"] / max(memory["kv_replicated"], 1), 3),
                "largest_difference_nats": float(f"{gap:.2g}"),
                "prompt": prompt,
                "dtype": str(model.dtype).removeprefix("torch."),
                "device": hardware(),
                "pairs": pairs,
                "threads": torch.get_num_threads(),
                "chunk_kv_replicated": REPLICATED_CHUNK,
            }
        )
    return rows


def bench_approximations(base: Path, *, pairs: int) -> list[dict[str, Any]]:
    """Time and error of reading fewer prefixes, on completions that the model at `base` writes on the micro world.

    Errors are of information, e[t] - e[t + 1], over completion tokens: mean and largest absolute error in nats, and the
    mean over completions of Spearman's correlation with the exact one, on which credit within a completion depends.
    """
    model, batch, postfix_K, think_close = _written(base)
    mask_BT = batch[3]

    def information(reading: AnswerReading) -> torch.Tensor:
        e_BS = answer_entropies(model, *batch, postfix_K, reading=reading)
        return e_BS[:, :-1] - e_BS[:, 1:]

    readings = {
        "every prefix (exact)": AnswerReading(),
        "not in the answer": AnswerReading(stop_ids=think_close),
        **{f"every {s}": AnswerReading(stride=s) for s in (2, 4, 8)},
        "every 4, not in the answer": AnswerReading(stride=4, stop_ids=think_close),
    }
    exact_BT = information(AnswerReading())
    seconds: dict[str, list[float]] = {name: [] for name in readings}
    for _ in range(pairs):
        for name, reading in readings.items():
            seconds[name].append(timed(partial(information, reading), model.device))
    rows = []
    for name, reading in readings.items():
        values_BT = information(reading)
        error = (values_BT - exact_BT)[mask_BT].abs()
        ranks = [
            pd.DataFrame({"mine": mine[mask], "true": true[mask]}).corr("spearman").to_numpy()[0, 1]
            for mine, true, mask in zip(values_BT.cpu(), exact_BT.cpu(), mask_BT.cpu(), strict=True)
            if mask.sum() > 2 and mine[mask].std() > 0
        ]
        rows.append(
            {
                "reading": name,
                "seconds": round(statistics.median(seconds[name]), 4),
                "time_ratio": _ratio(seconds[name], seconds["every prefix (exact)"]),
                "mean_error_nats": float(f"{error.mean():.3g}"),
                "largest_error_nats": float(f"{error.max():.3g}"),
                "spearman": round(float(np.mean(ranks)), 4),
                "completions": len(mask_BT),
                "device": hardware(),
                "pairs": pairs,
            }
        )
    return rows


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `run` takes, including all work that it queues on a GPU."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait for the queued work of a GPU; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ratio(above: list[float], below: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def _written(base: Path) -> tuple[PreTrainedModel, Rows, torch.Tensor, tuple[int, ...]]:
    from iapo_bench.config.tier_file import read_tier
    from iapo_bench.models.checkpoints import eos_ids
    from iapo_bench.rollout import Sampling
    from iapo_bench.rollout.collate import collate
    from iapo_bench.rollout.transformers_engine import TransformersEngine
    from iapo_bench.worlds import THINK_CLOSE
    from iapo_bench.worlds.load import load_world

    tier = read_tier("micro")
    world = load_world(tier.world, tier.seed)
    model, tokenizer = load_model(base).to(accelerator()), load_tokenizer(base)
    prompts = [world.encode_prompt(problem, tokenizer) for problem in world.load("train")[:16]]
    ends = eos_ids(model, tokenizer)
    sampling = Sampling(max_tokens=tier.train.max_tokens, eos_ids=ends, samples_per_prompt=8, seed=1)
    completions = TransformersEngine(model).generate(prompts, sampling)
    unknown = [False] * len(completions)
    batch = collate(
        prompts,
        completions,
        unknown,
        unknown,
        group_size=8,
        max_tokens=tier.train.max_tokens,
        pad_id=0,
        device=model.device,
    )
    rows = (batch.prompt_ids_BP, batch.prompt_mask_BP, batch.completion_ids_BT, batch.completion_mask_BT)
    postfix, close = (tokenizer(text, add_special_tokens=False).input_ids for text in (POSTFIX, THINK_CLOSE))
    return model, rows, torch.tensor(postfix, device=model.device), tuple(close)


def _with_room(model: PreTrainedModel, length: int) -> PreTrainedModel:
    """The model, or one of its shape with random weights and a longer context: time does not depend on the weights."""
    if model.config.max_position_embeddings >= length:
        return model
    config = type(model.config)(**{**model.config.to_dict(), "max_position_embeddings": length})
    torch.manual_seed(0)
    return type(model)(config).to(model.dtype).eval()


def _random_rows(model: PreTrainedModel, T: int, B: int, width: int) -> Rows:
    generator = torch.Generator().manual_seed(T)
    prompt = torch.randint(3, model.config.vocab_size, (1, width), generator=generator).expand(B, -1).to(model.device)
    lengths = torch.tensor([T - T * i // 16 for i in range(B)])
    mask = (torch.arange(T) < lengths[:, None]).to(model.device)
    ids = torch.randint(3, model.config.vocab_size, (B, T), generator=generator).to(model.device) * mask
    return prompt, torch.ones_like(prompt, dtype=torch.bool), ids, mask


@torch.no_grad()
def _floor(
    model: PreTrainedModel,
    prompt_ids_BP: torch.Tensor,
    prompt_mask_BP: torch.Tensor,
    completion_ids_BT: torch.Tensor,
    completion_mask_BT: torch.Tensor,
    K: int,
) -> None:
    decoder, head = decoder_and_head(model)
    prompt = DynamicCache(config=decoder.config)
    decoder(prompt_ids_BP[:1], past_key_values=prompt, use_cache=True)
    prompt.batch_repeat_interleave(K + 1)
    for ids, mask in zip(completion_ids_BT, completion_mask_BT, strict=True):
        hidden = decoder(ids[mask].expand(K + 1, -1), past_key_values=prompt, use_cache=True).last_hidden_state
        prompt.crop(-int(mask.sum()))
        next_token_statistics(head, hidden[0], 1.0)


def with_extra_memory(run: Callable[[], Any], device: torch.device) -> tuple[Any, int]:
    """The result of `run`, and its peak memory in bytes beyond the memory held before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # chunk sizes depend on free memory
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return run(), torch.cuda.max_memory_allocated(device) - before
    # The kernel keeps the peak of resident memory, and forgets it on demand; freed pages must go back to it first.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    return run(), _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
