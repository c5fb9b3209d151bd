"""Snakemake's own commands as people type them, without `--cores`, and what a run says in the terminal."""

import subprocess
import sys
from pathlib import Path

import pytest
from project_copy import copy_project, snakemake

SUBSET = ("--config", "methods=[grpo]")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the base's row of the smoke tier, really made."""
    folder = copy_project(tmp_path_factory.mktemp("front"))
    made = snakemake(folder, "results/smoke/summaries/base.json", *SUBSET)
    assert made.returncode == 0, made.stderr[-3000:]
    (folder / "said.txt").write_text(made.stderr)
    return folder


def typed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`snakemake` with these arguments alone."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("command", ["--dag", "--rulegraph", "--summary", "--list", "--unlock", "--report"])
def test_it_works_as_typed(copy, command):
    done = typed(copy, command)
    assert done.returncode == 0, done.stderr
    if command == "--report":
        assert "There is no verdict yet" in (copy / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--cores", "0"), "--cores 0 runs no job: give 1 or more, or 'all'"),
        (("--cores", "-1"), "--cores -1 runs no job: give 1 or more, or 'all'"),
        (("-n", "--directory", "elsewhere"), "elsewhere, not in its Snakefile's folder: first cd "),
    ],
)
def test_a_call_that_can_run_no_job_is_one_line(copy, arguments, told):
    """Snakemake waits without end for a core, and misses the inputs beside the Snakefile in another folder."""
    done = typed(copy, *arguments, "results/smoke/table1.csv")
    assert done.returncode == 1
    said = done.stdout + done.stderr  # a dry run's error goes to the former
    assert told in said
    assert "Traceback" not in said


def test_every_rule_says_what_it_does(copy):
    rules = [line for line in typed(copy, "--list").stdout.splitlines() if line.strip()]
    assert len(rules) > 15
    assert all("(" in rule for rule in rules), rules


def test_the_terminal_shows_one_line_a_job(copy):
    said = (copy / "said.txt").read_text()
    jobs = [line for line in said.splitlines() if " of 5  rule " in line]
    assert [job.split()[0] for job in jobs] == ["1", "2", "3", "4", "5"]
    assert "first run here" in said
    for paragraph in ("jobid:", "input:", "Select jobs", "\r", "it/s"):
        assert paragraph not in said


def test_logs_hold_lines(copy):
    logs = {path: path.read_bytes() for path in (copy / "results/smoke/logs").rglob("*.log")}
    assert b"SFT" in logs[copy / "results/smoke/logs/base.log"]
    assert not [path for path, text in logs.items() if b"\r" in text]


def test_a_later_run_knows_about_how_long(copy):
    again = snakemake(copy, "results/smoke/summaries/base.json", *SUBSET, "--forcerun", "metrics")
    assert again.returncode == 0, again.stderr
    assert "1 jobs; about " in again.stderr
    assert "results/smoke/table1" not in again.stderr  # it names what it made, and no more


def test_a_table_says_what_made_it_stale(copy):
    target = ("results/smoke/table1.csv", "--config", "methods=[]")
    first = snakemake(copy, *target)
    assert first.returncode == 0, first.stderr
    assert "stale" not in first.stderr
    for place, old, new in (
        ("iapo_bench/report/table1.py", "\nfrom pathlib", "\nCHANGED = True\nfrom pathlib"),
        ("results/published/table1.csv", ",0.4261,", ",0.4262,"),
    ):
        path = copy / place
        path.write_text(path.read_text().replace(old, new, 1))
    again = snakemake(copy, *target).stderr.splitlines()
    told = [line for line in again if line.startswith("stale: ")]
    assert len(told) == 2
    assert told[0].startswith("stale: table, since code is ")
    assert told[1] == "stale: table, since results/published/table1.csv is newer"


def test_a_failed_job_shows_its_error_and_where_its_log_is(tmp_path):
    log = tmp_path / "grade.log"
    command = ["-m", "iapo_bench", "--log", str(log), "grade", "--samples", "no", "--data", "no", "--out", "out"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"grade failed: no/test.jsonl does not exist (log: {log})\n"
    assert "no/test.jsonl does not exist" in log.read_text()
