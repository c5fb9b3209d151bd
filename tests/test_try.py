"""`iapo-bench try`: who is compared, who is left out, and a trial for real."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from project_copy import copy_project

from iapo_bench.cli.options import note_ran
from iapo_bench.config.asked import read_workflow_tier
from iapo_bench.try_out import _there, _verdict
from iapo_bench.workflow import Workflow


@pytest.fixture
def make_flow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(**changes) -> Workflow:
        return Workflow(read_workflow_tier({"tier": "smoke", "methods": ["grpo", "dapo"], **changes}))

    return make


def finish(flow: Workflow, method: str) -> None:
    """What the workflow leaves of a row: its jobs' settings as they ran, and its grades."""
    jobs = [flow.prepare(), flow.base()]
    for folder in flow.folders(method):
        run = folder.removeprefix(f"{flow.work}/")
        jobs += [flow.train(run), flow.sample(run, "test"), flow.grade(run, "test")]
        for place in (flow.folders("base")[0], folder):
            Path(place, "model").mkdir(parents=True)
        Path(folder, "test").mkdir()
        for name in ("samples", "grades"):
            Path(folder, "test", f"{name}.parquet").touch()
    for job in jobs:
        note_ran(Path(job))


def test_a_run_is_current_by_what_its_jobs_ran_with(make_flow, capsys):
    flow = make_flow()
    assert not flow.is_current("grpo")
    finish(flow, "grpo")
    assert make_flow().is_current("grpo")
    assert not make_flow().is_current("dapo"), "it has no grades"
    assert make_flow(train={"seeds": [0], "report_to": ["tensorboard"]}).is_current("grpo"), "that changes no result"
    capsys.readouterr()
    for changes, said in (
        ({"train": {"lr": 0.5}}, "stale: train--grpo-seed0, since settings.train.lr"),
        ({"evaluate": {"n_samples": 5}}, "stale: sample--grpo-seed0--test"),
        ({"world": {"options": {"n_test": 9}}}, "stale: prepare"),
        ({"model": {"sft": {"steps": 61}}}, "stale: base"),
    ):
        assert not make_flow(**changes).is_current("grpo"), changes
        assert said in capsys.readouterr().err
    assert not make_flow(train={"seeds": [0, 1]}).is_current("grpo"), "seed 1 was not trained"
    Path(flow.folders("grpo")[0], "test", "grades.parquet").unlink()
    assert not make_flow().is_current("grpo")


@pytest.mark.parametrize("newer", ["base/model", "grpo/seed0/model", "grpo/seed0/test/samples.parquet"])
def test_a_run_is_not_current_where_what_it_was_made_from_is_newer(make_flow, newer):
    """Another base, or weights that were not sampled yet: settings say nothing of those."""
    flow = make_flow()
    finish(flow, "grpo")
    later = Path(flow.folders("grpo")[0], "test", "grades.parquet").stat().st_mtime_ns + 10**9
    os.utime(Path(flow.work, newer), ns=(later, later))
    assert not make_flow().is_current("grpo")


def test_who_is_there(make_flow):
    flow = make_flow()
    for name in ("iapo/seed0", "grpo/seed0", "dapo/seed1", "no_method/seed0", "gtpo/seed0", "tune/gfpo"):
        Path(flow.work, name, "test").mkdir(parents=True)
        Path(flow.work, name, "test", "grades.parquet").touch()
    assert _there(flow, "iapo", [0]) == ["grpo", "gtpo"]
    assert _there(flow, "iapo", [0, 1]) == []
    assert _there(flow, "grpo", [1]) == ["dapo"]


def test_the_verdict_reads_from_the_methods_side():
    pair = {"model": "m", "dataset": "d", "n_problems": 9, "n_samples": 4, "checkpoints_lo": -0.1, "checkpoints_hi": 2}
    said = {"pass@1": ("mine is more accurate", 0.25), "length": ("mine is shorter", -3.5)}
    lost = {"pass@1": ("not told apart", -0.01), "length": ("grpo is shorter", 4.0)}
    rows = [
        {**pair, "measure": measure, "a": a, "b": "mine", "difference": value, "checkpoints_verdict": verdict}
        for measure in said
        for a, verdicts in (("base", said), ("grpo", lost))
        for verdict, value in [verdicts[measure]]
    ]
    other = {**rows[0], "b": "grpo", "checkpoints_verdict": "grpo is more accurate"}
    lines = _verdict(pd.DataFrame([other, *rows]), "mine", [0]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines if line.startswith("|")][2:]
    assert cells == [
        ["base", "Pass@1", "+0.250 [\N{MINUS SIGN}0.100, +2.000]", "mine is more accurate"],
        ["", "Length", "\N{MINUS SIGN}3.5 [\N{MINUS SIGN}0.1, +2.0]", "mine is shorter"],
        ["grpo", "Pass@1", "\N{MINUS SIGN}0.010 [\N{MINUS SIGN}0.100, +2.000]", "not told apart"],
        ["", "Length", "+4.0 [\N{MINUS SIGN}0.1, +2.0]", "grpo is shorter"],
    ]


def test_what_cannot_be_tried_is_one_line(run, tmp_path, monkeypatch):
    code, said = run("try", "iapoo")
    assert (code, said.count("\n")) == (2, 1)
    assert "did you mean" in said
    code, said = run("try", "iapo", "--seeds", "4")
    assert (code, said.count("\n")) == (2, 1)
    assert "tier micro has 3 training seeds" in said
    monkeypatch.chdir(tmp_path)
    code, said = run("try", "iapo")
    assert (code, said.count("\n")) == (2, 1)
    assert "Snakefile" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_trial_compares_with_what_is_there_and_trains_nothing_else(tmp_path):
    folder = copy_project(tmp_path)

    def trial(method: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "iapo_bench", "try", method, "--config", "smoke", "--cores", "2"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1800,
        )

    first = trial("grpo")
    assert first.returncode == 0, first.stderr[-3000:]
    assert "No finished run of another method" in first.stdout
    second = trial("iapo")
    assert second.returncode == 0, second.stderr[-3000:]
    assert "about these checkpoints" in second.stdout
    pairs = pd.read_csv(folder / "results" / "smoke" / "try" / "iapo" / "comparisons.csv")
    assert set(pairs["a"]) | set(pairs["b"]) == {"base", "grpo", "iapo"}
    trained = folder / "results" / "smoke" / "grpo" / "seed0" / "train.jsonl"
    before = trained.stat().st_mtime_ns
    with (folder / "baselines" / "grpo.py").open("a") as file:
        file.write("\nCHANGED = True\n")
    third = trial("iapo")
    assert third.returncode == 0, third.stderr[-3000:]
    assert "Left out: grpo" in third.stdout
    assert "stale: train--grpo-seed0" in third.stderr
    assert trained.stat().st_mtime_ns == before
    assert not (folder / "results" / "smoke" / "table1.csv").exists()
    lock = folder / ".snakemake" / "locks" / "0.output.lock"  # as a kill leaves it
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("results/smoke/sgrpo/seed0/model\n")
    locked = trial("sgrpo")
    assert locked.returncode == 2
    assert locked.stderr.splitlines()[-1].endswith("run `snakemake --unlock` and try again")
