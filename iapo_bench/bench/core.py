"""The training core against TRL's GRPOTrainer: the same model, prompts, group size, cap, threads and malloc settings.

Both run as processes of their own that take one step at a time, in turn, so that a change in the machine's speed
affects both. The figure is the median of the paired ratios of generated tokens per second.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import trange

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.machine.provenance import hardware
from iapo_bench.workflow import MALLOC
from iapo_bench.worlds.load import load_world

HERE = Path(__file__).parent
REQUIREMENTS = ("torch==2.13.0", "trl>=1.16,<1.17", "transformers>=5.16.1,<5.20")
COMPLETIONS, GROUP_SIZE = 256, 8
WARMUP = 2


def bench_core(base: Path, *, environment: Path, pairs: int, threads: int, micro_batch: int) -> list[dict[str, Any]]:
    """One row for completions of natural length and one for completions that all run to the cap."""
    python = trl_python(environment)
    return [
        _compare(base, python, pairs, threads, micro_batch, to_the_cap=to_the_cap, max_tokens=max_tokens)
        for to_the_cap, max_tokens in ((False, 128), (True, 64))
    ]


def _compare(
    base: Path, python: Path, pairs: int, threads: int, micro_batch: int, *, to_the_cap: bool, max_tokens: int
) -> dict[str, Any]:
    tier = read_tier("micro")
    problems = load_world(tier.world, tier.seed).load("train")
    with tempfile.TemporaryDirectory() as scratch:
        job = {
            "model": str(base),
            "threads": threads,
            "problems": [{"prompt": p.question, "gold": p.answer} for p in problems],
            "completions": COMPLETIONS,
            "group_size": GROUP_SIZE,
            "micro_batch": micro_batch,
            "max_tokens": max_tokens,
            "micro_batch_tokens": tier.train.micro_batch_tokens,
            "to_the_cap": to_the_cap,
            "lr": 1e-9,  # keeps the policy as it is, so that all steps generate alike
            "steps": pairs + WARMUP,
            "scratch": scratch,
        }
        file = Path(scratch) / "job.json"
        file.write_text(json.dumps(job))
        ours, theirs = [], []
        with (
            _worker([sys.executable, "-m", "iapo_bench.bench.core_worker", str(file)], threads) as core,
            _worker([str(python), str(HERE / "trl_worker.py"), str(file)], threads) as trl,
        ):
            for _ in trange(pairs + WARMUP, desc="cap" if to_the_cap else "natural", unit="pair"):
                ours.append(_step(core))
                theirs.append(_step(trl))
    ours, theirs = ours[WARMUP:], theirs[WARMUP:]
    speed = [[step["tokens"] / step["seconds"] for step in side] for side in (ours, theirs)]
    ratios = [a / b for a, b in zip(*speed, strict=True)]
    return {
        "benchmark": "core against TRL, " + ("all at the cap" if to_the_cap else "natural lengths"),
        "ours_tokens_per_second": round(statistics.median(speed[0]), 1),
        "theirs_tokens_per_second": round(statistics.median(speed[1]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "target": 1.25 if to_the_cap else 2.2,
        "pairs": pairs,
        "threads": threads,
        "ours_seconds_rollout": round(statistics.median(step["seconds_rollout"] for step in ours), 3),
        "ours_seconds_update": round(statistics.median(step["seconds_update"] for step in ours), 3),
        "device": hardware(),
    }


def trl_python(environment: Path) -> Path:
    """The interpreter of TRL's environment, made on first use."""
    python = environment / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import trl"], capture_output=True).returncode:
        print(f"making {environment} with {', '.join(REQUIREMENTS)}", file=sys.stderr)
        venv.create(environment, with_pip=True)
        for requirements in (REQUIREMENTS[:1], REQUIREMENTS):
            done = subprocess.run([python, "-m", "pip", "install", "-q", *requirements], capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"TRL could not be installed in {environment}: {done.stderr.strip().splitlines()[-1]}")
    return python


@contextmanager
def _worker(command: list[str], threads: int) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            yield process
        except BrokenPipeError:
            errors.seek(0)
            raise UserError(f"{command[0]} failed: {errors.read().strip().splitlines()[-1]}") from None
        finally:
            process.kill()
            process.wait()


def _step(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    reply = process.stdout.readline()
    if not reply:
        raise BrokenPipeError
    return json.loads(reply)
