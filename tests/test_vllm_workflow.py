"""The micro table with vLLM as the engine of everything: training, sampling and lm-eval, as the workflow runs them.

Run where vLLM is installed: `bash scripts/vllm_env.sh`, then `.bench/vllm/bin/pytest -m vllm`.
"""

import importlib.util
import json

import pandas as pd
import pytest
import yaml
from project_copy import copy_project, snakemake

from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import read_tier
from iapo_bench.evaluate.sample import sample
from iapo_bench.machine.provenance import checksum

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed here"),
]
SEEDS, SAMPLES, PROBLEMS, STEPS = [42, 142], 4, 8, 3


@pytest.fixture(scope="module")
def tier() -> TierConfig:
    """The default tier, its model and its sampling rule, with little of everything and one method."""
    shrunk = {
        "model": {"source": "taught", "sft": {"steps": 60}},
        "world": {"options": {"n_train": 64, "n_validation": 8, "n_test": PROBLEMS}},
        "train": {
            **{"engine": "vllm", "importance_cap": 2.0, "max_tokens": 64, "checkpoint_every": 1, "seeds": [0]},
            **{"completions": STEPS * 32, "prompts_per_step": 8, "group_size": 4},
        },
        "evaluate": {"engine": "vllm", "ks": [1, 4], "n_samples": SAMPLES, "seeds": SEEDS, "max_tokens": 64},
        "lm_eval": {"backend": "vllm"},
    }
    return read_tier("micro", shrunk).model_copy(update={"methods": {"iapo": None}, "ablations": {}})


@pytest.fixture(scope="module")
def made(tier, tmp_path_factory):
    """`results` of one run of the workflow."""
    folder = copy_project(tmp_path_factory.mktemp("vllm_workflow"))
    (folder / "tier.yaml").write_text(yaml.safe_dump(tier.model_dump(mode="json")))
    targets = ["results/table1.csv", "results/lm_eval.csv"]
    # What vLLM computes is the settings' alone, whatever the shell that starts it has set.
    run = snakemake(folder, "--configfile", "tier.yaml", "--", *targets, VLLM_BATCH_INVARIANT="1")
    assert run.returncode == 0, run.stderr[-3000:]
    return folder / "results"


def test_the_table_has_its_rows(made):
    table = pd.read_csv(made / "table1.csv")
    assert table["method"].tolist() == ["base", "iapo", "base_cut", "base_shortest"]
    table = table[:2]  # the others are made of the base's samples
    assert (table["n_problems"] == PROBLEMS).all()
    assert (table["n_samples"] == SAMPLES).all()
    lm_eval = pd.read_csv(made / "lm_eval.csv")
    assert lm_eval["method"].tolist() == ["base", "iapo"]
    assert (lm_eval["backend"] == "vllm").all()
    assert lm_eval["versions"].str.contains(r", vllm(?:-cpu)? \d").all()


def test_training_kept_to_the_engine(made):
    run = made / "micro" / "iapo" / "seed0"
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS
    assert all(row["logp_gap"] < 1e-3 for row in rows)
    log = (made / "micro" / "logs" / "train" / "iapo" / "seed0.log").read_text()
    assert "safetensors checkpoint shards" in log, "what vLLM says, and nothing else, when it starts"
    before, after = (folder / "model" / "model.safetensors" for folder in (made / "micro" / "base", run))
    assert checksum(before) != checksum(after)


@pytest.mark.parametrize("run", ["base", "iapo/seed0"])
def test_samples_come_from_the_engine_that_timing_names(made, tier, tmp_path, run):
    """Drawn again in this process, with the same seeds, they are the same; the other engine draws others."""
    folder = made / "micro" / run
    timing = json.loads((folder / "test" / "timing.json").read_text())
    assert timing["engine"] == "vllm"
    assert timing["completions"] == len(SEEDS) * SAMPLES * PROBLEMS
    again = {}
    for engine in ("vllm", "transformers"):
        chosen = tier.model_copy(update={"evaluate": tier.evaluate.model_copy(update={"engine": engine})})
        job = chosen.sample_job("test")
        sample(job, model=folder / "model", data=made / "micro" / "data", out=tmp_path / engine)
        again[engine] = pd.read_parquet(tmp_path / engine / "samples.parquet")
    drawn = pd.read_parquet(folder / "test" / "samples.parquet")
    pd.testing.assert_frame_equal(drawn, again["vllm"])
    assert drawn["text"].tolist() != again["transformers"]["text"].tolist()
