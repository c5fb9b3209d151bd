"""The choice of hyperparameters, and what a row says of it."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from builders import write_grades

from iapo_bench.config.tier_file import parse_tier, read_tier
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
    [("base", ""), ("iapo", "validation"), ("iapo_ni", "validation, varied")],
)
def test_a_summary_says_how_its_settings_were_chosen(tmp_path, method, selection):
    tier = read_tier("micro", {"evaluate": {"ks": [1, 2], "n_samples": 4}})
    grades = write_grades(tmp_path / "grades.parquet", 1, 20)
    measure(tier.row_job(method), {0: grades}, tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["selection"] == selection


@pytest.fixture
def search(tmp_path):
    """A tier of two methods with two trials each, and their grades."""
    write_grades(tmp_path / "base.parquet.d" / "grades.parquet", 1, 20)
    for method, trials in {"grpo": [(1, 20), (1, 10)], "iapo": [(2, 20), (0, 5)]}.items():
        for i, (right, length) in enumerate(trials):
            write_grades(tmp_path / "tune" / method / f"trial{i}" / "validation" / "grades.parquet", right, length)
    content = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    trials = [{"lr_times": 100.0}, {"lr_times": 200.0}]
    tune = {"k": 2, "n_samples": 4, "candidates": {"grpo": trials, "iapo": trials}}
    content |= {"tune": tune, "methods": {"grpo": None, "iapo": None}}
    return parse_tier(content, source="test"), tmp_path


def test_choose_writes_choices_and_evidence(search):
    tier, folder = search
    base = folder / "base.parquet.d" / "grades.parquet"
    choose(tier.tune_job(), folder / "tune", base, folder / "tuned" / "smoke.yaml")
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
    text = (folder / "tuned" / "smoke.md").read_text()
    assert [line for line in text.splitlines() if "**lr 0.2**" in line]
    assert "these numbers mean nothing" in text
    assert "\\toprule" in (folder / "tuned" / "smoke.tex").read_text()
    assert (folder / "tuned" / "smoke.html").is_file()


def test_a_search_of_one_method_keeps_the_choices_of_the_others(search):
    tier, folder = search
    base, out = folder / "base.parquet.d" / "grades.parquet", folder / "tuned" / "smoke.yaml"
    choose(tier.tune_job(), folder / "tune", base, out)
    whole = pd.read_csv(out.with_suffix(".csv"))
    write_grades(folder / "tune" / "iapo" / "trial1" / "validation" / "grades.parquet", 3, 5)
    choose(tier.tune_job(["iapo"]), folder / "tune", base, out)
    assert yaml.safe_load(out.read_text()) == {"grpo": {"lr": 0.2}, "iapo": {"lr": 0.2}}
    again = pd.read_csv(out.with_suffix(".csv"))
    pd.testing.assert_frame_equal(again[again["method"] == "grpo"], whole[whole["method"] == "grpo"])
    assert again["method"].tolist() == ["grpo", "grpo", "iapo", "iapo"]
    assert "grpo: from an earlier search" in out.read_text()
    text = out.with_suffix(".md").read_text()
    assert "grpo: from an earlier search" in text
    assert [line.count("**lr 0.2**") for line in text.splitlines() if "lr 0.2" in line] == [1, 1]
    other = tier.model_copy(update={"tune": tier.tune.model_copy(update={"k": 1})})
    with pytest.raises(UserError, match="grpo were chosen by another k"):
        choose(other.tune_job(["iapo"]), folder / "tune", base, out)
    before = out.read_text()
    whole[whole["method"] == "iapo"].to_csv(out.with_suffix(".csv"), index=False)
    with pytest.raises(UserError, match=r"smoke\.csv has no evidence for grpo of smoke\.yaml: tune all methods"):
        choose(tier.tune_job(["iapo"]), folder / "tune", base, out)
    assert out.read_text() == before


def test_unequal_budgets_are_refused(search):
    tier, _ = search
    fewer = {**tier.tune.candidates, "iapo": tier.tune.candidates["iapo"][:1]}
    unequal = tier.model_copy(update={"tune": tier.tune.model_copy(update={"candidates": fewer})})
    with pytest.raises(UserError, match="same number of trials, not grpo 2, iapo 1"):
        unequal.tune_job()


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
