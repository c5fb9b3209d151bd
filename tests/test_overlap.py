"""No test problem in training: what counts as the same problem, what is taken out, and what is said about it."""

import json

import pytest
from builders import open_world

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.worlds import Problem, read_problems
from iapo_bench.worlds import prepare as prepare_stage
from iapo_bench.worlds.overlap import find_overlap, normalise, separate

LONG = "For how many real values of $x$ is $\\sqrt{120-\\sqrt{x}}$ an integer"

pytestmark = pytest.mark.usefixtures("small_datasets")


def problems(*questions: str) -> list[Problem]:
    return [Problem(f"p{i}", question, "1") for i, question in enumerate(questions)]


@pytest.mark.parametrize(
    ("question", "other", "kind"),
    [
        ("How many  eggs?", "How many\neggs?", "exact"),
        ("How many eggs?", "how many Eggs", "normalised"),
        ("Find $|m - n|$.", "Find $\\left| m-n \\right|$", "normalised"),
        ("Is $\\dfrac{1}{2}$ it?", "Is \\(\\frac{1}{2}\\) it?", "normalised"),
        (LONG + "? Give the number of such values.", LONG + "?", "prefix"),
        (LONG + "?", LONG + "? Give the number of such values.", "prefix"),
        ("Find $x$. Explain.", "Find $x$.", None),
        ("7 - 8 * 2 = ?", "7 + 8 * 2 = ?", None),
        ("1 + 2 + 3 + 4 + 5 + 6 = ?", "1 + 2 + 3 + 4 + 5 + 6 + 7 = ?", None),
        ("Find $1.5$ of it.", "Find $15$ of it.", None),
        ("求 $n$ 的值。", "求 $n$ 的值", "normalised"),
        ("求 $n$ 的值。", "求 $m$ 的值。", None),
    ],
)
def test_what_counts_as_the_same_problem(question, other, kind):
    decoys = problems("A first one.", "Zebras: how many are there?", "For how many")
    counts = find_overlap(problems(question), [*decoys, *problems(other)]).counts()
    assert {name for name, count in counts.items() if count} == ({kind} if kind else set())


def test_every_problem_is_the_same_as_itself_and_the_normal_form_is_its_own():
    some = problems("How many?", LONG, "$\\frac{1}{2} + 3$", "求 $n$。")
    assert len(find_overlap(some, some).exact) == len(some)
    assert all(normalise(normalise(problem.question)) == normalise(problem.question) for problem in some)


def test_a_prefix_is_found_among_many_that_sort_around_it():
    base = "the quick brown fox jumps over the lazy dog and then some"
    others = problems(*(f"{base} {word}" for word in ("aa", "bb", "cc")), base + "more", base[:-3])
    assert find_overlap(problems(base), others).counts()["prefix"] == 1
    assert find_overlap(problems(base + " zz"), problems("zz", base, "aa")).counts()["prefix"] == 1
    assert not find_overlap(problems(base), problems(base + "thing")).ids  # ends within a word


def test_training_gives_way_and_the_counts_say_why():
    splits = {
        "train": [Problem("t0", "One?", "1"), Problem("t1", "two", "1"), Problem("t2", "Three", "1"), *problems("Own")],
        "validation": [Problem("v0", "One", "1"), Problem("v1", "x", "1")],
        "test": [Problem("e0", "Two", "1"), Problem("e1", "x", "1")],
    }
    clean, counts, removed = separate(splits, {"bench": [Problem("b", "three.", "1")]})
    assert [problem.id for problem in clean["train"]] == ["p0"]
    assert removed == 3
    assert (clean["validation"], clean["test"]) == (splits["validation"], splits["test"])
    assert {pair: sum(kinds.values()) for pair, kinds in counts.items()} == {
        "train in validation": 1,
        "train in test": 1,
        "validation in test": 1,
        "train in bench": 1,
    }
    kept, _, repeats = separate(splits, {}, remove=False)
    assert (kept, repeats) == (splits, 2)


def test_no_training_problem_left_is_an_error():
    same = problems("One?")
    with pytest.raises(UserError, match="every training problem is also a validation or test problem"):
        separate({"train": same, "validation": same, "test": same}, {})


@pytest.fixture
def data_dir(tmp_path):
    """DAPO with a twin of every problem, which hashes elsewhere; MATH-500 with one problem of it."""
    rows = [{"problem": f"Find ${n}^2${end}", "answer": str(n * n)} for n in range(300) for end in (".", "")]
    (tmp_path / "dapo_math_17k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = open_world("dapo", tmp_path).load("train")
    twice = {normalise(p.question) for s in ("test", "validation") for p in open_world("dapo", tmp_path).load(s)}
    shared = next(p for p in train if normalise(p.question) not in twice)
    math = [
        {"problem": question, "answer": "1"} for question in (shared.question, *(f"Is {n} odd?" for n in range(40)))
    ]
    (tmp_path / "math500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in math))
    return tmp_path


def prepare(data_dir, out, capsys, **world):
    tier = read_tier("smollm2", {"world": {"name": "dapo", "data_dir": str(data_dir), **world}})
    prepare_stage.prepare(tier, out)
    splits = {split: read_problems(out / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return splits, json.loads((out / "provenance.json").read_text()), capsys.readouterr().err


def test_prepare_takes_repeats_out_of_training_and_says_how_many(data_dir, tmp_path, capsys):
    splits, provenance, said = prepare(data_dir, tmp_path / "out", capsys)
    before = open_world("dapo", data_dir)
    removed = len(before.load("train")) - len(splits["train"])
    assert removed == provenance["removed_from_train"] > 0
    assert f"{removed} training problems are also validation, test or held-out problems: removed" in said
    assert not find_overlap(splits["train"], splits["validation"] + splits["test"]).ids
    assert splits["test"] == before.load("test")
    assert provenance["overlap"]["train in test"]["normalised"] > 0
    assert provenance["problems"]["train"] == len(splits["train"])


def test_a_held_out_benchmark_is_kept_out_whole(data_dir, tmp_path, capsys):
    plain, _, _ = prepare(data_dir, tmp_path / "plain", capsys)
    held, provenance, _ = prepare(data_dir, tmp_path / "held", capsys, held_out=["math500"])
    assert sum(provenance["overlap"]["train in math500"].values()) >= 1
    assert len(held["train"]) < len(plain["train"])


def test_published_splits_are_counted_and_left(data_dir, tmp_path, capsys):
    splits, provenance, said = prepare(data_dir, tmp_path / "out", capsys, splits="published")
    assert len(splits["train"]) == 480
    assert len(splits["test"]) == 50
    assert splits["validation"] == splits["test"]
    assert provenance["removed_from_train"] == 0
    assert provenance["overlap"]["train in test"]["normalised"] > 0
    assert "left in training, as published" in said


def test_published_math500_is_four_fifths_for_training(data_dir):
    world = open_world("math500", data_dir, "published")
    train, test = world.load("train"), world.load("test")
    assert (len(train), len(test)) == (32, 9)
    assert not {problem.id for problem in train} & {problem.id for problem in test}
    assert world.load("train") == train


def test_the_micro_world_has_no_repeats(tmp_path, capsys):
    prepare_stage.prepare(read_tier("smoke"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["removed_from_train"] == 0
    assert "warning" not in capsys.readouterr().err
