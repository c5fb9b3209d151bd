"""The choice of hyperparameters, and what makes a stage's results stale."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from builders import write_grades

from iapo_bench import config as configuration
from iapo_bench import workflow
from iapo_bench.config.tier import parse_tier, read_tier
from iapo_bench.errors import UserError
from iapo_bench.report.rows import measure
from iapo_bench.report.tuning import choose, pick

ROOT = Path(__file__).parent.parent


def score(passed: float, ratio: float) -> dict[str, float]:
    return {"pass": passed, "ratio": ratio}


def test_pick_takes_the_best_ratio_that_keeps_accuracy():
    assert pick([score(0.9, 1.0), score(0.8, 2.0), score(0.5, 9.0)], floor=0.8) == 1
    assert pick([score(0.9, 1.0), score(0.8, 2.0)], floor=0.85) == 0


def test_pick_takes_the_best_accuracy_when_all_lose_some():
    assert pick([score(0.5, 9.0), score(0.7, 1.0)], floor=0.8) == 1


@pytest.mark.parametrize(
    ("method", "selection"),
    [("base", ""), ("iapo", "validation"), ("iapo_ni", "validation of iapo, varied")],
)
def test_a_summary_says_how_its_settings_were_chosen(tmp_path, method, selection):
    tier = read_tier("micro", {"evaluate": {"ks": [1, 2], "n_samples": 4}})
    grades = write_grades(tmp_path / "grades.parquet", 1, 20)
    measure(tier, method, {0: grades}, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["selection"] == selection


@pytest.fixture
def search(tmp_path, monkeypatch):
    """A tier of two methods with two trials each, and their grades."""
    monkeypatch.setattr(configuration, "CONFIG_DIR", tmp_path)
    (tmp_path / "methods").mkdir()
    for method in ("grpo", "iapo"):
        (tmp_path / "methods" / f"{method}.yaml").write_text("search: [{lr: 0.1}, {lr: 0.2}]\n")
    write_grades(tmp_path / "base.parquet.d" / "grades.parquet", 1, 20)
    for method, trials in {"grpo": [(1, 20), (1, 10)], "iapo": [(2, 20), (0, 5)]}.items():
        for i, (right, length) in enumerate(trials):
            write_grades(tmp_path / "tune" / method / f"trial{i}" / "validation" / "grades.parquet", right, length)
    content = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    content |= {"tune": {"k": 2, "n_samples": 4}, "methods": {"grpo": None, "iapo": None}}
    return parse_tier(content, source="test"), tmp_path


def test_choose_writes_choices_and_evidence(search):
    tier, folder = search
    choose(tier, folder / "tune", folder / "base.parquet.d" / "grades.parquet", folder / "tuned" / "smoke.yaml")
    assert yaml.safe_load((folder / "tuned" / "smoke.yaml").read_text()) == {"grpo": {"lr": 0.2}, "iapo": {"lr": 0.1}}
    evidence = pd.read_csv(folder / "tuned" / "smoke.csv")
    assert evidence[["method", "trial", "chosen"]].to_numpy().tolist() == [
        ["grpo", 0, False],
        ["grpo", 1, True],
        ["iapo", 0, True],
        ["iapo", 1, False],
    ]
    assert evidence["pass@2"].tolist() == pytest.approx([0.5, 0.5, 5 / 6, 0.0])
    assert json.loads(evidence["settings"][0]) == {"lr": 0.1}


def test_unequal_budgets_are_refused(search):
    tier, folder = search
    (folder / "methods" / "iapo.yaml").write_text("search: [{lr: 0.1}]\n")
    with pytest.raises(UserError, match="same number of trials, not grpo 2, iapo 1"):
        choose(tier, folder / "tune", folder / "base.parquet.d" / "grades.parquet", folder / "out.yaml")
    assert not (folder / "out.yaml").exists()


def test_the_committed_choices_follow_from_the_committed_evidence():
    evidence = pd.read_csv(ROOT / "configs" / "tuned" / "micro.csv")
    choices = yaml.safe_load((ROOT / "configs" / "tuned" / "micro.yaml").read_text())
    floor = float((ROOT / "configs" / "tuned" / "micro.yaml").read_text().split("of at least ")[1].split(",")[0])
    assert set(evidence.groupby("method").size()) == {3}
    assert set(choices) == set(evidence["method"]) == set(read_tier("micro").methods)
    for method, trials in evidence.groupby("method"):
        scores = [score(row["pass@16"], row["ratio@16"]) for _, row in trials.iterrows()]
        chosen = pick(scores, floor)
        assert trials["chosen"].tolist() == [i == chosen for i in range(len(scores))]
        assert json.loads(trials.iloc[chosen]["settings"]) == choices[method]


def test_a_methods_file_makes_only_its_own_training_stale(tmp_path, monkeypatch):
    paths = {name: tmp_path / f"{name}.py" for name in ("grpo", "iapo")}
    for path in paths.values():
        path.write_text("before")
    monkeypatch.setattr(workflow, "list_methods", lambda: paths)
    before = {name: workflow.code_digest("train", name) for name in paths}
    sampling = workflow.code_digest("sample")
    paths["iapo"].write_text("after")
    assert workflow.code_digest("train", "iapo") != before["iapo"]
    assert workflow.code_digest("train", "grpo") == before["grpo"]
    assert workflow.code_digest("sample") == sampling
    with pytest.raises(UserError, match="unknown stage"):
        workflow.code_digest("trian")


def test_settings_are_named_by_their_content(tmp_path, monkeypatch):
    environment = {"PATH": "/bin"}
    monkeypatch.setattr(workflow.os, "environ", environment)
    names = []
    for lr in (0.1, 0.2, 0.1):
        workflow.export_settings(read_tier("smoke", {"train": {"lr": lr}}), tmp_path)
        names.append(environment["IAPO_BENCH_CONFIG"])
        assert read_tier(names[-1]).train.lr == lr
    assert names[0] == names[2] != names[1]
