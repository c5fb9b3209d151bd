"""Sample completions of a checkpoint."""

import time
from pathlib import Path

import pandas as pd
import torch

from iapo_bench.config.evaluate import SampleJob
from iapo_bench.files import whole_file, write_json
from iapo_bench.machine.provenance import hardware
from iapo_bench.models.checkpoints import accelerator, load_model, load_tokenizer, stop_ids, torch_dtype
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.load import make_engine
from iapo_bench.rollout.prompts import encode
from iapo_bench.seeds import stream_seed
from iapo_bench.worlds import read_problems, split_file
from iapo_bench.worlds.dialogue import completion_texts
from iapo_bench.worlds.load import load_world


def sample(job: SampleJob, *, model: Path, data: Path, out: Path) -> None:
    """Sample every problem of a split, all seeds with one model load: `out/samples.parquet` and `out/timing.json`."""
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
        progress=True,
    )

    def sampling(seed: int, n: int, max_tokens: int) -> Sampling:
        return Sampling(
            max_tokens=max_tokens,
            eos_ids=stops,
            samples_per_prompt=n,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=stream_seed(seed, "evaluation"),
        )

    started = time.perf_counter()
    engine.generate(prompts[:8], sampling(0, 1, min(8, config.max_tokens)))
    warm = time.perf_counter()
    frames = []
    for seed in config.seeds:
        completions = engine.generate(prompts, sampling(seed, n_samples, config.max_tokens))
        frames.append(
            pd.DataFrame(
                {
                    "problem_id": [problem.id for problem in problems for _ in range(n_samples)],
                    "sample": list(range(n_samples)) * len(problems),
                    "seed": seed,
                    "token_ids": [list(completion.token_ids) for completion in completions],
                    "n_tokens": [len(completion.token_ids) for completion in completions],
                    "finish_reason": [completion.finish_reason for completion in completions],
                }
            )
        )
    seconds = time.perf_counter() - warm
    engine.close()
    samples = pd.concat(frames, ignore_index=True)
    samples["text"] = completion_texts(samples["token_ids"], tokenizer, stop_ids=stops, prefill=dialogue.prefill)
    timing = {
        "engine": config.engine,
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "batch_size": config.batch_size,
        "warmup_seconds": round(warm - started, 3),
        "seconds": round(seconds, 3),
        "completions": len(samples),
        "tokens": int(samples["n_tokens"].sum()),
    }
    with whole_file(out / "samples.parquet") as partial:
        samples.to_parquet(partial, index=False)
    write_json(out / "timing.json", timing)
