"""Qwen2.5-0.5B at its real size: a training step of every method and a sampling round. Run it with -m smoke_05b.

The weights are the real ones where the hub answers, random ones otherwise.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from iapo_bench.config.tier_file import read_tier

pytestmark = pytest.mark.smoke_05b

ROOT = Path(__file__).parent.parent
TIER = read_tier("smoke-0.5b")
REAL = read_tier("qwen-0.5b").model.source
LIMIT_GIB = 24
ONLINE = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}


def hub_answers() -> bool:
    question = f"from huggingface_hub import HfApi; HfApi().model_info('{REAL.partition('@')[0]}', timeout=5)"
    try:
        return not subprocess.run(
            [sys.executable, "-c", question], env=ONLINE, capture_output=True, timeout=60
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def run(*arguments: str | Path) -> None:
    """A command of the suite with one thread, its seconds and peak memory printed."""
    command = [sys.executable, "-m", "iapo_bench", "--threads", "1", *map(str, arguments), "--config", TIER.tier]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=ONLINE)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    gib = usage.ru_maxrss / 2**20
    print(f"\n{arguments[0]}: {time.perf_counter() - started:.0f} s, peak {gib:.1f} GiB")
    assert process.returncode == 0
    assert gib < LIMIT_GIB


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smoke-0.5b")
    source = REAL if hub_answers() else TIER.model.source
    run("prepare", "--out", folder / "data")
    run("base", "--set", f"model.source={source}", "--out", folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"]) == (896, 151_936)
    assert "revision" in json.loads((folder / "base" / "provenance.json").read_text())
    return folder


@pytest.mark.parametrize("method", list(TIER.methods))
def test_a_step_of_training(work, method):
    out = work / method
    run("train", "--method", method, "--base", work / "base", "--data", work / "data", "--out", out)
    (row,) = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert row["groups"] == 1
    assert row["grad_norm"] >= 0
    assert row["logp_gap"] < 1e-3
    shutil.rmtree(out)  # two gigabytes


def test_a_round_of_sampling(work):
    out = work / "base" / "test"
    run("sample", "--model", work / "base", "--data", work / "data", "--out", out)
    run("grade", "--samples", out / "samples.parquet", "--data", work / "data", "--out", out / "grades.parquet")
    assert len(pd.read_parquet(out / "grades.parquet")) == 2 * TIER.evaluate.n_samples
