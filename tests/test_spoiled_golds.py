"""Golds that data spoiled are refused with their line, or left out with a count."""

import json

import pytest

from iapo_bench.config.world import WorldConfig
from iapo_bench.errors import UserError
from iapo_bench.worlds import SPLITS, World
from iapo_bench.worlds.load import load_world

pytestmark = pytest.mark.usefixtures("small_datasets")

FILES = {"math500": "math500.jsonl", "dapo": "dapo_math_17k.jsonl"}
ROUNDED = ["105263157894736848", "20000000000000000000000", "22099999999999998951424"]
EXACT = ["105263157894736842", "19999999999999999999999"]


def world(name, folder, golds, **options) -> World:
    rows = [{"problem": f"Find ${n}$.", "answer": gold} for n, gold in enumerate(golds)]
    (folder / FILES[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_world(WorldConfig(name=name, data_dir=str(folder), **options), 0)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("gold", ["?!", "null", "None", "NaN", "[1]", "</answer>", None, True, 1.5, [1]])
def test_a_gold_that_is_none_is_refused_with_its_line(tmp_path, name, gold):
    with pytest.raises(UserError, match=rf"{FILES[name]}:2: the gold answer .*: correct or remove it"):
        world(name, tmp_path, ["4", gold]).load("train")


@pytest.mark.parametrize("splits", ["honest", "published"])
def test_problems_whose_golds_float64_has_rounded_are_left_out_with_a_count(tmp_path, splits):
    plain = [str(n) for n in range(300)]
    without = world("dapo", tmp_path, [*plain, "1", "2", "3", *EXACT], splits=splits)
    before = {split: without.load(split) for split in SPLITS}
    assert without.left_out() == []
    dapo = world("dapo", tmp_path, plain + ROUNDED + EXACT, splits=splits)
    assert [line.partition(": ")[2] for line in dapo.left_out()] == ROUNDED
    gone = {line.partition(": ")[0] for line in dapo.left_out()}
    for split in SPLITS:
        assert dapo.load(split) == [problem for problem in before[split] if problem.id not in gone]


def test_prepare_says_how_many_it_leaves_out(tmp_path, run):
    world("dapo", tmp_path, [str(n) for n in range(300)] + ROUNDED)
    code, printed = run(
        *("prepare", "--config", "smollm2", "--set", f"world.data_dir={tmp_path}", "--set", "world.name=dapo"),
        *("--set", "world.held_out=[]", "--out", tmp_path / "out"),
    )
    assert code == 0, printed
    assert "3 problems are left out: float64 has rounded their golds" in printed
    assert len(json.loads((tmp_path / "out" / "provenance.json").read_text())["left_out"]) == 3


def test_a_file_of_ones_own_leaves_them_out_too(tmp_path):
    golds = [*map(str, range(12)), *ROUNDED, *EXACT, f"{int(ROUNDED[0]):,}"]
    rows = [{"question": f"Find ${n}$.", "answer": gold} for n, gold in enumerate(golds)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = load_world(WorldConfig(file=str(tmp_path / "my.jsonl")), 0)
    assert [line.partition(": ")[2] for line in own.left_out()] == [*ROUNDED, ROUNDED[0]]
    held = [problem.answer for split in SPLITS for problem in own.load(split)]
    assert sorted(held) == sorted([*map(str, range(12)), *EXACT])
