"""What the base can do untrained: controls by enumeration, methods against them, and what rows cost."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_metrics import grades
from test_tables import make_row

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Samples, summarise
from iapo_bench.report.accuracy_length import accuracy_length
from iapo_bench.report.comparisons import NOT_KNOWN, UNDECIDED, compare, comparison_blocks
from iapo_bench.report.controls import cut, cut_values, make_controls, shortest, shortest_values
from iapo_bench.report.costs import aes, cost_blocks, cost_frame, make_costs, ockscore
from iapo_bench.report.document import markdown
from iapo_bench.report.frontier import against_controls, controls, frontier_blocks, frontier_figure, make_frontier
from iapo_bench.report.paired import paired_figure
from iapo_bench.report.rows import read_rows
from iapo_bench.report.table1 import table_blocks
from iapo_bench.report.wallclock import PHASES


def base_grades(problems=30, samples=8, seed=0) -> pd.DataFrame:
    """Short completions are right more often."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(10, 60, (2, problems, samples))
    correct = generator.random(tokens.shape) < np.where(tokens < 35, 0.7, 0.3)
    return grades(correct, tokens, seeds=(42, 142), formatted=True, outcome_lenient="CORRECT")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("problems", "right"), [(1, [1, 0]), (3, [0, 0])])
def test_extremes_are_drawn_and_told(problems, right):
    """One problem says nothing of others; all wrong at equal length leaves nothing to tell apart."""
    frame = grades(np.tile(right, (1, problems, 1)), np.full((1, problems, 2), 20))
    samples = Samples.of({0: frame})
    rows = [
        replace(make_row(name, (1, 2)), summary=samples.summary([1, 2]), tally=samples.tally())
        for name in ("base", "iapo")
    ]
    pairs, (curve, values) = compare(rows), controls(samples)
    for figure in (accuracy_length(rows), paired_figure(rows), frontier_figure(rows, curve)):
        figure.canvas.draw()
    assert set(pairs.query("measure == 'pass@1'")["checkpoints_verdict"]) == {NOT_KNOWN if problems == 1 else UNDECIDED}
    costs = cost_blocks(rows, cost_frame(read_tier("micro").costs_job(), rows[:1], {}))
    beaten = frontier_blocks(rows, against_controls(rows, curve, values))
    text = markdown([*table_blocks(rows), *comparison_blocks(pairs), *beaten, *costs])
    assert not re.findall(r".*\b(?:nan|inf)\b.*", text)


def test_cut_by_hand():
    frame = grades([[[1, 1, 0], [1, 0, 0]]], [[[10, 30, 20], [21, 20, 5]]], formatted=True, outcome_lenient="CORRECT")
    found = cut(frame, 20)
    assert found["n_tokens"].tolist() == [10, 20, 20, 20, 20, 5]
    assert found["outcome"].tolist() == ["CORRECT", "UNPARSEABLE", "WRONG", "UNPARSEABLE", "WRONG", "WRONG"]
    assert found["finish_reason"].tolist() == ["stop", "length", "stop", "length", "stop", "stop"]
    assert found["formatted"].tolist() == [True, False, True, False, True, True]
    assert found["outcome_lenient"].tolist() == ["CORRECT", "UNPARSEABLE", "CORRECT", "UNPARSEABLE"] + 2 * ["CORRECT"]
    assert frame["outcome"].tolist().count("UNPARSEABLE") == 0, "the base's own grades are left alone"


def test_shortest_by_hand():
    frame = grades([[[1, 0, 0, 1, 1]]], [[[30, 20, 9, 9, 1]]])
    found = shortest(frame.sample(frac=1, random_state=0), 2)
    assert found.sort_values("sample")[["sample", "n_tokens", "outcome"]].to_numpy().tolist() == [
        [0, 20, "WRONG"],
        [1, 9, "WRONG"],
    ], "the first of equals; the fifth sample is left over"
    with pytest.raises(UserError, match="shortest-of-6"):
        shortest(frame, 6)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_the_curve_averages_over_all_subsets(n):
    samples = Samples.of({0: base_grades(problems=3)})
    tokens_SPN, correct_SPN = samples.tokens_TSPN[0], samples.flags["correct"][0]
    length_P, correct_P = shortest_values(tokens_SPN, correct_SPN, n)
    for p in range(3):
        found = []
        for s, subset in itertools.product(range(2), itertools.combinations(range(8), n)):
            first = min(subset, key=lambda i, s=s: tokens_SPN[s, p, i])
            found.append((tokens_SPN[s, p, first], correct_SPN[s, p, first]))
        lengths = np.mean([length for length, _ in found])
        assert length_P[p] == pytest.approx(lengths)
    ties = [len(set(row)) < 8 for row in tokens_SPN.reshape(-1, 8)]
    if not any(ties):
        assert correct_P[p] == pytest.approx(np.mean([right for _, right in found]))
    assert shortest_values(tokens_SPN, correct_SPN, 1)[1] == pytest.approx(correct_SPN.mean(axis=(0, 2)))


def test_the_curve_of_cuts_is_what_cut_grades_measure():
    frame = base_grades()
    samples = Samples.of({0: frame})
    length_P, correct_P = cut_values(samples.tokens_TSPN[0], samples.flags["correct"][0], 30)
    cells = summarise({0: cut(frame, 30)}, [1]).cells
    assert (length_P.mean(), correct_P.mean()) == pytest.approx((cells["length@1"].mean, cells["pass@1"].mean))


def test_controls_are_rows(tmp_path):
    base_grades().to_parquet(tmp_path / "grades.parquet")
    tier = read_tier("micro", {"evaluate": {"ks": [1, 2, 8], "n_samples": 8}})
    make_controls(tier.row_job("base"), tmp_path / "grades.parquet", tmp_path / "summaries")
    cut_row, shortest_row = read_rows([tmp_path / "summaries" / f"base_{name}.json" for name in ("cut", "shortest")])
    assert cut_row.selection.startswith("control: cut after ")
    assert not cut_row.trained
    assert (cut_row.summary.ks, shortest_row.summary.ks) == ([1, 2, 8], [1, 2])
    assert shortest_row.summary.cells["length@1"].mean < summarise({0: base_grades()}, [1]).cells["length@1"].mean


def method_of(frame: pd.DataFrame, name: str, ks=(1, 8)):
    samples = Samples.of({0: frame})
    row = make_row(name, (1, 8), train_seeds=[0])
    return replace(row, summary=samples.summary(ks), tally=samples.tally())


def test_methods_against_early_stopping():
    frame = base_grades(problems=100)
    curve, values = controls(Samples.of({0: frame}))
    better = frame.assign(n_tokens=(frame["n_tokens"] * 0.6).astype(int), outcome="CORRECT")
    worse = frame.assign(n_tokens=np.maximum(frame["n_tokens"] // 2, 12), outcome="WRONG")
    speechless = frame.assign(n_tokens=1)
    made = {"better": better, "same": shortest(frame, 8), "worse": worse, "speechless": speechless}
    table = against_controls([method_of(frame, name, [1]) for name, frame in made.items()], curve, values)
    assert table["verdict"].tolist() == [
        "beats early stopping",
        "not told apart from early stopping",
        "is beaten by early stopping",
        "not known",
    ]
    assert (table["control_length"] <= table["length"])[:3].all()
    assert table["control"].iloc[1] == "base, the shortest of 8"
    found = table.iloc[0]
    able = curve[curve["length"] <= found["length"]]
    assert found["control_pass@1"] == able["pass@1"].max()
    assert found["difference"] == pytest.approx(1 - found["control_pass@1"])


def test_frontier_files(tmp_path):
    base_grades().to_parquet(tmp_path / "grades.parquet")
    paths = []
    for name, frame in (("base", base_grades()), ("iapo", base_grades(seed=1))):
        paths.append(tmp_path / f"{name}.json")
        method_of(frame, name).write(paths[-1])
    make_frontier(paths, tmp_path / "grades.parquet", out=tmp_path / "frontier.csv", figure=tmp_path / "frontier")
    assert "About these checkpoints alone" in (tmp_path / "frontier.md").read_text()
    kinds = pd.read_csv(tmp_path / "frontier.csv")["kind"].value_counts()
    assert (kinds["method"], kinds["shortest"]) == (1, 4)
    assert (tmp_path / "frontier.svg").read_text().count(">iapo</text>") == 1
    nowhere = {"out": tmp_path / "x.csv", "figure": tmp_path / "x"}
    with pytest.raises(UserError, match="give a method's summary too"):
        make_frontier(paths[:1], tmp_path / "grades.parquet", **nowhere)
    for frame, said in (
        (base_grades(seed=1), "that the base's summary counts"),
        (base_grades(problems=4), "different"),
    ):
        frame.to_parquet(tmp_path / "grades.parquet")
        with pytest.raises(UserError, match=said):
            make_frontier(paths, tmp_path / "grades.parquet", **nowhere)


def test_scores_by_hand():
    assert aes(0.6, 50, 0.5, 100) == pytest.approx(0.5 + 3 * 0.2)
    assert aes(0.4, 50, 0.5, 100) == pytest.approx(0.5 - 5 * 0.2)
    assert np.isnan(aes(0.4, 50, 0.0, 100))
    assert ockscore(0.5, 10_000) == pytest.approx(50 - 10 * np.log10(2))


STEP = {
    **{"completions": 8, "tokens": 300, "tokens_trained": 200, "updates": 2, "updates_moved": 1},
    **{f"seconds_{phase}": 1.5 * (phase == "update") for phase in PHASES},
}


def test_costs(tmp_path):
    rows = [make_row("base", accuracy=0.4, length=60), make_row("iapo")]
    runs = {}
    for seed in (0, 1):
        runs[f"iapo/{seed}"] = tmp_path / str(seed)
        runs[f"iapo/{seed}"].mkdir()
        (tmp_path / str(seed) / "train.jsonl").write_text(3 * (json.dumps(STEP) + "\n"))
    tier = read_tier("micro", {"train": {"completions": 100}})
    logs = {"iapo": [folder / "train.jsonl" for folder in runs.values()]}
    frame = cost_frame(tier.costs_job(), rows, logs)
    base, iapo = frame.iloc[0], frame.iloc[1]
    assert iapo[["updates", "updates_moved", "tokens_trained", "completions", "tokens"]].tolist() == [
        12,
        6,
        1200,
        48,
        1800,
    ]
    assert (iapo["trials"], iapo["completions_with_tuning"], iapo["seconds"]) == (3, 48 + 3 * 100, 9.0)
    assert base[["updates", "tokens"]].isna().all()
    counts = rows[1].tally.counts
    assert iapo["tokens_per_correct"] == pytest.approx(counts["tokens"].sum() / counts["correct"].sum(), rel=1e-3)
    assert iapo["aes"] == pytest.approx(aes(iapo["pass@1"], iapo["length"], base["pass@1"], base["length"]))
    text = markdown(cost_blocks(rows, frame))
    assert "6 of 12" in text
    assert "lenient" not in text.split("Efficiency")[0].split("|")[1], "the grades have no lenient outcome"
    lenient = {"lenient": np.full_like(counts["correct"], 32)}
    both = [rows[0], replace(rows[1], tally=replace(rows[1].tally, counts=counts | lenient))]
    assert "| 1.000     |" in markdown(cost_blocks(both, cost_frame(tier.costs_job(), both, logs)))
    with pytest.raises(UserError, match="give one per seed"):
        cost_frame(tier.costs_job(), rows, {"iapo": logs["iapo"][:1]})
    twice = tmp_path / "twice.jsonl"
    twice.write_text("".join(json.dumps({"step": step, **STEP}) + "\n" for step in (0, 1, 1)))
    with pytest.raises(UserError, match="steps must be 0, 1, 2"):
        cost_frame(tier.costs_job(), rows, {"iapo": [*logs["iapo"][:1], twice]})
    paths = [tmp_path / f"{row.method}.json" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        row.write(path)
    make_costs(tier.costs_job(), paths, runs, out=tmp_path / "costs.csv")
    assert sorted(path.suffix for path in tmp_path.glob("costs.*")) == [".csv", ".html", ".md", ".tex"]


def test_costs_of_a_table_in_which_nothing_was_trained(run, tmp_path):
    make_row("base").write(tmp_path / "base.json")
    files = ("--summary", tmp_path / "base.json", "--out", tmp_path / "costs.csv")
    code, said = run("costs", "--config", "authors", *files)
    assert code == 0, said
    assert (tmp_path / "costs.md").is_file()


def test_a_method_that_was_not_tuned_has_no_trials():
    tier = read_tier("micro", {"methods": ["iapo_ni", "gfpo", "grpo"]})
    assert tier.costs_job().trials == {"iapo": 3, "gfpo": 3, "grpo": 0}, "a variant has its method's"


def test_an_untuned_tier_has_no_trials(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(STEP) + "\n")
    tier = read_tier("smoke")
    row = make_row("iapo", train_seeds=[0])
    found = cost_frame(tier.costs_job(), [row], {"iapo": [tmp_path / "train.jsonl"]}).iloc[0]
    assert (found["trials"], found["completions_with_tuning"]) == (0, 8)
