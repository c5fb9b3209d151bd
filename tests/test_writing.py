"""Two writers of one path; and where nothing can be written: full disks, read-only folders, a file in the place."""

import ctypes
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from stages import RUN, SMALL, iapo_bench, lines
from test_trainer import make_trainer, untimed  # noqa: F401

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.errors import explain as explain_error
from iapo_bench.evaluate import grade as grading
from iapo_bench.evaluate import sample as sampling
from iapo_bench.files import whole_directory, whole_file
from iapo_bench.report.rows import measure
from iapo_bench.train.log import add_row
from iapo_bench.train.state import _write_tensors
from iapo_bench.train.trainer import Trainer

CapabilitySets = ctypes.c_uint32 * 6  # of capget(2): effective, permitted, inheritable, twice


def _write(folder: Path, name: str) -> None:
    for _ in range(100):
        with whole_file(folder / "file") as partial:
            partial.write_text(name * 10_000)
        with whole_directory(folder / "directory") as partial:
            for part in "ab":
                (partial / part).write_text(name)


def test_of_two_writers_both_are_whole(tmp_path):
    writers = [multiprocessing.get_context("spawn").Process(target=_write, args=(tmp_path, name)) for name in "xy"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "file").exists():
            assert (tmp_path / "file").read_text() in ("x" * 10_000, "y" * 10_000)
        time.sleep(0.001)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]
    assert len({path.read_text() for path in (tmp_path / "directory").iterdir()}) == 1


def test_a_directory_of_other_things_is_not_replaced(run, tmp_path):
    """`--out ~/notes` must not cost the notes."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.txt").write_text("dear diary")
    code, err = run("prepare", "--config", "smoke", "--out", notes)
    assert code == 2
    assert err == f"iapo-bench: {notes} contains other files (diary.txt), which would be lost: choose another output\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["notes", "diary.txt"]
    with whole_directory(tmp_path / "model") as partial:
        (partial / "config.json").touch()
        (partial / "old.json").touch()
    with whole_directory(tmp_path / "model") as partial:
        (partial / "config.json").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_a_signal_between_two_renames_keeps_the_old_directory(tmp_path, monkeypatch):
    with whole_directory(tmp_path / "model") as partial:
        (partial / "config.json").write_text("old")
    rename = Path.rename

    def stopped(path: Path, target: Path) -> Path:
        if path.name == "model" and path.parent != tmp_path:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt), whole_directory(tmp_path / "model") as partial:
        (partial / "config.json").write_text("new")
    assert [path.read_text() for path in tmp_path.rglob("*.json")] == ["old"]


def test_an_output_that_is_an_input_is_not_replaced(run, done, tmp_path):
    inputs = {
        "metrics": ("--grades", done / "base" / "grades.parquet", "--method", "base"),
        "grade": ("--samples", done / "base" / "samples.parquet", "--data", done.parent / "data"),
        "train": ("--data", done.parent / "data", "--base", done.parent / "base" / "model", "--method", "grpo"),
    }
    for command, (option, path, *given) in inputs.items():
        copy, out = tmp_path / path.name, tmp_path / "x" / ".." / path.name
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        code, err = run(command, "--config", "smoke", option, copy, *given, "--out", out)
        assert (code, err) == (2, f"iapo-bench: {copy} is what this command reads: choose another output\n")
    # Another folder of problems, whose file has the name of the log.
    given = ("--data", path, *given, "--out", copy)
    code, err = run("train", "--config", "smoke", *given)
    assert code == 2
    assert err == f"iapo-bench: {copy}/train.jsonl holds problems, which the log would replace: choose another output\n"
    assert (copy / "train.jsonl").read_bytes() == (path / "train.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, kind):
    """`--out /dev/null`, by root, must not cost the machine its /dev/null."""
    path = tmp_path / "x"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    before = path.stat()
    writers = (whole_file, whole_directory) if kind == "pipe" else (whole_file,)
    for writer in writers:
        with pytest.raises(UserError, match=f"{path} exists and is not a "), writer(path) as partial:
            partial.touch()
    assert path.stat() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    for name, writer in (("file", whole_file), ("directory", whole_directory)):
        (tmp_path / name).symlink_to(tmp_path / "scratch" / name)
        for text in ("first", "second"):
            with writer(tmp_path / name) as partial:
                (partial / "part" if partial.is_dir() else partial).write_text(text)
        assert (tmp_path / name).is_symlink()
    written = {path.name: path.read_text() for path in (tmp_path / "scratch").rglob("*") if path.is_file()}
    assert written == {"file": "second", "part": "second"}


@pytest.mark.parametrize("write", ["parquet", "text", "safetensors", "torch", "figure"])
def test_whatever_writes_on_a_full_disk_the_line_names_the_file(tmp_path, write):
    """Libraries say what they wrote in many words or none, and some the path that lasts for a moment."""
    import pandas as pd
    from matplotlib.figure import Figure
    from safetensors.torch import save_file

    writers = {
        "parquet": lambda path: pd.DataFrame({"a": range(100)}).to_parquet(path),
        "text": lambda path: path.write_text("x" * 10_000),
        "safetensors": lambda path: save_file({"a": torch.zeros(1000)}, path),
        "torch": lambda path: _write_tensors({"a": torch.zeros(1000)}, path),
        "figure": lambda path: Figure().savefig(path, format="png"),
    }
    out = tmp_path / "out"
    with full(tmp_path), pytest.raises(OSError, match=re.escape(str(out))) as error, whole_file(out) as partial:
        writers[write](partial)
    line = explain_error(error.value)
    assert line is not None
    assert line.startswith(f"{out}: ")
    assert "partial" not in line


def test_a_row_of_the_log_that_does_not_fit_is_an_error(tmp_path):
    """The system takes the part of it that fits, and says nothing."""
    log = tmp_path / "train.jsonl"
    add_row(log, {"step": 0})
    with full(tmp_path), pytest.raises(OSError, match="File too large"):
        add_row(log, {"step": 1, "reward": 0.123456789})


def test_what_broke_a_step_is_said_though_its_batch_cannot_be_kept(make_trainer, tmp_path, monkeypatch):  # noqa: F811
    trainer = make_trainer()
    trainer.broken = tmp_path / "broken"
    monkeypatch.setattr(trainer.method, "credit", lambda batch, generator: None)
    with full(tmp_path), pytest.raises(UserError) as error:
        trainer.step()
    assert "credit: the result must be a Credit, is NoneType" in str(error.value)
    assert re.search(r"its batch is lost \(.*cannot be written whole.*broken/step0.pt'\)$", str(error.value))


@pytest.mark.parametrize("out", [".", "..", "", "a/.."])
def test_an_output_without_a_name_is_refused(run, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    for command in (["prepare", "--config", "smoke"], ["page", "table1.csv"]):
        code, err = run(*command, "--out", out)
        assert code == 2
        assert err == f"iapo-bench: Invalid value for '--out': '{out}' does not end in a file name: add one\n"


def test_a_path_that_is_no_text_is_refused(run, tmp_path):
    """Libraries raise at it, some of them when all is done."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    code, err = run("prepare", "--config", "smoke", "--out", path)
    assert code == 2
    assert err == f"iapo-bench: Invalid value for '--out': {path!r} is not UTF-8: rename it\n"


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / ".file.x1y2z3.partial"
    left.mkdir()
    os.utime(left, (0, 0))
    with whole_file(tmp_path / "file") as partial:
        partial.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("out", ["file/data", "x" * 300])
def test_a_path_that_cannot_be_is_one_line(run, tmp_path, out):
    (tmp_path / "file").touch()
    code, err = run("prepare", "--config", "smoke", "--out", f"{tmp_path}/{out}")
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("iapo-bench: ")


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path):
    prepared = ("prepare", "--config", "smoke", "--set", "world.options.n_train=1000", "--out", tmp_path / "data")
    full = iapo_bench(*prepared, limit=(resource.RLIMIT_FSIZE, 10_000))
    assert full.returncode == 2
    (line,) = lines(full)
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []
    assert iapo_bench(*prepared).returncode == 0


@pytest.fixture(scope="module")
def done(made) -> Path:
    """What `made` holds, and a run of each stage behind it."""
    tier, model = read_tier("smoke", SMALL), made / "base" / "model"
    out = made / "done"
    for name in ("base", "grpo"):
        sampling.sample(tier.sample_job("test"), model=model, data=made / "data", out=out / name)
        samples, grades = out / name / "samples.parquet", out / name / "grades.parquet"
        grading.grade(tier.grade_job("test"), samples=samples, data=made / "data", out=grades)
        measure(tier.row_job(name), {0: grades}, out / name / "summary.json")
    return out


def stages(made: Path, out: Path) -> dict[str, list[object]]:
    """The command of each stage that writes to `out`."""
    smoke = ("--config", "smoke")
    model, data = ("--model", made / "base" / "model"), ("--data", made / "data")
    samples = ("--samples", made / "done" / "base" / "samples.parquet")
    grades = ("--grades", made / "done" / "base" / "grades.parquet")
    summaries = [part for name in ("base", "grpo") for part in ("--summary", made / "done" / name / "summary.json")]
    figure = ("--figure", out / "figure.png")
    return {
        "prepare": ["prepare", *smoke, "--out", out],
        "train": ["train", *smoke, "--method", "grpo", "--base", made / "base" / "model", *data, "--out", out],
        "sample": ["sample", *smoke, *model, *data, "--out", out],
        "grade": ["grade", *smoke, *samples, *data, "--out", out / "grades.parquet"],
        "metrics": ["metrics", *smoke, "--method", "base", *grades, "--out", out / "summary.json"],
        "lm-eval": ["lm-eval", *smoke, *model, *data, "--out", out],
        "table": ["table", *summaries, "--out", out / "table1.csv", *figure],
        "comparisons": ["comparisons", *summaries, "--out", out / "comparisons.csv", *figure],
    }


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that cannot be written to, by root neither: in this thread it loses the right to pass over modes."""
    libc, header, before = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0), CapabilitySets()
    assert libc.capget(header, before) == 0
    without = CapabilitySets(*before)
    without[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    folder.mkdir()
    folder.chmod(0o555)
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
        folder.chmod(0o755)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No file may become larger than a few bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def a_file(folder: Path) -> Iterator[None]:
    """A file where the folder should be."""
    folder.touch()
    yield
    folder.unlink()


@pytest.mark.parametrize("trouble", [read_only, full, a_file], ids=lambda trouble: trouble.__name__)
@pytest.mark.parametrize("stage", list(stages(Path(), Path())))
def test_where_nothing_can_be_written_a_stage_says_so_and_goes_on_later(run, done, tmp_path, stage, trouble):
    out = tmp_path / "out"
    command = stages(done.parent, out)[stage]
    with trouble(out):
        code, err = run(*command)
    assert (code, "Traceback" in err) == (2, False), err
    (line,) = [line for line in err.splitlines() if line.startswith("iapo-bench: ")]
    assert re.search("Permission denied|File too large|Not a directory|File exists|not a directory|whole", line), line
    left = {path.name for path in out.rglob("*") if path.is_file()} if out.exists() else set()
    assert left <= {".lock", "run.json"}, "nothing but what says whose unfinished work it is"
    code, err = run(*command)
    assert code == 0, err
    assert list(out.iterdir())


@pytest.mark.parametrize("stage", ["train", "sample", "grade"])
def test_a_folder_that_vanishes_is_one_line_or_none_and_the_run_goes_on(run, done, tmp_path, monkeypatch, stage):
    """Somebody removes the folder while the stage works: it ends with all of its files, or in one line."""
    out, vanished = tmp_path / "out", []

    def vanish(function):
        def call(*arguments, **options):
            if not vanished:
                shutil.rmtree(out)
                vanished.append(True)
            return function(*arguments, **options)

        return call

    command = stages(done.parent, out)[stage]
    assert run(*command)[0] == 0
    whole = {path.name for path in out.iterdir()}
    shutil.rmtree(out)
    monkeypatch.setattr(Trainer, "step", vanish(Trainer.step))
    monkeypatch.setattr(sampling, "_draw", vanish(sampling._draw))
    monkeypatch.setattr(grading, "extract_answer", vanish(grading.extract_answer))
    code, err = run(*command)
    assert vanished
    assert "Traceback" not in err
    if code:
        assert code == 2
        (line,) = [line for line in err.splitlines() if line.startswith("iapo-bench: ")]
        assert "No such file or directory" in line
        assert run(*command)[0] == 0
    assert {path.name for path in out.iterdir()} == whole


def test_a_small_file_system_that_fills_is_one_line_and_holds_nothing_afterwards(tmp_path):
    """A tmpfs of 128 KiB in a name space of its own, which needs no root where the kernel allows that."""
    alone = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*alone, "mount", "-t", "tmpfs", "x", tmp_path]).returncode:
        pytest.skip("this kernel lets nobody mount a tmpfs here")
    prepare_many = [
        *RUN,
        "prepare",
        "--config",
        "smoke",
        "--set",
        "world.options.n_train=4000",
        "--set",
        "world.options.max_terms=6",
    ]
    prepare_many += ["--out", "disk/data"]
    script = 'mount -t tmpfs -o size=128k x disk && { "$@"; code=$?; ls -A disk; exit $code; }'
    (tmp_path / "disk").mkdir()
    filled = subprocess.run(
        [*alone, "sh", "-c", script, "sh", *prepare_many], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert filled.returncode == 2, filled.stderr
    (line,) = lines(filled)
    assert "No space left on device" in line
    assert filled.stdout == ""
