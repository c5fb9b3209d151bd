"""Problems and models of one's own: a file in one of three formats, checked by line, and a directory or hub id."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project_copy import copy_project, snakemake
from transformers import LlamaConfig, LlamaForCausalLM

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate.grade import grade
from iapo_bench.models.checkpoints import save_model
from iapo_bench.models.sources import _byte_tokenizer
from iapo_bench.plugins import list_methods
from iapo_bench.workflow import Workflow
from iapo_bench.worlds import SPLITS, read_problems, split_file
from iapo_bench.worlds.load import load_world
from iapo_bench.worlds.prepare import prepare

ROWS = [{"question": f"Ann has {n} eggs, and buys {n}. How many?", "answer": 2 * n} for n in range(40)]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def settings(path: Path, **world) -> dict:
    return {"world": {"file": str(path), **world}, "model": {"source": "org/Mine-1B@main"}}


def load(path: Path, **world) -> dict[str, list]:
    tier = read_tier("smollm2", settings(path, **world))
    opened = load_world(tier.world, tier.seed)
    return {split: opened.load(split) for split in SPLITS}


def refused(path: Path, rows: list[dict], message: str, **world) -> None:
    with pytest.raises(UserError, match=message):
        load(write(path, rows), **world)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_problems_and_splits(tmp_path, ending):
    found = load(write(tmp_path / f"my.{ending}", ROWS))
    assert {split: len(problems) for split, problems in found.items()} == {"train": 28, "validation": 4, "test": 8}
    golds = {problem.question: problem.answer for problems in found.values() for problem in problems}
    assert golds == {row["question"]: str(row["answer"]) for row in ROWS}
    assert found == load(write(tmp_path / "my.jsonl", ROWS))


def test_splits_are_the_files_or_drawn_by_seed_and_share_no_problem(tmp_path):
    path = write(tmp_path / "my.jsonl", ROWS)
    drawn = [load(path, options={"seed": seed}) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(load(path, options={"test": 0.5})["test"]) == 20
    parts = ["test" if n < 5 else "validation" if n < 9 else "train" for n in range(40)]
    said = load(write(path, [row | {"split": part} for row, part in zip(ROWS, parts, strict=True)]))
    assert [problem.answer for problem in said["test"]] == ["0", "2", "4", "6", "8"]
    parts = [part.replace("validation", "train") for part in parts]
    only = load(write(path, [row | {"split": part} for row, part in zip(ROWS, parts, strict=True)]))
    assert said["test"] == only["test"]
    assert {split: len(problems) for split, problems in only.items()} == {"train": 31, "validation": 4, "test": 5}
    assert all(len(load(write(path, ROWS[:10]))[split]) for split in SPLITS)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [(["7", "1,234", -3], "integer"), (["7", r"\frac{1}{2}", "3"], "math"), ([0.5, 1, 2], "math")],
)
def test_the_kind_of_golds_is_found_out_or_stated(tmp_path, answers, kind):
    rows = [row | {"answer": answers[n % 3]} for n, row in enumerate(ROWS)]
    path = write(tmp_path / "my.jsonl", rows)
    tier = read_tier("smollm2", settings(path))
    assert load_world(tier.world, 0).grader == Workflow(tier).tier.world.golds == kind
    golds = {problem.answer for problems in load(path).values() for problem in problems}
    assert golds == {str(answer).replace(",", "") for answer in answers}
    if kind == "math":
        refused(path, rows, r"my\.jsonl:\d+: the gold answer .* is not an integer", golds="integer")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_whole_numbers_are_integers_as_any_table_writes_them(tmp_path, ending):
    path = write(tmp_path / f"my.{ending}", [row | {"answer": float(row["answer"])} for row in ROWS])
    assert load(path) == load(write(tmp_path / "my.jsonl", ROWS))
    assert load_world(read_tier("smollm2", settings(path)).world, 0).grader == "integer"


def test_a_column_that_would_not_be_read_is_told(tmp_path):
    rows = [row | {"Split": "test" if n < 5 else "train"} for n, row in enumerate(ROWS)]
    for ending, place in (("jsonl", ":1"), ("csv", ":2"), ("parquet", ": row 1")):
        refused(tmp_path / f"my.{ending}", rows, rf"my\.{ending}{place}: 'Split' is ignored: rename it to 'split'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " "}, r"my\.{0}:3: 'question' is empty"),
        ({"question": 5}, r"my\.{0}:3: 'question' is 5: write text"),
        ({"answer": None}, r"my\.{0}:3: 'answer' is empty"),
        ({"answer": True}, r"my\.{0}:3: 'answer' is True: write text"),
        ({"answer": "N/A"}, r"my\.{0}:3: the gold answer 'N/A' cannot be read as mathematics"),
        ({"answer": "?!"}, r"my\.{0}:3: the gold answer '\?!' cannot be read as mathematics"),
        ({"answer": 2.0**70}, r"my\.{0}:3: 'answer' is .*, too large for a float to be exact"),
        ({"answer": 10 / 3}, r"my\.{0}:3: 'answer' is 3\.3333333333333335, rounded when read as a float"),
        ({"split": "dev"}, r"my\.{0}:3: unknown split 'dev'"),
        ({"split": "test"}, r"my\.{0}:1: this problem has no split but others do"),
        ({"question": ROWS[0]["question"]}, r"my\.{0}:3: repeats the problem at .*my\.{0}:1 with another answer"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(tmp_path, change, message):
    rows = [*ROWS[:2], ROWS[2] | change, *ROWS[3:]]
    refused(tmp_path / "my.jsonl", rows, message.format("jsonl"))
    if isinstance(next(iter(change.values())), str):
        below_the_header = message.format("csv").replace("csv:3", "csv:4").replace("csv:1", "csv:2")
        refused(tmp_path / "my.csv", rows, below_the_header)


def test_a_bad_file_is_one_line(tmp_path):
    refused(tmp_path / "my.jsonl", ROWS[:9], "holds 9 problems: at least 10 are needed")
    refused(tmp_path / "my.csv", [{"question": "q"}], "my.csv:1: no columns 'answer' in the header")
    (tmp_path / "my.csv").write_text("question,answer,answer\n" + "q,1,2\n")
    with pytest.raises(UserError, match=r"my\.csv:1: 2 columns 'answer' in the header"):
        load(tmp_path / "my.csv")
    (tmp_path / "my.csv").write_text("question,answer,split,split\n" + "q,1,test,train\n")
    with pytest.raises(UserError, match=r"my\.csv:1: 2 columns 'split' in the header"):
        load(tmp_path / "my.csv")
    (tmp_path / "my.jsonl").write_text('{"question": "q", "answer": 1}\n{"question": "r", "answer": 1, "answer": 2}\n')
    with pytest.raises(UserError, match=r"my\.jsonl:2 is not JSON \('answer' appears twice\)"):
        load(tmp_path / "my.jsonl")
    (tmp_path / "my.csv").write_text('question,answer\n"two\nlines?",4\nq,1,2\n')
    with pytest.raises(UserError, match=r"my\.csv:4: more or fewer fields than the header"):
        load(tmp_path / "my.csv")
    (tmp_path / "my.txt").write_text("")
    for name, message in (("my.txt", r"ends in \.jsonl, \.csv, \.parquet"), ("no.jsonl", r"no\.jsonl does not exist")):
        with pytest.raises(UserError, match=message):
            load(tmp_path / name)
    with pytest.raises(UserError, match=r"unknown option of world\.file 'tset': did you mean 'test'"):
        load(write(tmp_path / "my.jsonl", ROWS), options={"tset": 0.1})


def test_a_file_does_not_pass_under_the_name_of_a_dataset(tmp_path):
    for path, world, dataset in (
        (tmp_path / "math500.jsonl", {}, "math500"),
        (tmp_path / "MATH-500.csv", {"golds": "integer"}, "math500"),
        (tmp_path / "gsm8k_test.jsonl", {}, "gsm8k"),
        (tmp_path / "DAPO-Math-17k.parquet", {}, "dapo"),
        (tmp_path / "my.jsonl", {"name": "gsm-8k"}, "gsm8k"),
        (tmp_path / "my.jsonl", {"name": "micro"}, "micro"),
    ):
        refused(path, ROWS, f"is not the dataset '{dataset}': give it another name", **world)
        with pytest.raises(UserError, match="is not the dataset"):
            Workflow(read_tier("smollm2", settings(path, **world)))
    assert load(write(tmp_path / "math501.jsonl", ROWS))["test"]


@pytest.mark.parametrize("name", ["math500", "dapo", "gsm8k"])
def test_a_few_rows_under_the_name_of_a_dataset_are_refused(tmp_path, run, name):
    rows = [{"problem": f"What is {n}?", "question": f"What is {n}?", "answer": str(n)} for n in range(20)]
    for file in ("math500", "dapo_math_17k"):
        write(tmp_path / f"{file}.jsonl", rows)
    for split in ("train", "test"):
        write(tmp_path / f"gsm8k_{split}.jsonl", [row | {"answer": f"#### {row['answer']}"} for row in rows])
    place = ("--set", f"world.name={name}", "--set", f"world.data_dir={tmp_path}", "--out", tmp_path / "out")
    code, said = run("prepare", "--config", "smollm2", *place)
    assert code == 2
    assert f"does not hold the published {name} (20 problems where it has" in said
    assert "world: {file: FILE}" in said
    assert not (tmp_path / "out").exists()


def test_the_published_datasets_are_recognised_in_any_order_but_not_with_another_gold(request, tmp_path):
    if not (folder := request.config.getoption("--data-dir")):
        pytest.skip("needs --data-dir")
    for name in ("gsm8k", "dapo", "math500"):
        world = load_world(read_tier("smollm2", {"world": {"name": name, "data_dir": folder}}).world, 0)
        world.recognise()
    lines = (Path(folder) / "math500.jsonl").read_text().splitlines(keepends=True)
    math = load_world(read_tier("smollm2", {"world": {"name": "math500", "data_dir": str(tmp_path)}}).world, 0)
    (tmp_path / "math500.jsonl").write_text("".join(reversed(lines)))
    math.recognise()
    (tmp_path / "math500.jsonl").write_text("".join([*lines[:-1], json.dumps(json.loads(lines[-1]) | {"answer": "5"})]))
    with pytest.raises(UserError, match="some problems or answers are others"):
        math.recognise()


def test_a_model_and_problems_of_ones_own_take_the_place_of_the_tiers(tmp_path):
    path = write(tmp_path / "My sums.jsonl", ROWS)
    tier = read_tier("smollm2", settings(path))
    assert (tier.model.name, tier.model.sft, tier.labels.dataset) == ("Mine-1B", {}, "my-sums")
    assert (tier.folder, tier.shown) == ("smollm2/own/my-sums", "smollm2")
    assert read_tier("qwen-0.5b", settings(path)).folder == "qwen-0.5b/my-sums"
    micro = read_tier("micro", settings(path))
    assert micro.world.options == {}
    assert micro.tuned == {}
    assert micro.selection_of("iapo") == "defaults"
    kept = read_tier("smollm2", {"model": {"source": str(tmp_path), "sft": {"steps": 3}, "name": "x"}}).model
    assert (kept.name, kept.sft) == ("x", {"steps": 3})
    assert read_tier("smollm2", {"model": {"dtype": "bfloat16"}}).model.name == "SmolLM2-135M-Instruct"
    with pytest.raises(UserError, match="'shipped' answers only the micro world, not my-sums: choose another"):
        read_tier("micro", {"world": {"file": str(path)}})


def test_a_changed_row_reruns_what_reads_it_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [row | {"split": "test" if n < 5 else "train"} for n, row in enumerate(ROWS)]
    path = write(tmp_path / "my.jsonl", rows)

    def jobs() -> dict[str, str]:
        flow = Workflow(read_tier("smollm2", settings(path)))
        found = {"prepare": flow.prepare(), "base": flow.base(), "train": flow.train("grpo/seed0")}
        found |= {"sample": flow.sample("base", "test"), "grade": flow.grade("base", "test")}
        return found | {"lm_eval": flow.lm_eval("base")}

    def stale(changed: list[dict]) -> set[str]:
        before = jobs()
        write(path, changed)
        after = jobs()
        return {job for job in before if before[job] != after[job]}

    assert stale([*rows[:4], rows[4] | {"answer": 9}, *rows[5:]]) == {"prepare", "grade", "lm_eval"}
    assert stale([*rows[:4], rows[4] | {"question": "How?"}, *rows[5:]]) == {"prepare", "sample", "grade", "lm_eval"}
    write(path, rows)
    trained = [row | {"answer": 1} if row["split"] == "train" else row for row in rows]
    assert stale(trained) == {"prepare", "train"}
    before = jobs()
    path.touch()
    assert jobs() == before


def tiny_llama(folder: Path) -> Path:
    """An untrained Llama with a tokenizer that can chat."""
    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


@pytest.mark.parametrize("split", ["test", "validation"])
def test_grades_hold_both_rules_the_answer_and_the_gold_of_the_split(tmp_path, split):
    tier = read_tier("smollm2", settings(write(tmp_path / "my.jsonl", ROWS)))
    prepare(tier.prepare_job(), tmp_path / "data")
    problem = read_problems(split_file(tmp_path / "data", split))[0]
    gold = problem.answer
    texts = {
        f"<think> so </think> <answer> {gold} </answer>": ("CORRECT", "CORRECT", gold, True),
        f"<think> so </think> <answer> {int(gold) - 1}+1 </answer>": ("WRONG", "CORRECT", f"{int(gold) - 1}+1", True),
        f"The result is {gold}": ("UNPARSEABLE", "CORRECT", None, False),
        "<answer> -1 </answer>": ("WRONG", "WRONG", "-1", False),
    }
    frame = pd.DataFrame({"problem_id": problem.id, "sample": range(4), "seed": 0, "text": list(texts)})
    frame.to_parquet(tmp_path / "samples.parquet")
    out = tmp_path / "grades.parquet"
    grade(tier.grade_job(split), samples=tmp_path / "samples.parquet", data=tmp_path / "data", out=out)
    found = pd.read_parquet(out)
    assert set(found["gold"]) == {gold}
    for row, wanted in zip(found.itertuples(), texts.values(), strict=True):
        answer = row.answer and row.answer.strip()
        assert (row.outcome, row.outcome_lenient, answer, row.formatted) == wanted


def test_other_datasets_are_measured_by_their_own_prompt_and_grader_and_make_nothing_stale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = settings(write(tmp_path / "my.jsonl", ROWS))
    fractions = [{"question": f"What is ${n}/7$?", "answer": rf"\frac{{{n}}}{{7}}"} for n in range(10)]
    also = ["math500", str(write(tmp_path / "other.jsonl", fractions))]
    plain = Workflow(read_tier("smollm2", own))
    flow = Workflow(read_tier("smollm2", {**own, "evaluate": {"also": also}}))
    assert list(flow.tier.also) == ["math500", "other"]
    assert flow.tier.grade_job("also/other/test").world.golds == "math"
    assert flow.tier.sample_job("also/math500/test").split == "test"
    assert (flow.tier.row_job("grpo", "other").labels.dataset, flow.tier.labels.dataset) == ("other", "my")
    for job in ("sample", "grade"):
        assert getattr(flow, job)("base", "test") == getattr(plain, job)("base", "test")
        assert getattr(flow, job)("base", "also/other/test") != getattr(flow, job)("base", "test")
    with pytest.raises(UserError, match=r"unknown dataset of evaluate\.also 'othr'"):
        flow.sample("base", "also/othr/test")
    for bad in (["my.jsonl"], ["math500", "math500"]):
        with pytest.raises(UserError, match="is repeated, or is the tier's own dataset"):
            read_tier("smollm2", {**own, "evaluate": {"also": bad}})
    with pytest.raises(UserError, match="unknown dataset 'maths500': did you mean 'math500'"):
        read_tier("smollm2", {"evaluate": {"also": ["maths500"]}})


def test_the_zoo_holds_every_method_and_goes_by_choices_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flow = Workflow(read_tier("micro"))
    assert set(flow.zoo) == set(list_methods())
    assert flow.zoo[: len(flow.tier.methods)] == list(flow.tier.methods)
    assert set(flow.untuned) == set(list_methods()) - set(flow.tier.methods)
    job = flow.tier.tune_job(flow.untuned)
    assert {len(trials) for trials in job.trials.values()} == {3}
    assert len(flow.trials_of(flow.untuned)) == 3 * len(flow.untuned)
    before = flow.train("kimi/seed0"), flow.train("tune/kimi/trial0"), flow.train("iapo/seed0"), flow.metrics("kimi")
    Path(flow.choices).parent.mkdir(parents=True)
    Path(flow.choices).write_text("".join(f"{name}:\n  lr: 0.125\n" for name in flow.untuned))
    after = flow.train("kimi/seed0"), flow.train("tune/kimi/trial0"), flow.train("iapo/seed0"), flow.metrics("kimi")
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True, False]
    chosen = yaml.safe_load(Path(after[0]).read_text())["job"]["train"]["lr"]
    assert (chosen, yaml.safe_load(Path(after[3]).read_text())["job"]["selection"]) == (0.125, "validation")
    assert Workflow(read_tier("smollm2")).untuned == []


@pytest.mark.slow
def test_my_model_on_my_problems_and_on_others_from_the_command_line(tmp_path):
    (tmp_path / "project").mkdir()
    folder = copy_project(tmp_path / "project")
    problems, others = write(tmp_path / "my.jsonl", ROWS), write(tmp_path / "other.csv", ROWS[:12])
    config = (
        "methods=[grpo]",
        f"world={{file: {problems}}}",
        f"model={{source: {tiny_llama(tmp_path / 'my-llama')}}}",
        "train={completions: 8, prompts_per_step: 2, group_size: 4, max_tokens: 8, seeds: 1}",
        f"evaluate={{n_samples: 4, ks: [1, 4], seeds: [1], max_tokens: 8, also: [{others}]}}",
    )
    targets = ("results/table1.csv", "results/comparisons.csv", "results/lm_eval.csv")
    done = snakemake(folder, *targets, "--config", *config)
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(folder / "results" / "table1.csv")
    assert set(table["model"]) == {"my-llama"}
    rows = [tuple(row) for row in table[["dataset", "method", "n_problems"]].itertuples(index=False)]
    assert rows == [
        *(("my", method, 8) for method in ("base", "grpo", "base_cut", "base_shortest")),
        *(("other", method, 2) for method in ("base", "grpo")),
    ]
    assert set(pd.read_csv(folder / "results" / "comparisons.csv")["dataset"]) == {"my", "other"}
    assert "iapo_my" in (folder / "results" / "lm_eval.md").read_text()
    assert "Nothing to be done" in snakemake(folder, *targets, "-n", "--config", *config).stdout
