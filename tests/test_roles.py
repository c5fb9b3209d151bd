"""Scores against the known roles of tokens: AUCs and counts by hand, the figure, what the workflow makes."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from project_copy import copy_project, snakemake

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.tokens.roles import (
    ROLES,
    SCORES,
    auc_table,
    completion_aucs,
    count_roles,
    reasoned,
    role_table,
    roles_of,
    select,
)
from iapo_bench.tokens.roles_figure import informativeness_roles
from iapo_bench.worlds.datasets.micro import VOCABULARY

ROOT = Path(__file__).parent.parent
REDUNDANT = ROLES[1:]
TRACE = "<think> so 7 + 8 = 1 5 ; check 7 + 8 = 1 5 ok ; we have 1 5 ; </think> <answer> 1 5 </answer> <eos>"


WORDS = TRACE.split()


def ids(words: str) -> list[int]:
    return [VOCABULARY.index(word) for word in words.split()]


def make_tokens(*completions: tuple[str, int, str, list[float]]) -> pd.DataFrame:
    """Ranked tokens: problem, sample, a letter a token (needed, filler, check, restatement), and every score alike."""
    roles = {role[0]: role for role in ROLES}
    return pd.DataFrame(
        [
            {"problem_id": problem, "sample": sample, "position": i, "role": roles[letter], "ranked": True}
            | {column: value for column in SCORES.values() if column != "position"}
            for problem, sample, letters, values in completions
            for i, (letter, value) in enumerate(zip(letters, values, strict=True))
        ]
    )


def aucs(tokens: pd.DataFrame, others=REDUNDANT, column: str = "information") -> list[float]:
    return completion_aucs(tokens, column, others)["auc"].tolist()


@pytest.mark.parametrize(
    ("letters", "values", "auc"),
    [
        ("nf", [1, 0], 1.0),
        ("nf", [0, 1], 0.0),
        ("nf", [1, 1], 0.5),
        ("nnff", [3, 1, 2, 0], 0.75),
        ("nnfc", [2, 1, 1, 0], 0.875),
        ("nf", [1e-7, 0], 0.5),  # rounding
    ],
)
def test_auc_by_hand(letters, values, auc):
    assert aucs(make_tokens(("a", 0, letters, values))) == [auc]


def test_tokens_are_ranked_within_their_completion_only():
    tokens = make_tokens(("a", 0, "nf", [1, 0]), ("a", 1, "nf", [101, 100]), ("b", 0, "nf", [50, 60]))
    assert aucs(tokens) == [1.0, 1.0, 0.0]


def test_completions_of_one_class_are_left_out():
    tokens = make_tokens(("a", 0, "nn", [1, 0]), ("a", 1, "ff", [1, 0]), ("b", 0, "nfc", [1, 0, 2]))
    assert aucs(tokens) == [0.5]
    assert aucs(tokens, ["filler"]) == [1.0]
    assert aucs(tokens, ["restatement"]) == []
    table = auc_table(tokens).set_index(["score", "needed_against"])
    row = table.loc[("early_exit", "redundant")]
    assert row[["auc", "n_needed", "n_other", "completions", "problems"]].tolist() == [0.5, 1, 2, 1, 1]
    none = table.loc[("early_exit", "restatement")]
    assert none[["auc", "auc_lo", "auc_hi"]].isna().all()
    assert none[["n_needed", "n_other", "completions", "problems"]].tolist() == [0, 0, 0, 0]


def test_auc_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("nfcr"), size=40))
    values = rng.integers(0, 8, size=40).tolist()  # with ties
    tokens = make_tokens(("a", 0, letters, values))
    for others in (REDUNDANT, ("check",)):
        low = [v for letter, v in zip(letters, values, strict=True) if letter in {role[0] for role in others}]
        high = [v for letter, v in zip(letters, values, strict=True) if letter == "n"]
        pairs = [(n > o) + (n == o) / 2 for n, o in itertools.product(high, low)]
        assert aucs(tokens, others) == [pytest.approx(np.mean(pairs))]


def test_position_ranks_later_tokens_higher():
    table = auc_table(make_tokens(("a", 0, "nf", [1, 0]))).set_index(["score", "needed_against"])
    assert table.loc[("position", "redundant"), "auc"] == 0.0
    assert set(table.index.get_level_values("score")) == set(SCORES)


def test_intervals_are_over_problems():
    """Many samples of one problem are one problem: nothing is left to vary."""
    one = auc_table(make_tokens(*(("a", i, "nf", [i % 2, 0.5]) for i in range(20)))).iloc[0]
    assert one["auc"] == one["auc_lo"] == one["auc_hi"] == 0.5
    many = auc_table(make_tokens(*((f"p{i}", 0, "nf", [i % 2, 0.5]) for i in range(20)))).iloc[0]
    assert many["auc"] == 0.5
    assert 0.2 < many["auc_lo"] < 0.4 < 0.6 < many["auc_hi"] < 0.8


def test_only_what_is_reasoned_is_ranked():
    flags = dict(zip(enumerate(WORDS), reasoned(WORDS), strict=True))
    inside = WORDS.index("</think>")
    assert all(flag == (0 < i < inside) for (i, _), flag in flags.items())
    assert reasoned(["<think>", "1", "<answer>", "1", "</think>", "2"]) == [False, True, False, False, False, False]
    assert reasoned(["1", "<pad>", "<unk>", ";"]) == [True, False, False, True]
    tokens = make_tokens(("a", 0, "nfn", [1, 2, 3])).assign(ranked=[True, True, False])
    assert aucs(tokens) == [0.0], "the last, needed and highest, does not count"


def test_role_counts_of_a_trace_written_by_hand():
    assert roles_of(["<think>", "check", "1", "<eos>"])[-1] == "needed"
    frame = pd.DataFrame({"problem_id": ["a", "b"], "token_ids": [ids(TRACE), ids("<think> so </think>")]})
    counts = count_roles(frame)
    assert counts.loc[0, list(ROLES)].tolist() == [14, 1, 9, 5]
    assert counts.loc[1, list(ROLES)].tolist() == [2, 1, 0, 0]


def counted(needed: list[int], filler: list[int], problems: str = "aabb") -> pd.DataFrame:
    return pd.DataFrame(
        {"problem_id": list(problems), "needed": needed, "filler": filler, "check": 0, "restatement": 0}
    )


def test_change_against_the_base():
    base, run = counted([10, 10, 20, 20], [4, 4, 4, 4]), counted([10, 10, 20, 20], [1, 1, 3, 3])
    table = role_table(run, base).set_index("role")
    assert table["tokens"].tolist() == [15, 2, 0, 0, 17]
    assert table["change"].tolist()[:2] == [0, -0.5]
    assert table["change"].isna().tolist() == [False, False, True, True, False]
    assert table.loc["needed", ["change_lo", "change_hi"]].tolist() == [0, 0], "problems are paired"
    assert table.loc["filler", ["change_lo", "change_hi"]].tolist() == [-0.75, -0.25]
    assert table.loc["needed", ["tokens_lo", "tokens_hi"]].tolist() == [10, 20]
    assert table["completions"].tolist() == [4] * 5
    assert role_table(base, None)["change"].isna().all()
    with pytest.raises(UserError, match="different problems"):
        role_table(counted([1] * 4, [1] * 4, "aacc"), base)


def test_select_takes_the_first_samples_of_every_problem_and_one_sampling_seed():
    rows = [(seed, problem, i) for seed in (42, 7) for problem in "abc" for i in range(4)]
    frame = pd.DataFrame(rows, columns=["seed", "problem_id", "sample"])
    chosen = select(frame, 7)
    assert chosen.to_numpy().tolist() == [[42, problem, i] for problem in "abc" for i in range(2)]
    assert select(frame, 2)["problem_id"].tolist() == ["a", "b"]
    assert len(select(frame, 1000)) == 12


def test_the_figure_shows_every_run_score_and_role(tmp_path):
    scores = make_tokens(("a", 0, "nfnf", [2, 0, 1, 1]), ("b", 0, "ffnn", [2, 0, 1, 1]))
    names = [("base", ""), ("grpo", "0"), ("iapo", "0"), ("iapo", "1")]
    labels = [{"model": "small", "dataset": "micro", "method": m, "train_seed": s} for m, s in names]
    counts = role_table(counted([10] * 4, [4] * 4), None)
    figure = informativeness_roles(
        pd.concat([auc_table(scores).assign(**label) for label in labels], ignore_index=True),
        pd.concat([counts.assign(**label) for label in labels], ignore_index=True),
    )
    figure.canvas.draw()
    found = [text.get_text() for text in figure.findobj(Text)]
    for word in ("base", "grpo", "iapo", *ROLES, "14.0", "early exit,\nstatement", "needed against filler"):
        assert word in found, word
    left, filler, right = figure.axes
    assert [bar.get_width() for bar in right.containers[0]] == [10] * 3
    assert left.get_ylim() == filler.get_ylim()
    assert 0.5 in [line.get_ydata()[0] for line in left.lines]
    drawn = [line for line in left.lines if line.get_label() == "base"]
    assert [line.get_ydata()[0] for line in drawn] == pytest.approx([0.6875] * 4 + [0.625])
    # A point and an entry of the legend for a method, and a tick for each of its runs.
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "grpo", "iapo"]
    ticks = [line for line in left.lines if line.get_marker() == "_"]
    assert [len(tick.get_ydata()) for tick in ticks] == [2] * 5, "of the method with two seeds"


def test_the_workflow_makes_them_for_the_micro_world_only(tmp_path):
    folder = copy_project(tmp_path)

    def dry_run(*arguments: str) -> str:
        shown = snakemake(folder, "-n", *arguments, timeout=300)
        assert shown.returncode == 0, shown.stderr
        return shown.stdout + shown.stderr

    micro = dry_run()
    runs = 1 + 5 * len(read_tier("micro").train.seeds)
    assert re.search(rf"token_roles +{runs}\n", micro), "the base, and five methods"
    for name in ("informativeness.tex", "roles.csv", "roles.html", "figures/informativeness.png"):
        assert f"results/{name}" in micro
    other = dry_run("--configfile", "configs/smollm2.yaml")
    assert "wallclock" in other
    assert "roles" not in other
    assert "informativeness" not in other
