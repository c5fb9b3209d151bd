"""Verdicts on pairs of rows: what is told apart, by which statement, and how it is said."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_tables import make_row

from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import estimate, holm
from iapo_bench.report.comparisons import compare as compare_rows
from iapo_bench.report.comparisons import (
    comparison_blocks,
    comparisons_figure,
    detectable_sentence,
    make_comparisons,
    undecided_with,
    verdict,
    worse_than,
)
from iapo_bench.report.document import markdown


def rows_of(*, train_seeds=(0,), spread=0.0, seed=0):
    """The base, a better and a like method, on problems that are hard or easy for all; the better one is shorter."""
    generator = np.random.default_rng(seed)
    hard_P = generator.beta(1, 1, 200)
    rows = []
    for name, shift, length in (("base", 0.0, 60.0), ("better", 0.06, 40.0), ("alike", 0.0, 60.0)):
        seeds = (0,) if name == "base" else train_seeds
        row = make_row(name, (1, 16, 32), 0.5 + shift, length, train_seeds=list(seeds))
        moved = hard_P + shift + spread * generator.standard_normal((len(seeds), 1, 1))
        correct = generator.binomial(32, np.clip(moved, 0, 1) + np.zeros((len(seeds), 2, 200)))
        tally = replace(row.tally, counts=row.tally.counts | {"correct": correct})
        rows.append(replace(row, tally=tally, summary=replace(row.summary, accuracy=float(correct.mean() / 32))))
    return rows


def pair(table: pd.DataFrame, measure: str, a: str, b: str) -> pd.Series:
    found = table[(table["measure"] == measure) & (table["a"] == a) & (table["b"] == b)]
    assert len(found) == 1
    return found.iloc[0]


def test_a_row_without_a_correct_answer_is_said_to_tell_nothing():
    base, better, _ = rows_of()
    counts = better.tally.counts | {"correct": 0 * better.tally.counts["correct"]}
    wrong = replace(better, tally=replace(better.tally, counts=counts))
    text = detectable_sentence(compare_rows([base, wrong]), "tokens_per_correct")
    assert text.endswith("could have been detected: too few problems, or correct answers.")


def test_every_pair_and_measure_once():
    table = compare_rows(rows_of())
    assert len(table) == 3 * 6
    assert list(dict.fromkeys(table["measure"])) == [
        *("pass@1", "pass@16", "pass@32"),
        *("length", "ratio@32", "tokens_per_correct"),
    ]


def test_a_pair_by_hand():
    rows = rows_of()
    found = pair(compare_rows(rows), "pass@1", "base", "better")
    shares_P = [row.tally.counts["correct"][0].mean(axis=0) / 32 for row in rows[:2]]
    wanted = estimate(shares_P[1][None], shares_P[0][None], seeds=False)
    assert found["difference"] == pytest.approx(np.mean(shares_P[1] - shares_P[0]))
    assert (found["checkpoints_lo"], found["checkpoints_hi"]) == pytest.approx(wanted.interval)
    assert found["checkpoints_p"] == pytest.approx(wanted.p)
    assert found["detectable"] == pytest.approx(wanted.detectable)
    assert found["checkpoints_verdict"] == "better is more accurate"
    assert pair(compare_rows(rows), "length", "base", "better")["checkpoints_verdict"] == "better is shorter"
    assert pair(compare_rows(rows), "pass@1", "base", "alike")["checkpoints_verdict"] == "not told apart"


def test_one_training_seed_says_nothing_of_methods():
    table = compare_rows(rows_of())
    assert set(table["methods_verdict"]) == {"not known"}
    assert table[["methods_lo", "methods_hi", "methods_p", "methods_p_holm"]].isna().all(axis=None)


def test_training_seeds_that_vary_undo_what_checkpoints_show():
    table = compare_rows(rows_of(train_seeds=(0, 1, 2), spread=0.15, seed=5))
    found = pair(table, "pass@1", "base", "better")
    assert found["checkpoints_verdict"] != "not told apart"
    assert found["methods_verdict"] == "not told apart"
    assert found["methods_hi"] - found["methods_lo"] > 2 * (found["checkpoints_hi"] - found["checkpoints_lo"])
    steady = pair(compare_rows(rows_of(train_seeds=(0, 1, 2))), "pass@1", "base", "better")
    assert steady["methods_verdict"] == "better is more accurate"


def test_holm_is_within_a_measure():
    table = compare_rows(rows_of())
    for _, pairs in table.groupby("measure"):
        assert pairs["checkpoints_p_holm"].tolist() == pytest.approx(holm(pairs["checkpoints_p"].tolist()))


def test_verdicts_name_the_better_row():
    assert verdict("pass@1", "a", "b", 0.1, 0.01) == "b is more accurate"
    assert verdict("pass@1", "a", "b", -0.1, 0.01) == "a is more accurate"
    assert verdict("length", "a", "b", -3, 0.01) == "b is shorter"
    assert verdict("tokens_per_correct", "a", "b", 3, 0.01) == "a is cheaper"
    assert verdict("pass@1", "a", "b", 0.1, 0.05) == "not told apart"
    assert verdict("pass@1", "a", "b", 0.1, float("nan")) == "not known"


def test_who_is_undecided_with_whom():
    table = compare_rows(rows_of())
    assert undecided_with(table, "pass@1", "base") == {"alike"}
    assert undecided_with(table, "pass@1", "better") == set()
    assert worse_than(table, "pass@1", "better") == {"base", "alike"}
    assert worse_than(table, "length", "better") == {"base", "alike"}, "longer is worse"
    assert worse_than(table, "pass@1", "base") == set()


def test_rows_of_other_problems_are_refused():
    rows = rows_of()
    other = replace(rows[1], tally=replace(rows[1].tally, problems=("q", *rows[1].tally.problems[1:])))
    with pytest.raises(UserError, match="differ in model, dataset, tier or problems"):
        compare_rows([rows[0], other])


def test_quotients_without_a_correct_answer_are_not_known():
    rows = rows_of()
    nothing = {"correct": np.zeros_like(rows[1].tally.counts["correct"])}
    mute = replace(rows[1], tally=replace(rows[1].tally, counts=rows[1].tally.counts | nothing))
    table = compare_rows([rows[0], mute, rows[2]])
    assert pair(table, "tokens_per_correct", "base", "better")["checkpoints_verdict"] == "not known"
    assert pair(table, "tokens_per_correct", "base", "alike")["checkpoints_p_holm"] <= 1
    assert "not known" in markdown(comparison_blocks(table))
    comparisons_figure(table)


def test_files(tmp_path):
    paths = []
    for row in rows_of():
        paths.append(tmp_path / f"{row.method}.json")
        row.write(paths[-1])
    make_comparisons(paths, out=tmp_path / "out" / "comparisons.csv", figure=tmp_path / "out" / "comparisons")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"comparisons.{suffix}" for suffix in ("csv", "html", "md", "png", "svg", "tex")]
    assert len(pd.read_csv(tmp_path / "out" / "comparisons.csv")) == 18
    text = (tmp_path / "out" / "comparisons.md").read_text()
    assert "| better against base  | +0.0" in text
    assert "Smallest true difference in Pass@1 that a pair's own test would find four times in five" in text
    assert "of these methods" not in text, "not known with one training seed"
    several = compare_rows(rows_of(train_seeds=(0, 1, 2), spread=0.05))
    said = re.findall(r"([\d.]+) \([\d. to]+\) of these", detectable_sentence(several, "pass@1"))
    assert said == [f"{several.loc[:2, name].median():.3f}" for name in ("detectable", "methods_detectable")]
    assert float(said[0]) < float(said[1])
    with pytest.raises(UserError, match="two rows"):
        make_comparisons(paths[:1], out=tmp_path / "x.csv", figure=tmp_path / "x")
    replace(row, dataset="other").write(paths[-1])
    with pytest.raises(UserError, match="two rows of each dataset"):
        make_comparisons(paths, out=tmp_path / "x.csv", figure=tmp_path / "x")
