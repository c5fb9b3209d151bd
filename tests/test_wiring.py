"""What is handed on: wildcards to settings, settings to what a run does; and edges few inputs reach."""

import json
import re
import time
from importlib import metadata
from pathlib import Path

import golden
import pandas as pd
import pytest
import torch
import yaml
from project_copy import copy_project, snakemake
from test_every_setting import CASES
from test_golden import differences

from iapo_bench.config.evaluate import EvalConfig
from iapo_bench.config.section import identity
from iapo_bench.config.tier_file import read_tier
from iapo_bench.config.train import TrainConfig
from iapo_bench.evaluate import sample
from iapo_bench.machine import resume
from iapo_bench.machine.provenance import checksum, checksums
from iapo_bench.rollout import Completion, Sampling
from iapo_bench.rollout.collate import collate
from iapo_bench.rollout.draw import invert_cdf
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.train import run as training
from iapo_bench.worlds import Problem
from iapo_bench.worlds.grading.lenient import MAX_UNTAGGED_CHARS, grade_leniently, shorten
from iapo_bench.worlds.overlap import PREFIX_WORDS, find_overlap


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The commands of a dry run of table, search and grid, and the folder where their settings lie."""
    folder = copy_project(tmp_path_factory.mktemp("wiring"))
    table = ("results/table1.csv", "tune", "sensitivity")
    done = snakemake(folder, "-n", "-p", *table, "--config", "train={seeds: [3, 9, 4]}", "methods=[iapo, gfpo]")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder, re.findall(r"python -m iapo_bench [^\n]*", done.stdout + done.stderr)


def option(command: str, name: str) -> list[str]:
    return re.findall(rf"--{name}[ =](\S+)", command)


def job_of(folder: Path, command: str) -> dict:
    return yaml.safe_load((folder / option(command, "settings")[0]).read_text())["job"]


def test_rules_give_each_run_its_own_settings(jobs):
    folder, commands = jobs
    tier = read_tier("micro")
    seen = {"train": 0, "sample": 0, "grade": 0, "metrics": 0}
    for command in commands:
        found = re.search(r" (train|sample|grade|metrics) --settings", command)
        if not found:
            continue
        seen[found[1]] += 1
        out, job = option(command, "out")[0], job_of(folder, command)
        if found[1] == "train":
            check_training(tier, out.removeprefix("results/micro/"), job)
        elif found[1] == "metrics":
            row = Path(out).stem
            assert job["method"] == row
            grades = [Path(path).parent.parent.name for path in option(command, "grades")]
            assert grades
            assert [f"seed{seed}" for seed in option(command, "train-seed")] == grades or row == "base"
        else:
            where = Path(out) if found[1] == "sample" else Path(out).parent
            assert job["split"] == where.name, command
            given = option(command, "model" if found[1] == "sample" else "samples")[0]
            assert given == str(where.parent / "model" if found[1] == "sample" else where / "samples.parquet")
    assert min(seen.values()) > 2


def check_training(tier, run: str, job: dict) -> None:
    if found := re.fullmatch(r"tune/(\w+)/trial(\d+)", run):
        wanted = tier.train_job(found[1], tier.tune.seed, trial=int(found[2]))
    elif found := re.fullmatch(r"sensitivity/point(\d+)", run):
        options = tier.sensitivity.points()[int(found[1])]
        wanted = tier.train_job(tier.sensitivity.method, tier.tune.seed, options=options)
    else:
        method, seed = run.split("/seed")
        wanted = tier.train_job(method, int(seed))
    told = wanted.model_dump(mode="json")
    assert job["seed"] == told["seed"], run
    assert job["method"] == told["method"], run
    assert job["train"]["lr"] == told["train"]["lr"], run


def test_every_end_of_sequence_ends(model):
    settings = Sampling(max_tokens=30, eos_ids=(1, 9, 20), samples_per_prompt=60, seed=1)
    drawn = TransformersEngine(model).generate([[7, 8]], settings)
    assert {each.token_ids[-1] for each in drawn if each.finish_reason == "stop"} == {1, 9, 20}
    assert not {1, 9, 20} & {token for each in drawn for token in each.token_ids[:-1]}


def test_a_prompt_that_just_fits_is_completed(model):
    context = model.config.max_position_embeddings
    (drawn,) = TransformersEngine(model).generate([[7] * (context - 2)], Sampling(max_tokens=2, eos_ids=()))
    assert len(drawn.token_ids) == 2


@torch.no_grad()
def test_the_models_own_attention_scale_counts(model):
    for weight in model.parameters():
        weight.mul_(3.0 if weight.dim() > 1 else 1.0)  # attention that is not flat
    for layer in model.model.layers:
        layer.self_attn.scaling *= 0.3
    prompt = [7, 20, 8, 23, 25]
    (drawn,) = TransformersEngine(model).generate([prompt], Sampling(max_tokens=12, eos_ids=(), seed=2))
    logp = torch.log_softmax(model(torch.tensor([prompt + list(drawn.token_ids)])).logits[0], -1)
    expected = logp[len(prompt) - 1 : -1].gather(1, torch.tensor(drawn.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(drawn.logprobs), expected, atol=1e-4, rtol=0)


def test_draws_of_a_small_vocabulary_are_in_float64():
    generator = torch.Generator().manual_seed(0)
    logp = torch.log_softmax(torch.randn(1, 1000, generator=generator), -1)
    cdf = logp.double().exp().cumsum(-1)
    cdf = cdf / cdf[:, -1:]
    just_below = (cdf[0] - 1e-9).clamp(min=0)  # within float32's rounding of the next token
    assert invert_cdf(logp.expand(1000, -1), just_below).tolist() == list(range(1000))


def test_collating_keeps_each_flag_and_reward_apart():
    completions = [Completion((5,), (-1.0,), "stop"), Completion((6, 7), (-1.0, -2.0), "length")]
    batch = collate([[3]], completions, [True, False], [False, True], group_size=2, max_tokens=2, pad_id=0)
    assert batch.rewards_B.tolist() == [1.0, -1.0]
    assert batch.correct_B.tolist() == [True, False]
    assert batch.formatted_B.tolist() == [False, True]
    assert batch.truncated_B.tolist() == [False, True]
    assert batch.sampler_logp_BT.tolist() == [[-1.0, 0.0], [-1.0, -2.0]]


@pytest.mark.parametrize(("words", "same"), [(PREFIX_WORDS - 1, False), (PREFIX_WORDS, True)])
def test_a_prefix_of_ten_words_is_enough_and_of_nine_is_not(words, same):
    assert PREFIX_WORDS == 10
    short = Problem("short", " ".join(f"word{chr(97 + i)}" for i in range(words)), "1")
    long = Problem("long", f"{short.question} and more", "1")
    for one, other in ((short, long), (long, short)):
        assert bool(find_overlap([one], [other]).prefix) == same


def test_a_text_without_tags_is_read_from_its_end():
    text = "so 17 " + "word " * MAX_UNTAGGED_CHARS + "so 18"
    assert grade_leniently(text, "18").value == "CORRECT"
    assert grade_leniently(shorten(text), "18").value == "CORRECT"


def test_the_time_of_sampling_leaves_the_warm_up_out(run, monkeypatch, tmp_path):
    generate, calls = TransformersEngine.generate, []

    def slow_at_first(engine, prompts, sampling):
        calls.append(sampling)
        if len(calls) == 1:
            time.sleep(2)
        return generate(engine, prompts, sampling)

    golden.make_base(lambda *arguments: run(*arguments), tmp_path)
    monkeypatch.setattr(TransformersEngine, "generate", slow_at_first)
    paths = ("--model", tmp_path / "speaker", "--data", tmp_path / "data", "--out", tmp_path / "out")
    code, said = run("sample", "--config", golden.TIER, *paths)
    assert code == 0, said
    timing = json.loads((tmp_path / "out" / "timing.json").read_text())
    assert timing["warmup_seconds"] >= 2 > timing["seconds"] > 0
    assert len({sampling.seed for sampling in calls[1:]}) == 2, "a seed of its own for each sampling seed"


def draw(run, speaking, out, *options) -> pd.DataFrame:
    paths = ("--model", speaking / "speaker", "--data", speaking / "data", "--out", out)
    code, said = run("sample", "--config", golden.TIER, *options, *paths)
    assert code == 0, said
    return pd.read_parquet(out / "samples.parquet")


def test_sampling_keeps_to_its_split_and_token_limit(run, speaking, tmp_path):
    for split in ("train", "validation", "test"):
        drawn = draw(run, speaking, tmp_path / split, "--split", split, "--set", "evaluate.max_tokens=3")
        assert {name.split("-")[1] for name in drawn["problem_id"]} == {split}
        assert drawn["n_tokens"].max() == 3, split


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampling_holds_the_model_in_the_tiers_dtype(run, speaking, monkeypatch, tmp_path, dtype):
    held = []
    make = sample.make_engine
    monkeypatch.setattr(sample, "make_engine", lambda *a, **k: held.append(a[2].dtype) or make(*a, **k))
    draw(run, speaking, tmp_path / dtype, "--set", f"model.dtype={dtype}")
    assert held == [getattr(torch, dtype)]


def test_adapters_begin_as_the_training_seed_says(run, speaking, monkeypatch, tmp_path):
    begun = []
    add = training.add_lora
    monkeypatch.setattr(
        training, "add_lora", lambda model, config, seed: begun.append(seed) or add(model, config, seed)
    )
    paths = ("--base", speaking / "speaker", "--data", speaking / "data")
    short = ("--set", "train.completions=12", "--set", "train.max_tokens=4", "--set", "train.lora={rank: 2}")
    for seed in (0, 7):
        seeded = ("--seed", seed, "--out", tmp_path / str(seed))
        code, said = run("train", "--config", golden.TIER, "--method", "grpo", *short, *paths, *seeded)
        assert code == 0, said
    assert begun[1] - begun[0] == 7


def test_parts_of_a_sampling_draw_what_the_whole_draws(run, speaking, monkeypatch, tmp_path):
    whole = draw(run, speaking, tmp_path / "whole")
    monkeypatch.setattr(sample, "PART", 3)  # one problem at once
    parts = draw(run, speaking, tmp_path / "parts")
    assert parts["token_ids"].map(tuple).tolist() == whole["token_ids"].map(tuple).tolist()


def without_provenance(base: Path) -> dict[str, str]:
    return {name: digest for name, digest in checksums(base).items() if name != "provenance.json"}


def test_training_names_the_weights_and_problems_it_goes_on_from(run, speaking, tmp_path):
    """What identifies a run, and so its checkpoint: another base, with its template and stops, or other problems are
    another run; when and where the base was made is not."""
    paths = ("--base", speaking / "speaker", "--data", speaking / "data", "--out", tmp_path)
    short = ("--set", "train.completions=12", "--set", "train.max_tokens=4")
    code, said = run("train", "--config", golden.TIER, "--method", "grpo", *short, *paths)
    assert code == 0, said
    told = json.loads((tmp_path / "provenance.json").read_text())["run"]
    assert told["base"] == without_provenance(speaking / "speaker")
    assert {"model.safetensors", "generation_config.json", "tokenizer_config.json"} <= told["base"].keys()
    assert told["problems"] == checksum(speaking / "data" / "train.jsonl")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a limit of CPUs")
@pytest.mark.parametrize("command", [("sample",), ("lm-eval", "--backend", "vllm")])
def test_batch_invariance_is_asked_of_the_engine_and_refused_here(run, speaking, tmp_path, command):
    wanted = ("--set", "evaluate.engine=vllm", "--set", "evaluate.engine_deterministic=true")
    paths = ("--model", speaking / "speaker", "--data", speaking / "data", "--out", tmp_path / "out")
    code, said = run(*command, "--config", golden.TIER, *wanted, *paths)
    assert code == 2
    assert "engine_deterministic needs a GPU of compute capability 9.0 or more, here is a CPU" in said
    assert not (tmp_path / "out").exists()


NEEDS_MORE = {"engine", "engine_deterministic", "engine_memory", "sharded", "report_to"}  # vLLM, processes, loggers
# How golden.tier is changed so that a run is short and a setting can act, and which method is trained: by default iapo.
TRAINED = {"completions": 36, "importance_cap": None}
ACTS = {
    "importance_cap": ({"importance_cap": 0.9}, "iapo"),
    "max_draws": ({}, "dapo"),
    "seeds": ({}, "grpo"),  # a run has the seed of its command
}


def trained(run, speaking, out: Path, key: str, value: object) -> dict:
    """The rows of a short run without what a clock wrote, and its weights, with a setting and all else alike."""
    changes, method = ACTS.get(key, ({}, "iapo"))
    settings = [f"train.{name}={json.dumps(each)}" for name, each in {**TRAINED, **changes, key: value}.items()]
    code, said = run(
        *("train", "--config", golden.TIER, "--method", method, "--seed", golden.SEED, "--out", out),
        *(part for setting in settings for part in ("--set", setting)),
        *("--base", speaking / "speaker", "--data", speaking / "data"),
    )
    assert code == 0, said
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    rows = [{name: each for name, each in row.items() if not name.startswith("validation_")} for row in rows]  # a look
    return {"steps": golden._columns(rows), "weights": golden._weights(out / "model", speaking / "speaker")}


@pytest.mark.parametrize("key", sorted(TrainConfig.model_fields.keys() - NEEDS_MORE))
def test_a_setting_of_training_acts_if_it_can_change_a_result(run, speaking, tmp_path, key):
    value = CASES["TrainConfig"][2].get(key, {"rank": 2})  # else lora
    value = value[0] if isinstance(value, tuple) else value
    before = getattr(read_tier(golden.TIER, {"train": {**TRAINED, **ACTS.get(key, ({},))[0]}}).train, key)
    one, other = (trained(run, speaking, tmp_path / str(i), key, each) for i, each in enumerate((before, value)))
    acts = key in identity(read_tier(golden.TIER).train)
    moved = differences(one, other, 1e-5 if acts else 0.02)  # AdamW makes more of rounding
    assert bool(moved) == acts, moved[:3]


@pytest.mark.parametrize("key", sorted(EvalConfig.model_fields.keys() - NEEDS_MORE))
def test_a_setting_of_sampling_acts_if_it_can_change_a_result(run, speaking, tmp_path, key):
    value = CASES["EvalConfig"][2][key]
    value = value[0] if isinstance(value, tuple) else value
    one = draw(run, speaking, tmp_path / "one")
    other = draw(run, speaking, tmp_path / "other", "--set", f"evaluate.{key}={json.dumps(value)}")
    assert one.equals(other) == (key not in identity(read_tier(golden.TIER).evaluate))


def test_a_stopped_job_goes_on_with_the_settings_inputs_code_and_versions_that_it_had(
    run, speaking, tmp_path, monkeypatch
):
    """The code is that of its dataset and method too, which no import leads to: they are found by name."""
    plugins: dict[str, list[str]] = {}
    known: dict[str, dict] = {}

    def digest(module: str, files) -> str:
        plugins[module.rpartition(".")[2]] = [path.name for path in files]
        return "the code"

    def note(path: Path, content: dict) -> None:
        known[path.parent.name] = content

    monkeypatch.setattr(resume, "code_digest", digest)
    monkeypatch.setattr(resume, "write_json", note)
    draw(run, speaking, tmp_path / "drawn")
    data, drawn = speaking / "data", tmp_path / "drawn" / "samples.parquet"
    where = ("--config", golden.TIER, "--data", data)
    assert run("grade", *where, "--samples", drawn, "--out", tmp_path / "grades")[0] == 0
    short = {"completions": 4, "prompts_per_step": 1, "group_size": 4}
    options = [part for key, value in short.items() for part in ("--set", f"train.{key}={value}")]
    base = speaking / "speaker"
    assert run("train", *where, *options, "--method", "grpo", "--base", base, "--out", tmp_path / "t")[0] == 0

    tier, short_tier = read_tier(golden.TIER), read_tier(golden.TIER, {"train": short})
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    assert known["samples.resume"] == {
        "settings": identity(tier.sample_job("test")),
        **{"model": checksums(base), "problems": checksum(data / "test.jsonl"), "code": "the code", **versions},
    }
    assert known["grades.resume"] == {
        "settings": identity(tier.grade_job("test")),
        **{"samples": checksum(drawn), "problems": checksum(data / "test.jsonl"), "code": "the code"},
        "math-verify": metadata.version("math-verify"),
    }
    assert known["resume"] == {
        "settings": identity(short_tier.train_job("grpo", 0)),
        **{"base": without_provenance(base), "problems": checksum(data / "train.jsonl"), "code": "the code"},
        **versions,
    }
    assert plugins == {"sample": ["micro.py"], "grade": ["micro.py"], "run": ["grpo.py", "correct.py", "micro.py"]}
