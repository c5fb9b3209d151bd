"""What is left after a kill, a damaged file, a full disk, and of two writers of one path."""

import ctypes
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_trainer import make_trainer, untimed  # noqa: F401

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.errors import explain as explain_error
from iapo_bench.evaluate import grade as grading
from iapo_bench.evaluate import lm_evaluation as measuring
from iapo_bench.evaluate import sample as sampling
from iapo_bench.files import claimed, whole_directory, whole_file
from iapo_bench.machine.resume import is_sound, kept, resuming, seal
from iapo_bench.report.rows import measure
from iapo_bench.train.base import make_base
from iapo_bench.train.state import _write_tensors
from iapo_bench.train.trainer import Trainer
from iapo_bench.worlds.prepare import prepare

SMALL = {"model": {"source": "taught", "sft": {"hidden": 32, "layers": 1, "heads": 2, "steps": 20}}}
CapabilitySets = ctypes.c_uint32 * 6  # of capget(2): effective, permitted, inheritable, twice
RUN = (sys.executable, "-m", "iapo_bench")
DAMAGES = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "last byte gone": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\x00",
    "first bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit of a weight": lambda content: content[:3000] + bytes([content[3000] ^ 64]) + content[3001:],
    "last bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "zeros": lambda content: bytes(len(content)),
    "zeros from the middle": lambda content: content[: len(content) // 2].ljust(len(content), b"\0"),
    "text": lambda content: b"not a checkpoint",
    "twice": lambda content: content * 2,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Problems and a base, small."""
    folder, tier = tmp_path_factory.mktemp("made"), read_tier("smoke", SMALL)
    prepare(tier.prepare_job(), folder / "data")
    make_base(tier.base_job(), folder / "base" / "model")
    return folder


@pytest.fixture
def checkpoints(make_trainer, tmp_path):  # noqa: F811
    """The two newest checkpoints of a run that was stopped after two steps, and the run's whole log."""
    trainer, state = make_trainer("gfpo"), tmp_path / "state.pt"
    for _ in range(2):
        trainer.step()
        trainer._save(state)
    trainer.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.before.pt", "state.pt"]
    return state, untimed(trainer.rows), trainer.model.state_dict()


@pytest.mark.parametrize("kind", [*DAMAGES, "gone", "of another model"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(make_trainer, checkpoints, capsys, kind):  # noqa: F811
    state, rows, weights = checkpoints
    if kind == "gone":
        state.unlink()
    elif kind == "of another model":
        content = torch.load(state, weights_only=True)
        content["model"] = {name: weight[:1] for name, weight in content["model"].items()}
        torch.save(content, state)
        seal(state)
    else:
        state.write_bytes(DAMAGES[kind](state.read_bytes()))
    resumed = make_trainer("gfpo")
    resumed._resume(state)
    assert len(resumed.rows) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ([] if kind == "gone" else [f"warning: {state}: damaged, the run goes on from step 1"])
    resumed.run()
    assert untimed(resumed.rows) == rows
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.model.state_dict().items())


def test_with_both_damaged_the_run_starts_anew(make_trainer, checkpoints, capsys):  # noqa: F811
    state, rows, _ = checkpoints
    for path in state.parent.iterdir():
        path.write_bytes(b"")
    resumed = make_trainer("gfpo")
    resumed.run(state)
    (line, *_) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {state} and ")
    assert line.endswith("damaged, the run starts anew")
    assert untimed(resumed.rows) == rows


def test_the_log_can_be_read_while_training_runs(make_trainer, tmp_path):  # noqa: F811
    log, state, seen = tmp_path / "train.jsonl", tmp_path / "state.pt", []
    trainer = make_trainer()
    step = trainer.step

    def watched():
        seen.append([json.loads(line)["step"] for line in log.read_text().splitlines()])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return step()

    trainer.step = watched
    with pytest.raises(KeyboardInterrupt):
        trainer.run(state, log=log)
    assert seen == [[], [0], [0, 1]]
    # A step whose checkpoint was lost is done again, and stands there once.
    state.unlink()
    resumed = make_trainer()
    rows = resumed.run(state, log=log)
    assert [json.loads(line) for line in log.read_text().splitlines()] == rows
    assert [row["step"] for row in rows] == [0, 1, 2]


def test_sampling_grading_and_lm_eval_go_on_after_any_part(made, tmp_path, monkeypatch):
    """What comes out is byte for byte what an uninterrupted job writes; no part is made twice."""
    tier, model = read_tier("smoke", SMALL), made / "base" / "model"
    job = tier.sample_job("test")
    monkeypatch.setattr(sampling, "PART", 3 * job.evaluate.n_samples)
    monkeypatch.setattr(grading, "PART", 10)
    monkeypatch.setattr(measuring, "PART", 3)

    def sample(out):
        sampling.sample(job, model=model, data=made / "data", out=out)

    def grade(out):
        grading.grade(
            tier.grade_job("test"), samples=out / "samples.parquet", data=made / "data", out=out / "g.parquet"
        )

    def answer(out):
        measuring.evaluate(tier.lm_eval_job(), model=model, data=made / "data", out=out)

    for module, run, result in (
        (sampling, sample, "samples.parquet"),
        (grading, grade, "g.parquet"),
        (measuring, answer, "results.parquet"),
    ):
        run(tmp_path / "whole")
        parts = []

        def stop(folder, name, make, parts=parts):
            """Stop as soon as a part is made that was not there."""
            if (folder / f"{name}.json").exists():
                return kept(folder, name, pytest.fail)
            kept(folder, name, make)
            parts.append(name)
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "kept", stop)
        for _ in range(100):
            try:
                run(tmp_path / "stopped")
                break
            except KeyboardInterrupt:
                assert not (tmp_path / "stopped" / result).exists()
        assert len(set(parts)) == len(parts)
        assert len(parts) > 2
        assert (tmp_path / "stopped" / result).read_bytes() == (tmp_path / "whole" / result).read_bytes()
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == [
        "g.parquet",
        "results.parquet",
        "samples.parquet",
        "scores.json",
        "timing.json",
    ]
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("stopped", "whole")]
    assert scores[0] == scores[1]


def test_a_damaged_part_is_made_again(tmp_path, capsys):
    assert kept(tmp_path, "part", lambda: [1, 2.5, "x"]) == [1, 2.5, "x"]
    assert kept(tmp_path, "part", pytest.fail) == [1, 2.5, "x"]
    for damage in DAMAGES.values():
        (tmp_path / "part.json").write_bytes(damage((tmp_path / "part.json").read_bytes().ljust(4000, b" ")))
        assert not is_sound(tmp_path / "part.json")
        assert kept(tmp_path, "part", lambda: [3]) == [3]
        assert "is damaged: this part is made again" in capsys.readouterr().err


def test_what_another_run_left_is_set_aside_and_a_second_process_is_refused(tmp_path, capsys):
    folder = tmp_path / "resume"

    def stopped():
        with resuming(folder, {"settings": {"lr": 1}}):
            (folder / "part").touch()
            with pytest.raises(UserError, match=f"another process works in {folder}"):
                claimed(folder).__enter__()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == f"goes on with what an earlier call finished, in {folder}\n"
    with resuming(folder, {"settings": {"lr": 2}}):
        assert [path.name for path in folder.iterdir()] == ["run.json"]
    assert "starts anew" in capsys.readouterr().err
    (aside,) = tmp_path.iterdir()
    assert (aside / "part").exists()


def test_a_run_that_failed_before_its_first_checkpoint_leaves_nothing_to_set_aside(tmp_path, capsys):
    folder = tmp_path / "resume"
    for lr in (1, 2):
        with pytest.raises(KeyboardInterrupt), resuming(folder, {"settings": {"lr": lr}}):
            raise KeyboardInterrupt
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["resume"]
    assert json.loads((folder / "run.json").read_text()) == {"settings": {"lr": 2}}


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
    assert err == f"iapo-bench: {notes} holds other things (diary.txt): they would be lost: choose another output\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["notes", "diary.txt"]
    with whole_directory(tmp_path / "model") as partial:
        (partial / "config.json").touch()
        (partial / "old.json").touch()
    with whole_directory(tmp_path / "model") as partial:
        (partial / "config.json").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, kind):
    """`--out /dev/null`, by root, must not cost the machine its /dev/null."""
    path = tmp_path / "x"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    before = path.stat()
    writers = (whole_file, whole_directory) if kind == "pipe" else (whole_file,)
    for writer in writers:
        with pytest.raises(UserError, match=f"{path} is not a .* and would be lost"), writer(path) as partial:
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


@pytest.mark.parametrize("out", [".", "..", "", "a/.."])
def test_an_output_without_a_name_is_refused(run, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    for command in (["prepare", "--config", "smoke"], ["page", "table1.csv"]):
        code, err = run(*command, "--out", out)
        assert code == 2
        assert err == f"iapo-bench: Invalid value for '--out': '{out}' has no name of its own: give it one\n"


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


def _iapo_bench(*arguments: object, limit: tuple[int, int] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=(lambda: resource.setrlimit(limit[0], (limit[1], limit[1]))) if limit else None,
    )


def _lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith(("iapo-bench:", "Traceback"))]


@pytest.mark.parametrize("out", ["file/data", "x" * 300])
def test_a_path_that_cannot_be_is_one_line(run, tmp_path, out):
    (tmp_path / "file").touch()
    code, err = run("prepare", "--config", "smoke", "--out", f"{tmp_path}/{out}")
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("iapo-bench: ")


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path):
    prepared = ("prepare", "--config", "smoke", "--set", "world.options.n_train=1000", "--out", tmp_path / "data")
    full = _iapo_bench(*prepared, limit=(resource.RLIMIT_FSIZE, 10_000))
    assert full.returncode == 2
    (line,) = _lines(full)
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []
    assert _iapo_bench(*prepared).returncode == 0


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
    assert left <= {"run.json"}, "nothing but what says whose unfinished work it is"
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
    (line,) = _lines(filled)
    assert "No space left on device" in line
    assert filled.stdout == ""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_that_comes_within_a_destructor_is_not_lost(name):
    """Python swallows what is raised there."""
    script = f"""
import os, signal, sys, time
signal.signal(signal.{name}, signal.default_int_handler if "{name}" == "SIGINT" else signal.SIG_DFL)  # not as inherited
from iapo_bench import cli
class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.1)
@cli.cli.command()
def hold():
    Held()
    time.sleep(60)
sys.argv = ["iapo-bench", "hold"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    said = f"iapo-bench: stopped by {name}; the same command goes on where it stopped\n"
    assert done.stderr.removeprefix("\n") == said
    assert done.returncode == 128 + signal.Signals[name]


def test_a_system_error_is_a_lack_of_memory_only_under_a_limit():
    error, before = SystemError("error return without exception set"), resource.getrlimit(resource.RLIMIT_AS)
    assert (explain_error(error) is None) == (before[0] == resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (2**60, before[1]))
    try:
        assert str(explain_error(error)).startswith("out of memory (error return without exception set)")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_too_little_memory_to_import_is_one_line(made, tmp_path):
    files = ("--base", made / "base" / "model", "--data", made / "data", "--out", tmp_path / "out")
    # In 0.8 GB OpenBLAS, while scipy is imported, asks again and again for the memory that it cannot have.
    for limit in (400_000_000, 800_000_000):
        done = _iapo_bench("train", "--config", "smoke", "--method", "grpo", *files, limit=(resource.RLIMIT_AS, limit))
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("iapo-bench: out of memory ("), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bar", ["bar = tqdm(total=8, file=sys.stderr); bar.kept = bar; stop()", "bar = Half()"])
def test_a_stop_is_a_line_of_its_own_beside_a_bar_that_is_open_or_half_built(bar):
    code = f"""
import os, signal, sys, time
from tqdm import tqdm
from iapo_bench.cli import cli, main
def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
class Half(tqdm):
    def __init__(self):
        self.disable = False
        stop()
@cli.command()
def wait():
    {bar}
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "wait"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert _lines(done) == ["iapo-bench: stopped by SIGTERM; the same command goes on where it stopped"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sample", "grade", "lm-eval"])
def test_a_stage_keeps_its_finished_parts_through_every_signal(made, tmp_path, stage):
    """KILL, TERM, INT and HUP, each in the middle of a process: no finished part is made again, and the result is that
    of an uninterrupted one."""
    many = ("--config", "smoke", "--set", "world.options.n_test=240", "--set", "evaluate.seeds=[42]")
    data, model = tmp_path / "data", ("--model", made / "base" / "model")
    assert _iapo_bench("prepare", *many, "--out", data).returncode == 0
    samples = ("--samples", tmp_path / "made" / "samples.parquet")
    if stage == "grade":
        assert _iapo_bench("sample", *many, *model, "--data", data, "--out", tmp_path / "made").returncode == 0
    module = {"sample": "sample", "grade": "grade", "lm-eval": "lm_evaluation"}[stage]
    small = (
        f"from iapo_bench.evaluate import {module} as stage; stage.PART = 8; from iapo_bench.cli import main; main()"
    )
    out = tmp_path / "stopped"

    def command(out: Path) -> list[str]:
        given = (*samples, "--out", out / "results.parquet") if stage == "grade" else (*model, "--out", out)
        return [sys.executable, "-c", small, stage, *map(str, (*many, "--data", data, *given))]

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in out.glob("*.resume/*-*.json")}

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, timeout=400)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        before = parts()
        process = subprocess.Popen(command(out), stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(parts()) < len(before) + 2:
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate(timeout=100)
        name = signal.Signals(number).name
        said = [line for line in err.splitlines() if line.startswith(("iapo-bench:", "Traceback"))]
        told = [] if number == signal.SIGKILL else [f"iapo-bench: stopped by {name}; the same command goes on where it"]
        assert [line.removesuffix(" stopped") for line in said] == told, err
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert len(parts()) >= len(before) + 2
        assert before.items() <= parts().items(), "a finished part was made again"
        assert [path.name for path in out.iterdir()] == [path.name for path in out.glob("*.resume")]
    subprocess.run(command(out), check=True, capture_output=True, timeout=400)
    whole, made_on = ({path.name: path for path in folder.iterdir()} for folder in (tmp_path / "whole", out))
    assert whole.keys() == made_on.keys()
    for name in whole.keys() - {"timing.json"}:
        assert whole[name].read_bytes() == made_on[name].read_bytes(), name


@pytest.mark.slow
def test_training_goes_on_after_every_way_to_stop_it(made, tmp_path):
    """Signals, a full disk, no memory: a line each, and in the end the weights of an uninterrupted run."""
    command = ["train", "--config", "smoke", "--method", "grpo", "--base", made / "base" / "model"]
    command += ["--data", made / "data", "--set", "train.completions=3200", "--set", "train.checkpoint_every=1"]
    assert _iapo_bench(*command, "--out", tmp_path / "whole").returncode == 0
    out = tmp_path / "out"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        before = len((out / "train.jsonl").read_text().splitlines()) if out.exists() else 0
        process = subprocess.Popen(
            [*RUN, *map(str, command), "--out", str(out)], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            rows = (out / "train.jsonl").read_text().splitlines() if (out / "train.jsonl").exists() else []
            if len(rows) >= before + 2 and (out / "resume" / "state").exists():
                break
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        said = [line for line in err.splitlines() if line.startswith(("iapo-bench:", "Traceback"))]
        if number == signal.SIGKILL:
            assert (process.returncode, said) == (-number, [])
        else:
            name = signal.Signals(number).name
            assert said == [f"iapo-bench: stopped by {name}; the same command goes on where it stopped"]
            assert process.returncode == 128 + number
    for limit in ((resource.RLIMIT_FSIZE, 30_000), (resource.RLIMIT_AS, 700_000_000)):
        stopped = _iapo_bench(*command, "--out", out, limit=limit)
        assert stopped.returncode, limit
        assert len(_lines(stopped)) <= 1, stopped.stderr
        assert "Traceback" not in stopped.stderr
    assert _iapo_bench(*command, "--out", out).returncode == 0
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    logs = [
        [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        for folder in (out, tmp_path / "whole")
    ]
    assert untimed(logs[0]) == untimed(logs[1])
    assert sorted(path.name for path in out.iterdir()) == ["model", "provenance.json", "train.jsonl"]


@pytest.mark.slow
def test_the_page_of_real_models_makes_a_table_under_a_time_limit(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "real-models.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```bash\n")[1:]]
    table = next(block for block in blocks if block.startswith("# table.sh"))
    loop = next(block for block in blocks if "until timeout" in block)
    (tmp_path / "table.sh").write_text(table)
    (tmp_path / "loop.sh").write_text(f"set -u\n{loop}")
    given = {"TIER": "smoke", "METHODS": "grpo", "OUT": str(tmp_path / "out"), "LIMIT": "25"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "loop.sh"], cwd=tmp_path, env={**os.environ, **given, "PATH": path}, timeout=900)
    assert done.returncode == 0
    rows = (tmp_path / "out" / "table1.csv").read_text().splitlines()
    assert len(rows) == 3
