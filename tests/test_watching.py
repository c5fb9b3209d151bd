"""Watching a run: other logs, a look at validation, kept rollouts. None changes a weight."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import golden
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from iapo_bench.cli import main
from iapo_bench.config.report import Labels
from iapo_bench.config.section import identity
from iapo_bench.config.tier_file import read_tier
from iapo_bench.config.train import TrainConfig
from iapo_bench.models.checkpoints import weights_checksum
from iapo_bench.report.curves import training_curves
from iapo_bench.report.style import method_styles
from iapo_bench.train.rollouts import drop_rollouts
from iapo_bench.train.trackers import numbers, tracking

LABELS = Labels(tier="micro", dataset="micro", model="small")
JOB = read_tier(golden.TIER).train_job("grpo", 0)
TIMES = ("seconds_", "tokens_per_second", "validation_")


def train(run, speaking, out, method="dapo", *settings, code=0) -> str:
    paths = ("--base", speaking / "speaker", "--data", speaking / "data", "--out", out)
    chosen = [part for setting in ("train.completions=50", *settings) for part in ("--set", setting)]
    found, said = run("train", "--config", golden.TIER, "--method", method, "--seed", golden.SEED, *chosen, *paths)
    assert found == code, said
    return said


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


def told(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]


@pytest.fixture(scope="module")
def watched(speaking):
    """A run of IAPO that is watched in every way that needs no other library."""
    out, settings = (
        speaking / "watched",
        ("train.completions=50", "train.validate_every=3", "train.keep_rollouts=[0,2]"),
    )
    chosen = [part for setting in settings for part in ("--set", setting)]
    paths = ("--base", speaking / "speaker", "--data", speaking / "data", "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        command = ("train", "--config", golden.TIER, "--method", "iapo", "--seed", golden.SEED, *chosen, *paths)
        patch.setattr("sys.argv", ["iapo-bench", *map(str, command)])
        main()
    return out


def test_the_settings_that_watch_belong_to_no_identity():
    plain, watching = (
        TrainConfig(completions=8, max_tokens=8, **changes)
        for changes in (
            {},
            {"report_to": ["trackio"], "validate_every": 1, "validate_problems": 2, "keep_rollouts": [1]},
        )
    )
    assert identity(plain) == identity(watching)


def test_runs_that_are_timed_are_not_watched():
    """They would take the place of the real run in its logs, and its look at validation would be timed."""
    watching = {"report_to": ["trackio"], "validate_every": 1, "keep_rollouts": [1]}
    jobs = read_tier("smoke", {"train": watching}).timing_job().train.values()
    assert all(
        (job.train.report_to, job.train.validate_every, job.train.keep_rollouts) == ([], None, []) for job in jobs
    )


def test_watching_changes_no_weight_and_no_number(run, speaking, watched, tmp_path):
    said = train(run, speaking, tmp_path / "plain", "iapo", "train.keep_rollouts=[90]")
    assert told(rows_of(tmp_path / "plain")) == told(rows_of(watched))
    assert weights_checksum(tmp_path / "plain" / "model") == weights_checksum(watched / "model")
    assert "no rollouts of step 90: the last was 3" in said
    assert not (tmp_path / "plain" / "rollouts").exists()


def test_validation_is_looked_at_when_due_and_at_the_end(watched):
    rows = rows_of(watched)
    due = [row["step"] for row in rows if "validation_correct" in row]
    assert due == [2, 3]
    assert len(rows) == 4, "the last step is not due by its number"
    assert all(1 <= row["validation_length"] <= 20 for row in rows if row["step"] in due)


def test_validation_is_of_the_weights_after_its_step(run, speaking, watched, tmp_path):
    """What the trained model draws, with the numbers of the look, is what the last row says."""
    from iapo_bench.models.checkpoints import load_model, load_tokenizer, stop_ids
    from iapo_bench.rollout import Sampling
    from iapo_bench.rollout.transformers_engine import TransformersEngine
    from iapo_bench.seeds import stream_seed
    from iapo_bench.worlds import read_problems
    from iapo_bench.worlds.load import load_world

    model, tokenizer = load_model(watched / "model"), load_tokenizer(watched / "model")
    dialogue = load_world(JOB.world, JOB.world_seed).dialogue(tokenizer)
    (problem,) = read_problems(speaking / "data" / "validation.jsonl")
    seed = stream_seed(golden.SEED, "validation")
    sampling = Sampling(max_tokens=20, eos_ids=stop_ids(model, dialogue), temperature=0.8, seed=seed)
    (drawn,) = TransformersEngine(model).generate([dialogue.encode(problem.question)], sampling)
    assert rows_of(watched)[-1]["validation_length"] == len(drawn.token_ids)


def test_a_kept_rollout_is_what_the_method_was_given_and_gave(watched):
    assert sorted(path.name for path in (watched / "rollouts").iterdir()) == ["step0.parquet", "step2.parquet"]
    frame, row = pd.read_parquet(watched / "rollouts" / "step2.parquet"), rows_of(watched)[2]
    assert len(frame) == row["groups"] * 4 == row["completions"]
    assert (frame["step"] == 2).all()
    assert (frame["method"] == "iapo").all()
    assert frame["reward"].mean() == pytest.approx(row["reward"], abs=1e-6)
    assert (frame["outcome"] == "CORRECT").mean() == pytest.approx(row["correct"])
    assert frame["problem_id"].nunique() == row["groups"]
    lengths = frame["token_ids"].map(len)
    assert lengths.mean() == pytest.approx(row["length"])
    for column in ("tokens", "advantages", "weights", "sampler_logp", "old_logp"):
        assert (frame[column].map(len) == lengths).all(), column
    assert (frame["answer_entropy"].map(len) == lengths + 1).all()


def test_the_advantages_of_a_kept_rollout_follow_from_its_rewards(run, speaking, tmp_path):
    """GRPO's by hand: the z-score of the rewards in each group, for every token. It reads no signal, so no curve."""
    train(run, speaking, tmp_path, "grpo", "train.keep_rollouts=[0]", "train.updates_per_rollout=1")
    frame = pd.read_parquet(tmp_path / "rollouts" / "step0.parquet")
    assert frame["reward"].nunique() == 2, "some right, some wrong"
    for _, group in frame.groupby("group"):
        reward = group["reward"].to_numpy()
        expected = (reward - reward.mean()) / max(reward.std(), 1e-9) if reward.std() else np.zeros(len(reward))
        for value, advantages in zip(expected, group["advantages"], strict=True):
            assert advantages == pytest.approx([value] * len(advantages), abs=1e-4)
    code, said = run("credit", tmp_path / "rollouts" / "step0.parquet", "--out", tmp_path / "page.html")
    assert code == 0, said
    assert "<svg" not in (tmp_path / "page.html").read_text()


def test_rollouts_of_steps_that_are_done_again_go(tmp_path):
    for name in ("step3.parquet", "step12.parquet", "step4.parquet.note", "notes.txt"):
        (tmp_path / name).touch()
    drop_rollouts(tmp_path, after=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step3.parquet", "step4.parquet.note"]


def test_the_page_colours_tokens_by_their_credit(run, watched, tmp_path):
    rollout = watched / "rollouts" / "step0.parquet"
    code, said = run("credit", rollout, "--groups", 2, "--out", tmp_path / "page.html")
    assert code == 0, said
    page, frame = (tmp_path / "page.html").read_text(), pd.read_parquet(rollout)
    shown = frame[frame["group"] < 2]
    assert page.count("<section") == len(shown) == 8
    assert "2 of 3 groups" in page
    assert page.count("<svg") == len(shown), "iapo reads the answer's entropy"
    for row, credit in zip(shown.to_dict("records"), re.findall(r'data-credit="([^"]*)"', page), strict=True):
        expected = row["advantages"] * row["weights"]
        assert [float(number) for number in credit.split()] == pytest.approx(expected, abs=6e-4)
        assert f"reward {row['reward']:+.3f}" in page
    colours = re.findall(r"<i class=([pn])\d+>", page)
    signs = [value < 0 for row in shown.to_dict("records") for value in row["advantages"] * row["weights"]]
    assert sum(colour == "n" for colour in colours) <= sum(signs)
    assert "n" in colours
    assert "p" in colours


@pytest.mark.parametrize("content", [None, "folder", b"PAR1"])
def test_what_is_no_rollout_is_one_line(run, tmp_path, content):
    path = tmp_path / "step0.parquet"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    code, said = run("credit", path, "--out", tmp_path / "page.html")
    assert code == 2
    assert "train.keep_rollouts" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_the_training_figure_has_a_line_for_validation(tmp_path):
    log = tmp_path / "train.jsonl"
    rows = [{"completions_total": 8 * i, "correct": 0.1 * i, "length": 50 - i} for i in range(1, 6)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (plain, _) = training_curves(LABELS, {"grpo": [log]}).axes
    for i in (1, 3):
        rows[i] |= {"validation_correct": 0.5 + i / 10, "validation_length": 40 + i}
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = training_curves(LABELS, {"grpo": [log]})
    assert "thin lines with points: validation problems" in " ".join(figure.get_suptitle().split())
    for ax, expected in zip(figure.axes, ([0.6, 0.8], [41, 43]), strict=True):
        assert len(ax.lines) == len(plain.lines) + 1 == 2
        assert list(ax.lines[1].get_xdata()) == [16, 32]
        assert list(ax.lines[1].get_ydata()) == pytest.approx(expected)
        assert to_hex(ax.lines[1].get_color()) == method_styles(["grpo"])["grpo"].colour.lower()


# Logs elsewhere.

ROWS = [{"step": i, "correct": i / 8, "kl": None, "rewards": {"correct": 0.5 - i}} for i in range(6)]


def test_numbers_keep_their_names():
    assert numbers(ROWS[2]) == {"step": 2, "correct": 0.25, "rewards/correct": -1.5}


def test_a_missing_library_is_said_before_anything_is_made(run, speaking, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = train(run, speaking, tmp_path / "out", "grpo", "train.report_to=[wandb]", code=2)
    assert "wandb is not installed: pip install -c constraints.txt -e '.[wandb]'" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def killed_and_resumed(name: str, folder: Path, **environment: str) -> None:
    """A log of four rows whose process is killed, and one of the same run that goes on after two."""
    script = f"""
import json, os, sys, time
from pathlib import Path
from iapo_bench.config.train import TrainJob
from iapo_bench.train.trackers import tracking
rows, job = json.loads(sys.argv[1]), TrainJob.model_validate_json(sys.argv[2])
place = {{"folder": Path({str(folder)!r}), "run": "grpo-seed0-abc", "job": job}}
with tracking([{name!r}], rows[:int(sys.argv[3])], **place) as tell:
    for row in rows[int(sys.argv[3]):int(sys.argv[4])]:
        tell(row)
    if int(sys.argv[4]) < len(rows):
        time.sleep(2)
        os._exit(9)
"""
    for start, end, code in ((0, 4, 9), (2, len(ROWS), 0)):
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(ROWS), JOB.model_dump_json(), str(start), str(end)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, done.stderr[-2000:]


def test_tensorboard_has_each_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed("tensorboard", tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=False)
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["correct", "rewards/correct"]
    assert [(event.step, event.value) for event in read.Scalars("correct")] == [(i, i / 8) for i in range(6)]


def test_trackio_has_each_step_once(tmp_path):
    pytest.importorskip("trackio")
    killed_and_resumed("trackio", tmp_path, TRACKIO_DIR=str(tmp_path), HF_HUB_OFFLINE="1")
    listed = (
        "import trackio, json; print(json.dumps(trackio.api.SQLiteStorage.get_logs('iapo-bench', 'grpo-seed0-abc')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", listed],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    logs = json.loads(done.stdout.splitlines()[-1])
    assert [(row["step"], row["correct"]) for row in logs] == [(i, i / 8) for i in range(6)], done.stderr[-2000:]


def test_wandb_offline_has_each_step_once(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    killed_and_resumed("wandb", tmp_path, WANDB_MODE="offline")
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    steps = []
    for data in wandb_records(log.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            steps.append((record.history.step.num, float(items["correct"])))
    assert steps == [(i, i / 8) for i in range(6)]


def wandb_records(content: bytes) -> list[bytes]:
    """The records of a log: after 7 bytes, blocks of 32 KiB of fragments, each with a checksum, a length and a type."""
    records, place, block = [b""], 7, 2**15
    while place < len(content):
        if block - place % block < 7:  # no room for another head
            place += block - place % block
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        records[-1] += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            records.append(b"")
    return records[:-1]


def test_training_tells_its_logs(run, speaking, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(run, speaking, tmp_path, "grpo", "train.report_to=[tensorboard]")
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    rows = rows_of(tmp_path)
    for key in ("reward", "correct", "length", "entropy", "grad_norm"):
        assert [event.value for event in read.Scalars(key)] == pytest.approx([row[key] for row in rows]), key


def test_a_log_that_fails_costs_no_run(tmp_path, monkeypatch, capsys):
    from iapo_bench.train import trackers

    heard = []

    @contextmanager
    def weak(folder, run, job):
        def log(found, step):
            heard.append(step)
            if step == 1:
                raise RuntimeError("the server is gone")

        yield log

    monkeypatch.setitem(trackers._OPENERS, "trackio", weak)
    with tracking(["trackio"], ROWS[:1], folder=tmp_path, run="r", job=JOB) as tell:
        for row in ROWS[1:]:
            tell(row)
    assert heard == [0, 1]
    assert capsys.readouterr().err == "warning: trackio logs no further: the server is gone\n"
