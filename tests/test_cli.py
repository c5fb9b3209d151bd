"""The command line as a person uses it: the whole path by hand, and the mistakes that people make."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from iapo_bench.cli import main
from iapo_bench.config.tier_file import read_tier
from iapo_bench.models.checkpoints import load_model
from iapo_bench.plan.calibration import compare, read_runs
from iapo_bench.plan.costs import LENGTHS
from iapo_bench.plan.show import architecture

SMALL = (
    *("--set", "model.sft={hidden: 32, layers: 1, heads: 2, steps: 40, lr: 0.01}"),
    *("--set", "train.completions=32", "--set", "train.prompts_per_step=4"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data, base, one trained method, samples and grades, made by the commands."""
    folder = tmp_path_factory.mktemp("made")
    commands = [
        ("prepare", "--out", folder / "data"),
        ("base", "--out", folder / "base"),
        ("train", "--method", "iapo", "--base", folder / "base", "--data", folder / "data", "--out", folder / "iapo"),
        *(
            ("sample", "--model", model, "--data", folder / "data", "--out", folder / name / "test")
            for name, model in (("base", folder / "base"), ("iapo", folder / "iapo" / "model"))
        ),
        *(
            (
                *("grade", "--samples", folder / name / "test" / "samples.parquet", "--data", folder / "data"),
                *("--out", folder / name / "test" / "grades.parquet"),
            )
            for name in ("base", "iapo")
        ),
        *(
            (
                *("metrics", "--method", name, "--grades", folder / name / "test" / "grades.parquet"),
                *("--out", folder / f"{name}.json"),
            )
            for name in ("base", "iapo")
        ),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for command in commands:
            patch.setattr(sys, "argv", ["iapo-bench", *map(str, command), "--config", "smoke", *SMALL])
            main()
    return folder


def test_adapters_are_part_of_the_weights_that_training_leaves(run, made, tmp_path):
    files = ("--base", made / "base", "--data", made / "data", "--out", tmp_path / "out")
    code, err = run("train", "--config", "smoke", *SMALL, "--set", "train.lora.rank=4", "--method", "iapo", *files)
    assert code == 0, err
    trained, base = (load_model(path).state_dict() for path in (tmp_path / "out" / "model", made / "base"))
    assert trained.keys() == base.keys()
    moved = {name for name, weight in trained.items() if not torch.equal(weight, base[name])}
    assert {name for name in base if "_proj." in name} == moved
    assert sorted(path.name for path in (tmp_path / "out" / "model").iterdir()) == sorted(
        path.name for path in (made / "iapo" / "model").iterdir()
    )


def test_the_whole_path(run, made, tmp_path):
    for name in ("train.jsonl", "provenance.json", "model/model.safetensors", "model/tokenizer.json"):
        assert (made / "iapo" / name).exists()
    assert not (made / "iapo" / "resume").exists()
    samples = pd.read_parquet(made / "iapo" / "test" / "samples.parquet")
    assert len(samples) == 8 * 4 * 2
    assert (samples["token_ids"].map(len) == samples["n_tokens"]).all()
    provenance = json.loads((made / "iapo" / "provenance.json").read_text())
    for key in ("code", "config", "config_hash", "inputs", "seeds", "packages", "hardware"):
        assert provenance[key], key
    code, _ = run(
        *("table", "--summary", made / "base.json", "--summary", made / "iapo.json"),
        *("--out", tmp_path / "table1.csv", "--figure", tmp_path / "figure"),
    )
    assert code == 0
    table = pd.read_csv(tmp_path / "table1.csv")
    assert table["method"].tolist() == ["base", "iapo"]
    outcomes = json.loads((tmp_path / "table1.provenance.json").read_text())["outcomes"]
    assert sum(outcomes["iapo"].values()) == len(samples)
    code, _ = run(
        *("wallclock", "--config", "smoke", "--run", f"base={made / 'base'}", "--run", f"iapo/0={made / 'iapo'}"),
        *("--out", tmp_path / "wallclock.csv", "--figure", tmp_path / "bars"),
    )
    assert code == 0
    clock = pd.read_csv(tmp_path / "wallclock.csv").set_index("method")
    assert clock.loc["iapo", "train_seconds_update"] > 0
    assert clock.loc["base", "inference_seconds"] > 0
    assert pd.isna(clock.loc["base", "train_seconds_update"])
    assert {"tmp", "png", "svg"} & {path.suffix[1:] for path in tmp_path.iterdir()} == {"png", "svg"}


def test_the_plan_reads_the_logs_that_commands_leave(made, tmp_path):
    """What training and sampling write today, whatever their clocks say."""
    shutil.copytree(made / "iapo", tmp_path / "iapo" / "seed0")
    tier = read_tier("smoke")
    (run,) = read_runs(tmp_path, tier)
    assert run.training_seconds > 0
    assert run.timing["completions"] == 8 * 4 * 2
    table = compare(architecture(tier), tier, [run], LENGTHS["micro"], 8)
    assert [(row["run"], row["what"]) for row in table] == [("iapo", "training"), ("iapo", "sampling")]
    assert all(row["ratio"] > 0 for row in table)


def test_samples_are_reproducible(run, made, tmp_path):
    arguments = ("sample", "--config", "smoke", "--model", made / "iapo" / "model", "--data", made / "data")
    assert run(*arguments, "--out", tmp_path)[0] == 0
    again = pd.read_parquet(tmp_path / "samples.parquet")
    assert again.equals(pd.read_parquet(made / "iapo" / "test" / "samples.parquet"))


def mistakes(made: Path, tmp: Path) -> dict[str, tuple[tuple, str]]:
    """What people get wrong, and a part of what they are told."""
    train = ("train", "--config", "smoke", *SMALL, "--out", tmp / "out")
    rest = ("--base", made / "base", "--data", made / "data")
    sample = ("sample", "--config", "smoke", "--out", tmp / "out")
    empty, cut, broken = tmp / "empty", tmp / "cut", tmp / "broken"
    for folder in (empty, cut):
        shutil.copytree(made / "data", folder)
    (empty / "train.jsonl").write_text("")
    text = (made / "data" / "train.jsonl").read_text()
    (cut / "train.jsonl").write_text(text[: len(text) // 2])
    shutil.copytree(made / "base", broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.zeros(3)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    return {
        "unknown command": (("trian",), "No such command 'trian'"),
        "unknown option": (("prepare", "--otu", "x"), "No such option"),
        "missing option": (("prepare",), "Missing option '--out'"),
        "unknown tier": (("prepare", "--config", "mirco", "--out", tmp / "out"), "unknown tier 'mirco'"),
        "misspelt key": (("prepare", "--set", "train.steps=3", "--out", tmp / "out"), "unknown key 'steps'"),
        "half a setting": (("prepare", "--set", "train", "--out", tmp / "out"), "write KEY=VALUE"),
        "unknown dataset": (("prepare", "--set", "world.name=gsm9k", "--out", tmp / "out"), "world.name"),
        "no data": (
            ("prepare", "--set", "world={name: gsm8k, data_dir: /nowhere, options: null}", "--out", tmp / "out"),
            "world.options",
        ),
        "missing data directory": (
            ("prepare", "--config", "smollm2", "--set", "world.data_dir=/nowhere", "--out", tmp / "out"),
            "/nowhere/gsm8k_train.jsonl does not exist",
        ),
        "unknown method": ((*train, *rest, "--method", "ipao"), "unknown method 'ipao': did you mean 'iapo'"),
        "unknown trial": ((*train, *rest, "--method", "iapo", "--trial", 99), "has no trial 99"),
        "no base": ((*train, "--method", "iapo", "--base", tmp, "--data", made / "data"), "not a checkpoint directory"),
        "no problems": (
            (*train, "--method", "iapo", "--base", made / "base", "--data", tmp),
            "train.jsonl does not exist",
        ),
        "empty JSONL": ((*train, "--method", "iapo", "--base", made / "base", "--data", empty), "train.jsonl is empty"),
        "truncated JSONL": ((*train, "--method", "iapo", "--base", made / "base", "--data", cut), "is not JSON"),
        "wrong checkpoint": (
            (*train, "--method", "iapo", "--base", broken, "--data", made / "data"),
            "weights do not match config.json (mismatched keys: ",
        ),
        "prompt beyond the context": (
            (*train, *rest, "--method", "iapo", "--set", "train.max_tokens=250"),
            "the model's context leaves 4 beside max_tokens=250 and a postfix of 2",
        ),
        "unknown split": (
            (*sample, "--model", made / "base", "--data", made / "data", "--split", "dev"),
            "unknown split",
        ),
        "n < k": (
            (*sample, "--model", made / "base", "--data", made / "data", "--set", "evaluate.n_samples=2"),
            "k=4 needs at least 4 samples a problem",
        ),
        "nothing sampled": (
            ("grade", "--config", "smoke", "--samples", tmp / "no", "--data", made / "data", "--out", tmp / "out"),
            "sample first",
        ),
        "nothing graded": (
            ("metrics", "--config", "smoke", "--method", "iapo", "--grades", tmp / "no", "--out", tmp / "out"),
            "grade first",
        ),
        "nothing measured": (
            ("table", "--summary", tmp / "no", "--out", tmp / "out", "--figure", tmp / "out"),
            "does not exist",
        ),
        "run without a directory": (
            ("wallclock", "--config", "smoke", "--run", "iapo", "--out", tmp / "out", "--figure", tmp / "out"),
            "write METHOD/SEED=DIR, or base=DIR",
        ),
        "run twice": (
            (
                "wallclock",
                "--config",
                "smoke",
                *2 * ("--run", "iapo/0=x"),
                "--out",
                tmp / "out",
                "--figure",
                tmp / "out",
            ),
            "--run iapo/0 is given twice",
        ),
        "seed twice": (
            (
                *("metrics", "--config", "smoke", "--method", "iapo", "--out", tmp / "out"),
                *2 * ("--grades", made / "iapo" / "test" / "grades.parquet", "--train-seed", 3),
            ),
            "training seeds must be distinct, are [3, 3]",
        ),
        "sampling seed twice": (
            (*sample, "--model", made / "base", "--data", made / "data", *2 * ("--seed", 42)),
            "evaluate: sampling seeds must differ, are [42, 42]",
        ),
        "settings and options": (
            ("sample", "--settings", tmp / "no", "--seed", 1, *rest[2:], "--model", tmp, "--out", tmp / "out"),
            "--settings holds all settings: leave out --seed",
        ),
        "settings and a tier": (
            ("prepare", "--settings", tmp / "no", "--set", "seed=1", "--out", tmp / "out"),
            "--settings holds all settings: leave out --set",
        ),
        "unknown row": (
            ("metrics", "--config", "smoke", "--method", "ipao", "--grades", tmp / "no", "--out", tmp / "out"),
            "unknown row 'ipao': did you mean 'iapo'",
        ),
        "a tier without a model": (("doctor", "--config", "smoke"), "--model is not given: leave out --config"),
        "a dataset without a model": (("doctor", "--dataset", "gsm8k"), "--model is not given: leave out --dataset"),
        "workflow never ran": (("bench", "table", "--work", tmp), "run the workflow first"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *("unknown command", "unknown option", "missing option", "unknown tier", "misspelt key", "half a setting"),
        *("unknown dataset", "no data", "missing data directory", "unknown method", "unknown trial", "no base"),
        *("no problems", "empty JSONL", "truncated JSONL", "wrong checkpoint", "prompt beyond the context"),
        *("unknown split", "n < k", "nothing sampled", "nothing graded", "nothing measured"),
        *("run without a directory", "run twice", "seed twice", "workflow never ran", "sampling seed twice"),
        *("settings and options", "settings and a tier", "unknown row", "a tier without a model"),
        "a dataset without a model",
    ],
)
def test_a_mistake_is_one_line_exit_two_and_nothing_written(run, made, tmp_path, name):
    arguments, message = mistakes(made, tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    code, printed = run(*arguments)
    lines = [line for line in printed.splitlines() if line.startswith("iapo-bench: ")]
    assert code == 2
    assert message in lines[-1]
    assert len(lines) == 1
    assert "Traceback" not in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bad_gold_stops_the_preparation(run, tmp_path):
    (tmp_path / "gsm8k_train.jsonl").write_text('{"question": "q", "answer": "#### many"}\n')
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "q", "answer": "#### 4"}\n')
    code, printed = run(
        "prepare", "--config", "smollm2", "--set", f"world.data_dir={tmp_path}", "--out", tmp_path / "out"
    )
    assert code == 2
    assert "gsm8k_train.jsonl:1: the gold answer 'many' is not an integer" in printed
    assert not (tmp_path / "out").exists()


def test_interrupted_training_goes_on(run, made, tmp_path, monkeypatch):
    """Stopped in the middle by Ctrl-C, the next call ends with the same rows as a run that was never stopped."""
    from iapo_bench.train.trainer import Trainer

    arguments = ("train", "--config", "smoke", *SMALL, "--method", "iapo", "--base", made / "base")
    arguments += ("--data", made / "data", "--out", tmp_path)
    step = Trainer.step

    def interrupted(self):
        if len(self.rows) == 1:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert run(*arguments)[0] == 130
    assert list((tmp_path / "resume").glob("state*"))
    assert not (tmp_path / "model").exists()
    steps = []
    monkeypatch.setattr(Trainer, "step", lambda self: steps.append(1) or step(self))
    assert run(*arguments)[0] == 0
    rows, whole = (
        [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        for folder in (tmp_path, made / "iapo")
    )
    assert len(steps) == len(whole) - 1
    for row, expected in zip(rows, whole, strict=True):
        timed = {key for key in row if key.startswith(("seconds_", "tokens_per_second"))}
        assert {k: v for k, v in row.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    assert not (tmp_path / "resume").exists()


@pytest.mark.parametrize("words", [(), ("bench",)])
def test_without_a_command_the_help_keeps_its_lines(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["iapo-bench", *words])
    with pytest.raises(SystemExit):
        main()
    shown = "".join(capsys.readouterr())
    assert shown.startswith("Usage:")
    assert "\n  table " in shown


def test_a_table_that_was_not_made_yet_is_one_line(tmp_path, monkeypatch, capsys):
    words = ("explain", str(tmp_path / "table1.csv"), "--row", "iapo", "--column", "pass@1")
    monkeypatch.setattr(sys, "argv", ["iapo-bench", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "table1.csv does not exist: `snakemake" in capsys.readouterr().err
