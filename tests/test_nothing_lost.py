"""What is left after a kill, a damaged file, a full disk, and of two writers of one path."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_trainer import make_trainer, untimed  # noqa: F401

from iapo_bench.config.tier import read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate import grade as grading
from iapo_bench.evaluate import sample as sampling
from iapo_bench.files import claimed, whole_directory, whole_file
from iapo_bench.machine.resume import is_sound, kept, resuming, seal
from iapo_bench.train.base import make_base
from iapo_bench.worlds.prepare import prepare

SMALL = {"model": {"source": "taught", "sft": {"hidden": 32, "layers": 1, "heads": 2, "steps": 20}}}
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


def test_sampling_and_grading_go_on_after_any_part(made, tmp_path, monkeypatch):
    """What comes out is byte for byte what an uninterrupted job writes; no part is made twice."""
    tier, model = read_tier("smoke", SMALL), made / "base" / "model"
    job = tier.sample_job("test")
    monkeypatch.setattr(sampling, "PART", 3 * job.evaluate.n_samples)
    monkeypatch.setattr(grading, "PART", 10)

    def sample(out):
        sampling.sample(job, model=model, data=made / "data", out=out)

    def grade(out):
        grading.grade(
            tier.grade_job("test"), samples=out / "samples.parquet", data=made / "data", out=out / "g.parquet"
        )

    for module, run, result in ((sampling, sample, "samples.parquet"), (grading, grade, "g.parquet")):
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
        "samples.parquet",
        "timing.json",
    ]


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
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "file"]
    assert len({path.read_text() for path in (tmp_path / "directory").iterdir()}) == 1


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
