"""`iapo-bench watch`: the curves of runs in the terminal, once or until they end."""

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from iapo_bench.files import claimed


def grow(folder: Path, steps: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("a") as file:
        for i in steps:
            row = {"step": i, "completions_total": 16 * (i + 1), "correct": 0.25, "length": 40.0 - i, "reward": -0.5}
            file.write(json.dumps(row) + "\n")


def watch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iapo_bench", "watch", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_watch_draws_once_through_a_pipe(tmp_path):
    grow(tmp_path / "iapo" / "seed0", range(20))
    grow(tmp_path / "dapo" / "seed1", range(10))
    (tmp_path / "gtpo" / "seed0").mkdir(parents=True)
    (tmp_path / "gtpo" / "seed0" / "train.jsonl").touch()  # it has not ended its first step
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"id": "a", "question": "1+1?", "answer": "2"}\n')  # problems
    done = watch(tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("reward", "share correct", "mean length (tokens)"):
        assert part in done.stdout
    cells = [line.split() for line in done.stdout.splitlines()]
    assert ["iapo/seed0", "ended", "19", "320", "-0.500", "0.250", "23.0"] in cells
    assert ["dapo/seed1", "ended", "9", "160", "-0.500", "0.250", "33.0"] in cells
    assert not any("gtpo" in line for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout
    assert sum("\u2800" < character <= "\u28ff" for character in done.stdout) > 30, "curves"


def test_watch_says_when_there_is_nothing_yet(tmp_path):
    done = watch(tmp_path / "iapo" / "seed0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"no steps yet in {tmp_path}/iapo/seed0" in done.stderr


def test_watch_names_the_line_that_is_broken(tmp_path):
    grow(tmp_path, range(2))
    (tmp_path / "train.jsonl").open("a").write('{"step": 2,\n')
    done = watch(tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/train.jsonl:3 is not JSON" in done.stderr


def test_watch_follows_a_run_until_it_ends(tmp_path):
    """In a terminal: first it waits, then new steps show, a half row does not, and when the run lets go it ends."""
    resume = tmp_path / "seed0" / "resume"
    resume.mkdir(parents=True)
    ours, theirs = pty.openpty()
    with claimed(resume):
        process = subprocess.Popen(
            [sys.executable, "-m", "iapo_bench", "watch", str(tmp_path / "seed0")],
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "110", "LINES": "40"},
        )
        os.close(theirs)
        wait_for(ours, "waiting")
        grow(tmp_path / "seed0", range(3))
        assert "running" in wait_for(ours, " 48 ")
        grow(tmp_path / "seed0", range(3, 7))
        (tmp_path / "seed0" / "train.jsonl").open("a").write('{"step": 7')
        wait_for(ours, " 112 ")
        assert process.poll() is None
    shutil.rmtree(resume)
    with suppress(OSError):  # the terminal closes with the process
        while os.read(ours, 65536):
            pass
    assert process.wait(timeout=60) == 0, process.stderr.read()


def wait_for(terminal: int, text: str) -> str:
    """What the terminal got until `text` came."""
    found, until = "", time.monotonic() + 90
    while text not in found:
        assert time.monotonic() < until, found[-3000:]
        found += os.read(terminal, 65536).decode(errors="replace")
    return found
