"""Sample completions of a checkpoint."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from iapo_bench.config.evaluate import SampleJob
from iapo_bench.files import whole_file, write_json
from iapo_bench.machine.provenance import checksum, checksums, environment
from iapo_bench.machine.resume import kept, resuming, run_identity
from iapo_bench.models.checkpoints import accelerator, load_model, load_tokenizer, stop_ids, torch_dtype
from iapo_bench.rollout import RolloutEngine, Sampling
from iapo_bench.rollout.load import make_engine
from iapo_bench.rollout.prompts import encode
from iapo_bench.seeds import stream_seed
from iapo_bench.worlds import Problem, read_problems, split_file
from iapo_bench.worlds.dialogue import completion_texts
from iapo_bench.worlds.load import load_world, source_files

# Completions per part; finished parts survive a kill. Part boundaries do not depend on finished work, so a resumed run
# draws the same completions.
PART = 4096


def sample(job: SampleJob, *, model: Path, data: Path, out: Path) -> None:
    """Sample every problem of a split, all seeds with one model load: `out/samples.parquet` and `out/timing.json`.

    Finished parts stay in `out/samples.resume` until the end and are not drawn again after an interruption.
    """
    config, n_samples = job.evaluate, job.evaluate.n_samples
    problems = read_problems(split_file(data, job.split))[: config.problems]
    world = load_world(job.world, job.world_seed)
    # With vllm this model only verifies the weights; keep it off the GPU.
    device = accelerator() if config.engine == "transformers" else torch.device("cpu")
    network = load_model(model, dtype=torch_dtype(job.dtype)).to(device)
    tokenizer = load_tokenizer(model)
    dialogue = world.dialogue(tokenizer, job.prompt)
    prompts = encode(problems, dialogue, model, config.max_tokens)
    stops = stop_ids(network, dialogue)
    engine = make_engine(
        config.engine,
        model,
        network,
        width=max(map(len, prompts), default=0) + config.max_tokens,
        batch_size=config.batch_size,
        gpu_memory=config.engine_memory,
        deterministic=config.engine_deterministic,
        progress=True,
    )

    shared = Sampling(max_tokens=config.max_tokens, eos_ids=stops, temperature=config.temperature, top_p=config.top_p)
    started = time.perf_counter()
    engine.generate(prompts[:8], replace(shared, max_tokens=min(8, config.max_tokens)))
    warmup = time.perf_counter() - started
    inputs = {"model": checksums(model), "problems": checksum(split_file(data, job.split))}
    run = run_identity(job, "iapo_bench.evaluate.sample", source_files(job.world)[:1], inputs=inputs)
    with resuming(out / "samples.resume", run) as folder:
        parts = []
        for seed in config.seeds:
            drawn = replace(shared, samples_per_prompt=n_samples, seed=stream_seed(seed, "evaluation"))
            each = max(1, PART // n_samples)
            for start in range(0, len(problems), each):
                rows = slice(start, start + each)
                sampling = replace(drawn, first_index=start * n_samples)
                draw = partial(_draw, engine, prompts[rows], sampling)
                parts.append((seed, problems[rows], kept(folder, f"seed{seed}-{start}", draw)))
        engine.close()
        samples = pd.concat([_frame(*part, n_samples) for part in parts], ignore_index=True)
        samples["text"] = completion_texts(samples["token_ids"], tokenizer, stop_ids=stops, prefill=dialogue.prefill)
        timing = {
            "engine": config.engine,
            **environment(),
            "threads": torch.get_num_threads(),
            "batch_size": config.batch_size,
            "warmup_seconds": round(warmup, 3),
            "seconds": round(sum(part["seconds"] for _, _, part in parts), 3),
            "completions": len(samples),
            "tokens": int(samples["n_tokens"].sum()),
        }
        with whole_file(out / "samples.parquet") as unfinished:
            samples.to_parquet(unfinished, index=False)
        write_json(out / "timing.json", timing)


def _draw(engine: RolloutEngine, prompts: list[list[int]], sampling: Sampling) -> dict[str, Any]:
    """Completions of some prompts as plain values, and the seconds they took."""
    started = time.perf_counter()
    completions = engine.generate(prompts, sampling)
    return {
        "seconds": time.perf_counter() - started,
        "token_ids": [completion.token_ids for completion in completions],
        "finish_reason": [completion.finish_reason for completion in completions],
    }


def _frame(seed: int, problems: list[Problem], part: dict[str, Any], n_samples: int) -> pd.DataFrame:
    """One row per completion of a part."""
    return pd.DataFrame(
        {
            "problem_id": [problem.id for problem in problems for _ in range(n_samples)],
            "sample": list(range(n_samples)) * len(problems),
            "seed": seed,
            "token_ids": part["token_ids"],
            "n_tokens": [len(ids) for ids in part["token_ids"]],
            "finish_reason": part["finish_reason"],
        }
    )
