"""Two ranks that each generate with an engine of vLLM's: a run ends with its model, stopped and resumed too.

Run where vLLM is installed: `bash scripts/vllm_env.sh`, then `.bench/vllm/bin/pytest -m vllm`.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iapo_bench.models.checkpoints import load_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed here"),
]
ROOT = Path(__file__).parent.parent
# Heads of 32 dimensions: the least that vLLM's attention for CPUs takes.
SETTINGS = ("model.sft.hidden=64", "model.sft.heads=2", "train.engine=vllm", "train.completions=96")
SETTINGS += ("train.prompts_per_step=4", "train.group_size=4", "train.checkpoint_every=1")
STEPS = 6
SECONDS = 400


def command(*arguments: object, ranks: int = 1) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    changes = [part for setting in SETTINGS for part in ("--set", setting)]
    name, *rest = map(str, arguments)
    return [sys.executable, *launch, "-m", "iapo_bench", name, "--config", "smoke", *changes, *rest]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vllm_parallel")
    for name in ("prepare", "base"):
        out = folder / {"prepare": "data"}.get(name, name)
        subprocess.run(command(name, "--out", out), check=True, env=environment(), timeout=SECONDS)
    return folder


def train(folder: Path, out: Path, *, sharded: bool = False) -> list[str]:
    files = ("--base", folder / "base", "--data", folder / "data", "--out", out)
    return command("train", *files, "--method", "grpo", "--set", f"train.sharded={sharded}", ranks=2)


def rows(out: Path) -> list[dict]:
    found = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per"))} for row in found]


@pytest.fixture(scope="module")
def whole(made) -> Path:
    subprocess.run(train(made, made / "whole"), check=True, env=environment(), timeout=SECONDS)
    return made / "whole"


def test_the_model_is_there_when_both_engines_have_gone(whole):
    load_model(whole / "model")
    assert json.loads((whole / "provenance.json").read_text())["processes"] == 2
    assert len(rows(whole)) == STEPS
    assert all(0 <= row["sync_gap"] < 1e-3 for row in rows(whole) if "sync_gap" in row)
    assert any("sync_gap" in row for row in rows(whole))


def test_sharded_it_is_the_same_run(made, whole):
    subprocess.run(train(made, made / "sharded", sharded=True), check=True, env=environment(), timeout=SECONDS)
    load_model(made / "sharded" / "model")
    for row, expected in zip(rows(made / "sharded"), rows(whole), strict=True):
        assert row["outcomes"] == expected["outcomes"]
        assert row["length"] == expected["length"]


def test_stopped_and_resumed_it_is_the_same_run(made, whole):
    out = made / "resumed"
    stopped = subprocess.Popen(train(made, out), env=environment(), start_new_session=True)
    deadline = time.monotonic() + SECONDS
    while not (out / "resume" / "state").exists():
        assert stopped.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(stopped.pid, signal.SIGKILL)
    stopped.wait()
    assert not (out / "model").exists()
    subprocess.run(train(made, out), check=True, env=environment(), timeout=SECONDS)
    assert rows(out) == rows(whole)
    assert not (out / "resume").exists()
