"""Qwen2.5-0.5B at its real size, with GSM8K's prompts and grader: a training step of every method and a sampling round.
Run it with -m smoke_05b.

The weights are the real ones where the hub answers, random ones otherwise. The problems have the shape of GSM8K's rows.
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
from test_text_worlds import gsm8k_row, write_rows

from iapo_bench.config.tier_file import read_tier
from iapo_bench.models.checkpoints import load_tokenizer
from iapo_bench.worlds import read_problems
from iapo_bench.worlds.load import load_world

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


def run(settings: Path, *arguments: str | Path) -> None:
    """A command of the suite, its seconds and peak memory printed. A few rows may stand under GSM8K's name."""
    code = "from builders import any_problems\nfrom iapo_bench.cli import main\nwith any_problems(): main()"
    command = [sys.executable, "-c", code, *map(str, arguments), "--config", str(settings)]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT / "tests", env=ONLINE)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    gib = usage.ru_maxrss / 2**20
    print(f"\n{arguments[0]}: {time.perf_counter() - started:.0f} s, peak {gib:.1f} GiB")
    assert process.returncode == 0
    assert gib < LIMIT_GIB


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smoke-0.5b")
    write_rows(folder / "gsm8k_train.jsonl", [gsm8k_row(n, f"{n - 1:,}") for n in range(1000, 1520)])
    write_rows(folder / "gsm8k_test.jsonl", [gsm8k_row(n, f"{n - 1:,}") for n in range(2000, 2002)])
    content = TIER.model_dump(mode="json")
    content["world"] = {"name": "gsm8k", "data_dir": str(folder)}
    content["model"]["source"] = REAL if hub_answers() else TIER.model.source
    content["train"] |= {"micro_batch_tokens": 1024, "problems": 4}  # longer prompts than the micro world's
    (folder / "tier.yaml").write_text(json.dumps(content))
    run(folder / "tier.yaml", "prepare", "--out", folder / "data")
    run(folder / "tier.yaml", "base", "--out", folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"]) == (896, 151_936)
    assert "revision" in json.loads((folder / "base" / "provenance.json").read_text())
    return folder


@pytest.mark.parametrize("method", list(TIER.methods))
def test_a_step_of_training(work, method):
    out = work / method
    run(work / "tier.yaml", "train", "--method", method, "--base", work / "base", "--data", work / "data", "--out", out)
    (row,) = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert row["groups"] == 1
    assert row["grad_norm"] >= 0
    assert row["logp_gap"] < 1e-3
    shutil.rmtree(out)  # two gigabytes


def test_a_round_of_sampling(work):
    out = work / "base" / "test"
    run(work / "tier.yaml", "sample", "--model", work / "base", "--data", work / "data", "--out", out)
    files = ("--samples", out / "samples.parquet", "--data", work / "data", "--out", out / "grades.parquet")
    run(work / "tier.yaml", "grade", *files)
    assert len(pd.read_parquet(out / "grades.parquet")) == 2 * TIER.evaluate.n_samples


def test_the_prompts_are_those_of_gsm8k(work):
    """ChatML from the tokenizer's own template around the dataset's system text, example and question."""
    tier = read_tier(work / "tier.yaml")
    dialogue = load_world(tier.world, tier.seed).dialogue(load_tokenizer(work / "base"), tier.prompt)
    (problem, _) = read_problems(work / "data" / "test.jsonl")
    turns = dialogue.render(problem.question).split("<|im_start|>")
    assert [turn.partition("\n")[0] for turn in turns] == ["", "system", "user", "assistant", "user", "assistant"]
    assert "single integer" in turns[1]
    assert "How many are left?" in turns[4]
    assert problem.answer.isdigit()
