"""What is left after a kill, a damaged file and another run."""

import errno
import fcntl
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from stages import SMALL
from test_trainer import make_trainer, untimed  # noqa: F401

from iapo_bench import files
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate import grade as grading
from iapo_bench.evaluate import lm_evaluation as measuring
from iapo_bench.evaluate import sample as sampling
from iapo_bench.files import claimed, is_claimed
from iapo_bench.machine.resume import is_sound, kept, resuming, seal
from iapo_bench.train.state import devices, put_back

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


def test_a_save_that_fails_after_a_fall_back_costs_no_sound_checkpoint(make_trainer, checkpoints, monkeypatch):  # noqa: F811
    state, rows, _ = checkpoints
    state.write_bytes(b"")
    for _ in range(2):
        resumed = make_trainer("gfpo")
        resumed._resume(state)
        assert len(resumed.rows) == 1
        resumed.step()
        with monkeypatch.context() as patch:
            patch.setattr(files, "_flush", _no_space)
            with pytest.raises(OSError, match="No space left"):
                resumed._save(state)
    resumed.run(state)
    assert untimed(resumed.rows) == rows


def _no_space(path):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_what_a_method_keeps_on_an_accelerator_comes_back_there(make_trainer, tmp_path, monkeypatch):  # noqa: F811
    """A "meta" device stands for the accelerator."""
    kept = {"here": torch.ones(1), "there": [(torch.ones(2, device="meta"), 3)], "too": torch.ones(1, device="meta")}
    loaded = {"here": torch.ones(1), "there": [(torch.ones(2), 3)], "too": torch.ones(1)}
    assert devices(put_back(loaded, devices(kept), torch.device("meta"))) == ["cpu", "meta", "meta"]

    trainer, state = make_trainer("grpo"), tmp_path / "state.pt"
    trainer.method.state_dict = lambda: {"mean": torch.ones(3), "count": torch.ones(1)}
    trainer._save(state)
    content = torch.load(state, weights_only=True)
    assert content["devices"] == ["cpu", "cpu"]
    torch.save({**content, "devices": ["cuda", "cpu"]}, state)
    seal(state)
    monkeypatch.setattr(type(trainer.model), "device", torch.device("meta"))
    trainer._resume(state)
    assert devices([trainer.method.mean, trainer.method.count]) == ["meta", "cpu"]


def test_a_log_that_is_lost_while_training_runs_is_whole_in_the_end(make_trainer, tmp_path):  # noqa: F811
    log, trainer = tmp_path / "train.jsonl", make_trainer()
    step = trainer.step

    def lose():
        log.unlink()
        return step()

    trainer.step = lose
    rows = trainer.run(log=log)
    assert [json.loads(line) for line in log.read_text().splitlines()] == rows


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
            with pytest.raises(UserError, match=f"another process is using {folder}"):
                claimed(folder).__enter__()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == f"goes on with what an earlier call finished, in {folder}\n"
    for times in (1, 2):
        with resuming(folder, {"settings": {"lr": 2}}):
            assert sorted(path.name for path in folder.iterdir()) == [".lock", "run.json"]
        assert "starts anew" in capsys.readouterr().err
        assert [(aside / "part").exists() for aside in tmp_path.iterdir()] == [True] * times
        with pytest.raises(KeyboardInterrupt):
            stopped()


def test_a_kill_while_the_finished_work_is_removed_leaves_it_this_runs(tmp_path, monkeypatch, capsys):
    folder, unlink = tmp_path / "resume", Path.unlink

    def killed(path, *arguments, **options):
        unlink(path, *arguments, **options)
        raise KeyboardInterrupt

    def work(patch):
        with resuming(folder, {"settings": {}}):
            for name in ("a", "b"):
                (folder / name).touch()
            patch.setattr(Path, "iterdir", lambda path: iter([path / "run.json", path / "a", path / "b"]))
            patch.setattr(Path, "unlink", killed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        work(patch)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "b", "run.json"]
    with resuming(folder, {"settings": {}}):
        assert "goes on with what an earlier call finished" in capsys.readouterr().err
    assert not folder.exists()


def test_a_claim_on_a_folder_that_its_holder_removes_is_refused(tmp_path, monkeypatch):
    """Else a third process could claim the folder that it makes anew, and both would write there."""
    real = fcntl.flock

    def removed(descriptor, kind):
        (tmp_path / ".lock").unlink()
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", removed)
    with pytest.raises(UserError, match="another process is using"), claimed(tmp_path):
        pass


def test_a_claim_is_a_lock_that_nfs_shares_among_machines(tmp_path, monkeypatch):
    """NFS locks files that are open for writing at the server, but a directory at its client alone."""
    seen = []

    def flock(file, kind):
        descriptor = file if isinstance(file, int) else file.fileno()
        seen.append((os.fstat(descriptor).st_mode, fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE, kind))
        real(descriptor, kind)

    real = fcntl.flock
    assert not is_claimed(tmp_path)
    assert not list(tmp_path.iterdir())  # to look writes nothing
    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(tmp_path):
        assert is_claimed(tmp_path)
    assert not is_claimed(tmp_path)
    assert all(stat.S_ISREG(mode) for mode, _, _ in seen)
    assert [mode for _, mode, kind in seen if kind & fcntl.LOCK_EX] == [os.O_RDWR]


def test_a_run_that_failed_before_its_first_checkpoint_leaves_nothing_to_set_aside(tmp_path, capsys):
    folder = tmp_path / "resume"
    for lr in (1, 2):
        with pytest.raises(KeyboardInterrupt), resuming(folder, {"settings": {"lr": lr}}):
            raise KeyboardInterrupt
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["resume"]
    assert json.loads((folder / "run.json").read_text()) == {"settings": {"lr": 2}}
