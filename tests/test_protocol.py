"""The released protocol of evaluation, part by part, on completions made by hand."""

import numpy as np
import pandas as pd
import pytest

from iapo_bench.errors import UserError
from iapo_bench.report.document import markdown
from iapo_bench.report.protocol import (
    EVERYTHING,
    OURS,
    PARTS,
    Counted,
    arrange,
    count,
    first_chances,
    measure,
    order_chances,
    protocol_blocks,
    ranking_chances,
    read_run,
    with_protocols,
)
from iapo_bench.worlds.grading import make_grader


def counted(correct, tokens, *, cut_correct=None, exact=None, cut_tokens=None) -> Counted:
    """One sampling seed; what is not said is as under our protocol."""
    correct, tokens = np.array(correct, dtype=bool)[None], np.array(tokens, dtype=float)[None]
    cut = correct if cut_correct is None else np.array(cut_correct, dtype=bool)[None]
    exact = correct if exact is None else np.array(exact, dtype=bool)[None]
    return Counted(
        {(False, False): correct, (True, False): cut, (False, True): exact, (True, True): cut & exact},
        {False: tokens, True: tokens if cut_tokens is None else np.array(cut_tokens, dtype=float)[None]},
    )


def test_each_part_by_hand():
    """Two problems of four samples at k = 2."""
    run = counted(
        [[0, 0, 1, 1], [1, 1, 0, 0]],
        [[10, 10, 30, 30], [20, 20, 20, 20]],
        cut_correct=[[0, 0, 0, 0], [1, 1, 0, 0]],
        exact=[[0, 0, 1, 0], [1, 0, 0, 0]],
        cut_tokens=[[10, 10, 15, 15], [15, 15, 15, 15]],
    )
    # Unbiased at two correct of four: 1 - 1/6.
    assert run.cells((), 2) == pytest.approx((5 / 6, 20, 5 / 6 / 20))
    assert run.cells(("first-k",), 2) == pytest.approx((0.5, 15, 0.5 / 15))
    assert run.cells(("768 tokens",), 2) == pytest.approx((5 / 12, 13.75, 5 / 12 / 13.75))
    assert run.cells(("exact strings",), 2) == pytest.approx((0.5, 20, 0.5 / 20))
    assert run.cells(("first-k",), 2, np.array([1])) == pytest.approx((1, 20, 1 / 20))


def test_fifteen_problems_are_the_first_of_the_file():
    correct = [[1]] * 15 + [[0]] * 15
    run = counted(correct, [[10]] * 15 + [[50]] * 15)
    assert run.cells((), 1)[:2] == pytest.approx((0.5, 30))
    assert run.cells(("15 problems",), 1)[:2] == pytest.approx((1, 10))


def candidates() -> dict[str, list[Counted]]:
    """A has the better mean, B the best single run."""
    generator = np.random.default_rng(0)

    def run(share: float, tokens: float) -> Counted:
        return counted(generator.random((40, 8)) < share, np.full((40, 8), tokens))

    return {"a": [run(0.5, 20), run(0.5, 20)], "b": [run(0.5, 15), run(0.5, 60)]}


def test_choosing_on_the_reported_problems_turns_a_ranking_around():
    table = measure(candidates(), 4).set_index(["protocol", "method"])
    assert table.loc[(OURS, "a"), "rank"] == 1
    for protocol in ("chosen on the reported problems", EVERYTHING):
        assert table.loc[(protocol, "b"), "rank"] == 1
    assert table.loc[(OURS, "b"), "length"] == pytest.approx(37.5)
    assert table.loc[("chosen on the reported problems", "b"), "length"] == pytest.approx(15)
    assert set(table.index.get_level_values(0)) == {OURS, *PARTS, EVERYTHING}


def test_chances_of_rankings():
    """Equal methods come first equally often; one that is far better always does."""
    generator = np.random.default_rng(1)

    def run(share: float) -> list[Counted]:
        return [counted(generator.random((300, 4)) < share, np.full((300, 4), 10.0))]

    rankings = ranking_chances({"a": run(0.3), "b": run(0.3), "far": run(0.95)}, 2, draws=2000)
    assert rankings["chance"].sum() == pytest.approx(1)
    assert first_chances(rankings)["far"] == pytest.approx(1, abs=0.01)
    assert 0.25 < order_chances(rankings)["a", "b"] < 0.75
    assert rankings["chance"].is_monotonic_decreasing


def test_problems_stand_in_the_order_of_their_file():
    frame = pd.DataFrame(
        {
            "problem_id": ["b", "b", "a", "a"] * 2,
            "sample": [1, 0, 0, 1] * 2,
            "seed": [142] * 4 + [42] * 4,
            "value": range(8),
        }
    )
    assert arrange(frame, ["b", "a"], "value").tolist() == [[[5, 4], [6, 7]], [[1, 0], [2, 3]]]


def test_readers_see_ratios_ranks_and_chances():
    cells, rankings = measure(candidates(), 4), ranking_chances(candidates(), 4, draws=100)
    text = markdown(protocol_blocks(cells, rankings))
    assert "Ratio@4 and rank" in text
    assert "(1)" in text
    assert "a > b" in text or "b > a" in text


def test_completions_are_cut_with_their_prompts(tokenizer, world):
    """A context of 20 tokens: 12 of prompt leave 8, in which the second completion has no answer yet."""
    texts = ["<think> 1 + 1 = 2 </think> <answer> 2 </answer>", "<think> so 1 + 1 = 2 ; </think> <answer> 2 </answer>"]
    ids = [tokenizer(text).input_ids for text in texts]
    grades = pd.DataFrame(
        {
            "problem_id": ["p", "p"],
            "sample": [0, 1],
            "seed": 42,
            "text": texts,
            "n_tokens": [len(row) for row in ids],
            "outcome": "CORRECT",
        }
    )
    context = 12 + len(ids[0])
    with make_grader(world.grader) as grader:
        frame = with_protocols(grades, ids, {"p": "2"}, {"p": 12}, world.dialogue(tokenizer), grader, context=context)
        with pytest.raises(UserError, match="leaves no room in 12 tokens"):
            with_protocols(grades, ids, {"p": "2"}, {"p": 12}, world.dialogue(tokenizer), grader, context=12)
    assert frame["right"].tolist() == frame["exact"].tolist() == [True, True]
    assert frame["right_cut"].tolist() == frame["exact_cut"].tolist() == [True, False]
    assert frame["tokens_cut"].tolist() == [len(ids[0]), len(ids[0])]
    run = count(frame, ["p", "never asked"])
    assert run.cells(("768 tokens",), 1)[0] == 0.5


def test_grades_find_their_samples_in_any_order(tmp_path):
    rows = pd.DataFrame({"problem_id": ["a", "b", "c"], "sample": 0, "seed": 42})
    said = {"n_tokens": [1, 2, 3], "finish_reason": "stop", "outcome": "WRONG", "text": ["x", "y", "z"]}
    (tmp_path / "test").mkdir()
    rows.assign(**said).to_parquet(tmp_path / "test" / "grades.parquet")
    samples = rows.assign(token_ids=[[1], [2, 2], [3, 3, 3]])
    samples[::-1].to_parquet(tmp_path / "test" / "samples.parquet")
    grades, token_ids = read_run(tmp_path)
    assert [len(ids) for ids in token_ids] == grades["n_tokens"].tolist() == [1, 2, 3]
    samples[:2].to_parquet(tmp_path / "test" / "samples.parquet")
    with pytest.raises(UserError, match="grades and samples differ"):
        read_run(tmp_path)
    twice = pd.concat([rows.assign(**said)[:2], rows.assign(**said)[:1]])
    twice.to_parquet(tmp_path / "test" / "grades.parquet")
    with pytest.raises(UserError, match="more than once"):
        read_run(tmp_path)
