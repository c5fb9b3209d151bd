"""Real datasets: their formats, their fixed splits, their prompts, and every way in which the data can be bad."""

import json
import random
import re

import datasets
import pytest
from builders import open_world
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from iapo_bench.errors import UserError
from iapo_bench.models.sources import _byte_tokenizer
from iapo_bench.worlds import SPLITS, Problem, World, read_jsonl
from iapo_bench.worlds.datasets.gsm8k import VALIDATION
from iapo_bench.worlds.datasets.micro import build_tokenizer
from iapo_bench.worlds.grading import Outcome, grade_math, is_formatted

N_TRAIN, N_TEST, N_MATH, N_DAPO = VALIDATION + 40, 7, 60, 400
NAMES = ("gsm8k", "math500", "dapo")


def gsm8k_row(n: int, gold: str) -> dict:
    return {
        "question": f"Ann has {n} eggs and sells one. How many are left?",
        "answer": f"{n}-1=<<{n}-1>>\n#### {gold}",
    }


def dapo_row(n: int) -> dict:
    return {"problem": f"Find ${n}^2$.", "answer": str(n * n), "source_index": f"s{n}", "raw_row": n, "lang": "en"}


def dapo_hub_row(n: int) -> dict:
    content = f'Do this. End with Answer: $Answer.\n\nFind ${n}^2$.\n\nRemember the line "Answer:".'
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": content, "role": "user"}],
        "reward_model": {"ground_truth": str(n * n), "style": "rule"},
        "extra_info": {"index": f"s{n}"},
    }


def write_rows(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data_dir(tmp_path):
    write_rows(tmp_path / "gsm8k_train.jsonl", [gsm8k_row(n, f"{n - 1:,}") for n in range(1000, 1000 + N_TRAIN)])
    write_rows(tmp_path / "gsm8k_test.jsonl", [gsm8k_row(n, str(n - 1)) for n in range(N_TEST)])
    math = [
        {
            "problem": f"What is $\\frac{{{n}}}{{7}}$ of one?",
            "solution": "It is itself.",
            "answer": f"\\frac{{{n}}}{{7}}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": f"test/algebra/{n}.json",
        }
        for n in range(N_MATH)
    ]
    write_rows(tmp_path / "math500.jsonl", math)
    write_rows(tmp_path / "dapo_math_17k.jsonl", [dapo_row(n) for n in range(N_DAPO)])
    return tmp_path


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} ; {% endfor %}"
        "{% if add_generation_prompt %}next{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize(("name", "total"), [("gsm8k", N_TRAIN + N_TEST), ("math500", N_MATH), ("dapo", N_DAPO)])
def test_splits_share_no_problem_and_lose_none(data_dir, name, total):
    world: World = open_world(name, data_dir)
    splits = {split: world.load(split) for split in SPLITS}
    problems = [problem for split in splits.values() for problem in split]
    assert len({problem.id for problem in problems}) == len({problem.question for problem in problems}) == total
    assert all(splits.values())
    assert (world.name, world.grader) == (name, "math" if name == "math500" else "integer")


def test_gsm8k_keeps_its_test_set_and_carves_500_for_validation(data_dir):
    world = open_world("gsm8k", data_dir)
    assert [problem.answer for problem in world.load("test")] == [str(n - 1) for n in range(N_TEST)]
    assert len(world.load("validation")) == VALIDATION
    assert len(world.load("train")) == N_TRAIN - VALIDATION


def test_the_gold_of_gsm8k_stands_after_the_hashes_and_loses_its_commas(data_dir):
    problems = open_world("gsm8k", data_dir).load("train")
    assert {problem.answer for problem in problems} <= {str(n - 1) for n in range(1000, 1000 + N_TRAIN)}
    assert all(f"{int(problem.answer) + 1} eggs" in problem.question for problem in problems)


def test_golds_of_math500_and_dapo_are_as_written(data_dir):
    assert all(p.answer in p.question for p in open_world("math500", data_dir).load("test"))
    assert all(f"${round(int(p.answer) ** 0.5)}^2$" in p.question for p in open_world("dapo", data_dir).load("train"))


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_splits_depend_neither_on_the_order_of_rows_nor_on_whitespace(data_dir, name):
    before = {split: {problem.id for problem in open_world(name, data_dir).load(split)} for split in SPLITS}
    for path in data_dir.glob("*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(reversed(lines)).replace("What is", "What  is").replace("Find ", "Find\\n"))
    assert before == {split: {problem.id for problem in open_world(name, data_dir).load(split)} for split in SPLITS}


def test_the_split_of_a_problem_does_not_depend_on_the_other_rows(data_dir):
    before = {problem.id for problem in open_world("dapo", data_dir).load("test")}
    write_rows(data_dir / "dapo_math_17k.jsonl", [dapo_row(n) for n in range(2 * N_DAPO)])
    after = {problem.id for problem in open_world("dapo", data_dir).load("test")}
    assert before < after


def test_repeated_rows_count_once(data_dir):
    path = data_dir / "dapo_math_17k.jsonl"
    once = open_world("dapo", data_dir).load("train")
    path.write_text(path.read_text() * 3)
    assert open_world("dapo", data_dir).load("train") == once


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_gives_the_same_problems(data_dir, monkeypatch, name):
    asked = []

    def load_dataset(path, *config, split, revision):
        asked.append((path, *config, split))
        assert re.fullmatch("[0-9a-f]{40}", revision), "what the hub says tomorrow is another dataset"
        if "DAPO" in path:
            return [dapo_hub_row(n) for n in range(N_DAPO)]
        file = "math500.jsonl" if "MATH" in path else f"gsm8k_{split}.jsonl"
        return [json.loads(line) for line in (data_dir / file).read_text().splitlines()]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for split in SPLITS:
        assert open_world(name).load(split) == open_world(name, data_dir).load(split)
    assert {
        "gsm8k": ("openai/gsm8k", "main", "train"),
        "math500": ("HuggingFaceH4/MATH-500", "test"),
        "dapo": ("BytedTsinghua-SIA/DAPO-Math-17k", "train[:17917]"),
    }[name] in asked


def test_an_unreachable_hub_points_to_the_local_directory(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        open_world("gsm8k").load("train")
    message = str(error.value)
    assert "no route to the hub" in message
    assert "data_dir" in message
    assert "gsm8k_train.jsonl and gsm8k_test.jsonl" in message
    assert "\n" not in message


def test_unknown_names_are_answered_with_the_known_ones(data_dir):
    with pytest.raises(ValidationError, match="unknown dataset 'gsm8': did you mean 'gsm8k'"):
        open_world("gsm8")
    with pytest.raises(UserError, match="unknown split 'dev': known: test, train, validation"):
        open_world("gsm8k", data_dir).load("dev")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_directory_or_file_says_what_belongs_there(tmp_path, name):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"does not exist: put .*\.jsonl there, or leave data_dir out"):
            open_world(name, place).load("test")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "Why?", "answer": "because"}, "no '####' before the gold"),
        ({"question": "Why?", "answer": "#### ?!"}, "is not an integer"),
        ({"question": "Why?", "answer": "####"}, "is not an integer"),
        ({"question": " ", "answer": "#### 4"}, "the problem is empty"),
        ({"question": None, "answer": "#### 4"}, "is not a row of gsm8k"),
        ({"question": "Why?", "answer": 4}, "is not a row of gsm8k"),
        ({"question": "Why?"}, "lacks the field 'answer'"),
    ],
)
def test_a_bad_row_is_named(data_dir, row, complaint):
    path = data_dir / "gsm8k_test.jsonl"
    write_rows(path, [gsm8k_row(5, "4"), row])
    with pytest.raises(UserError, match=complaint) as error:
        open_world("gsm8k", data_dir).load("test")
    assert f"{path}:2" in str(error.value)


@pytest.mark.parametrize(("name", "file"), [("math500", "math500.jsonl"), ("dapo", "dapo_math_17k.jsonl")])
def test_a_gold_that_is_no_mathematics_is_named(data_dir, name, file):
    write_rows(data_dir / file, [{"problem": "Why?", "answer": "4"}, {"problem": "How?", "answer": "?!"}])
    with pytest.raises(
        UserError, match=f"{file}:2: the gold answer '\\?!' (cannot be read as mathematics|is not an int)"
    ):
        open_world(name, data_dir).load("train")


def test_damaged_and_empty_files_are_refused(data_dir):
    path = data_dir / "math500.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=f"{path.name}:{N_MATH} is not JSON"):
        open_world("math500", data_dir).load("train")
    path.write_text("")
    with pytest.raises(UserError, match="is empty"):
        open_world("math500", data_dir).load("train")


def test_a_file_with_too_few_rows_for_a_split_is_refused(data_dir):
    write_rows(data_dir / "dapo_math_17k.jsonl", [dapo_row(1)])
    with pytest.raises(UserError, match="dapo: too few rows, the test split is empty"):
        open_world("dapo", data_dir).load("test")
    write_rows(data_dir / "gsm8k_train.jsonl", [gsm8k_row(n, str(n)) for n in range(VALIDATION)])
    with pytest.raises(UserError, match="gsm8k: too few rows, the train split is empty"):
        open_world("gsm8k", data_dir).load("train")


@pytest.mark.parametrize(("name", "integer"), [("gsm8k", True), ("dapo", True), ("math500", False)])
def test_the_prompt_asks_for_the_format_and_shows_it(name, integer):
    tokenizer = _byte_tokenizer()
    prompt = open_world(name).dialogue(tokenizer).render("How many?")
    system, *example, user = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", prompt, re.DOTALL)
    assert system[0] == "system"
    assert "<think> your reasoning </think> <answer> the final answer </answer>" in system[1]
    assert ("The answer must be a single integer." in system[1]) is integer
    assert [turn[0] for turn in example] == ["user", "assistant"]
    assert example[0][1] == "What is 2+2?"
    assert user == ("user", "How many?")


def test_a_prompt_is_the_chat_template_up_to_the_assistants_turn(chat_tokenizer):
    ids = open_world("gsm8k").encode_prompt(Problem("p", "7 + 8 = ?", "15"), chat_tokenizer)
    assert all(type(i) is int for i in ids)
    end = chat_tokenizer("<answer> 4 </answer> ; user 7 + 8 = ? ; next").input_ids
    assert ids[-len(end) :] == end


def test_traces_are_the_datasets_own_solutions_in_the_prompts_format(data_dir):
    rows = [
        {
            "question": f"Natalia sold {2 * n} clips in April and half as many in May. How many in both?",
            "answer": f"She sold {2 * n}/2 = <<{2 * n}/2={n}>>{n} clips in May.\n"
            f"That makes {2 * n}+{n} = <<{2 * n}+{n}={3 * n}>>{3 * n}.\n#### {3 * n:,}",
        }
        for n in range(1000, 1000 + N_TRAIN)
    ]
    write_rows(data_dir / "gsm8k_train.jsonl", rows)
    expected = {
        "gsm8k": "<think> She sold {a}/2 = {b} clips in May.\nThat makes {a}+{b} = {c}. </think> "
        "<answer> {c} </answer>",
        "math500": "<think> It is itself. </think> <answer> {c} </answer>",
    }
    for name, form in expected.items():
        world = open_world(name, data_dir)
        problems = [problem for split in ("validation", "train") for problem in world.load(split)[:20]]
        traces = world.write_traces(problems)
        assert len(traces) == len(problems)
        assert all(map(is_formatted, traces))
        graded = [grade_math(trace, problem.answer) for trace, problem in zip(traces, problems, strict=True)]
        assert set(graded) == {Outcome.CORRECT}
        for trace, problem in zip(traces, problems, strict=True):
            sold = int(problem.answer) // 3 if name == "gsm8k" else 0
            assert trace == form.format(a=2 * sold, b=sold, c=problem.answer)


def test_a_problem_without_a_solution_has_no_trace(data_dir):
    world = open_world("dapo", data_dir)
    with pytest.raises(UserError, match=r"^dapo has no worked solution of problem 'dapo-.*': set model.sft to"):
        world.write_traces(world.load("train"))
    world = open_world("gsm8k", data_dir)
    with pytest.raises(UserError, match="gsm8k has no worked solution of problem"):
        world.write_traces(world.load("test"))


def test_a_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(UserError, match="has no chat template"):
        open_world("gsm8k").encode_prompt(Problem("p", "How many?", "4"), build_tokenizer())


def test_a_line_separator_within_a_string_is_no_end_of_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "two\u2028lines"}\n{"question": "one"}\n', encoding="utf-8")
    assert [row["question"] for row in read_jsonl(tmp_path / "rows.jsonl", ("question",))] == ["two\u2028lines", "one"]


def test_published_splits_are_the_published_ones(data_dir):
    """GSM8K's whole training table; of MATH-500, whose all problems are a benchmark, a shuffle with seed 42."""
    everything = open_world("math500", data_dir).benchmark()
    assert len(everything) == N_MATH
    train = open_world("gsm8k", data_dir, "published").load("train")
    assert len(train) == N_TRAIN
    random.Random(42).shuffle(everything)
    assert open_world("math500", data_dir, "published").load("train") == everything[: int(0.8 * N_MATH)]
