"""The statistics of the table, against enumeration, hand values and simulation."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Samples, Summary, Tally, first_k, pass_at_k, read_grades, summarise


def grades(correct, tokens=10, seeds=(42,), **columns) -> pd.DataFrame:
    """Grades of a (sampling seeds, problems, samples) array of correctness; `tokens` broadcasts to it."""
    correct = np.asarray(correct, dtype=bool)
    s, p, n = (index.ravel() for index in np.indices(correct.shape))
    return pd.DataFrame(
        {
            "problem_id": [f"p{i:04}" for i in p],
            "sample": n,
            "seed": np.asarray(seeds)[s],
            "n_tokens": np.broadcast_to(tokens, correct.shape).ravel(),
            "finish_reason": "stop",
            "outcome": np.where(correct.ravel(), "CORRECT", "WRONG"),
        }
        | columns
    )


@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(data):
    n = data.draw(st.integers(1, 8))
    k = data.draw(st.integers(1, n))
    counts = np.arange(n + 1)
    samples = np.arange(n) < counts[:, None]
    subsets = list(itertools.combinations(range(n), k))
    enumerated = [np.mean([row[list(subset)].any() for subset in subsets]) for row in samples]
    np.testing.assert_allclose(pass_at_k(n, counts, k), enumerated, rtol=1e-14)


def test_pass_at_k_by_hand():
    np.testing.assert_allclose(pass_at_k(4, np.array([0, 1, 2, 3, 4]), 2), [0, 1 / 2, 5 / 6, 1, 1], rtol=1e-15)
    assert pass_at_k(32, np.array([[8], [0]]), 1).tolist() == [[0.25], [0.0]]


def test_pass_at_k_does_not_cancel_for_many_samples():
    assert pass_at_k(100_000, np.array([1]), 1)[0] == 1e-5
    assert pass_at_k(2000, np.array([1]), 1000)[0] == 0.5


def test_too_few_samples_say_what_to_do():
    message = "k=32 needs at least 32 samples a problem, there are 16: raise n_samples or drop k"
    with pytest.raises(UserError, match=message):
        pass_at_k(16, np.array([1]), 32)
    with pytest.raises(UserError, match=message):
        summarise({0: grades(np.ones((1, 2, 16)))}, [2, 32])
    with pytest.raises(UserError, match="at least 1"):
        pass_at_k(16, np.array([1]), 0)
    with pytest.raises(ValueError, match=r"0\.\.16"):
        pass_at_k(16, np.array([17]), 2)


def test_first_k_looks_at_the_first_k_only():
    correct = np.array([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    assert first_k(correct, 2).tolist() == [0, 1, 0]
    assert first_k(correct, 3).tolist() == [1, 1, 0]
    with pytest.raises(UserError, match="k=5"):
        first_k(correct, 5)
    summary = summarise({0: grades([correct])}, [2], estimator="first_k")
    assert summary.cells["pass@2"].mean == pytest.approx(1 / 3)


def test_cells_by_hand():
    correct = [[[1, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 1]]]  # two sampling seeds, two problems, three samples
    tokens = [[[10, 20, 90], [30, 40, 90]], [[20, 20, 90], [20, 20, 90]]]
    frame = grades(correct, tokens, seeds=(42, 142)).sample(frac=1, random_state=0)
    cells = summarise({0: frame}, [2]).cells
    passes, lengths = np.array([(2 / 3 + 0) / 2, (1 + 2 / 3) / 2]), np.array([280, 260]) / 6  # over all samples
    for key, runs in {"pass@2": passes, "length@2": lengths, "ratio@2": passes / lengths}.items():
        assert cells[key].mean == pytest.approx(runs.mean()), key
        assert cells[key].std == pytest.approx(abs(runs[0] - runs[1]) / 2), f"{key}: population std"


def test_counts():
    outcomes = ["CORRECT", "WRONG", "UNPARSEABLE", "TIMEOUT", "ERROR", "CORRECT", "WRONG", "WRONG"]
    frame = grades(np.zeros((1, 2, 4)), outcome=outcomes, finish_reason=["length"] * 2 + ["stop"] * 6)
    summary = summarise({0: frame, 1: frame}, [1])
    assert summary.outcomes == {"CORRECT": 4, "WRONG": 6, "UNPARSEABLE": 2, "TIMEOUT": 2, "ERROR": 2}
    assert (summary.accuracy, summary.truncated) == (0.25, 0.25)
    assert (summary.n_problems, summary.n_samples, summary.train_seeds, summary.ks) == (2, 4, [0, 1], [1])


def test_summary_survives_json():
    summary = summarise({3: grades(np.eye(4)[None], seeds=(7,))}, [1, 2])
    assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
    with pytest.raises(KeyError, match="truncated"):
        Summary.from_dict({key: value for key, value in summary.to_dict().items() if key != "truncated"})


def simulate(generator, problems, samples, train_seeds=1, spread=0.0) -> dict[int, pd.DataFrame]:
    """Grades of problems of random difficulty and length, with an effect of the training seed on both."""
    chance, length = generator.beta(1, 2, (problems, 1)), generator.uniform(20, 100, (problems, 1))
    runs = {}
    for train_seed in range(train_seeds):
        effect = spread * generator.standard_normal()
        correct = generator.random((1, problems, samples)) < np.clip(chance + effect, 0, 1)
        runs[train_seed] = grades(correct, np.ceil(length * (1 + effect) * generator.uniform(0.8, 1.2, correct.shape)))
    return runs


def test_intervals_cover_the_truth_19_times_in_20():
    generator = np.random.default_rng(0)
    truth = summarise(simulate(generator, 20_000, 4), [2]).cells
    covered = dict.fromkeys(truth, 0)
    for _ in range(300):
        cells = summarise(simulate(generator, 60, 4), [2]).cells
        for key, cell in cells.items():
            covered[key] += cell.lo <= truth[key].mean <= cell.hi
    # 285 of 300 expected, three standard deviations are 11.
    assert all(274 <= count <= 296 for count in covered.values()), covered


def test_ratio_interval_is_joint():
    """Problems whose accuracy goes with their length: the ratio varies less than its parts suggest."""
    length = np.repeat(np.arange(1, 101), 4).reshape(1, 100, 4)
    correct = np.arange(4) < np.ceil(length / 25)
    cells = summarise({0: grades(correct, length)}, [1]).cells
    width = {key: (cell.hi - cell.lo) / cell.mean for key, cell in cells.items()}
    assert width["ratio@1"] < width["pass@1"] / 2


def test_training_seeds_are_redrawn():
    generator = np.random.default_rng(1)
    runs = simulate(generator, 400, 4, train_seeds=3, spread=0.1)
    widths = [summarise(r, [2]).cells["length@2"] for r in ({0: runs[0]}, dict.fromkeys(range(3), runs[0]), runs)]
    one, same, several = (cell.hi - cell.lo for cell in widths)
    assert same == pytest.approx(one, rel=0.1), "equal training seeds add nothing"
    assert several > 1.5 * one, "differing training seeds widen the interval"


def test_same_seed_same_summary():
    runs = simulate(np.random.default_rng(2), 50, 4, train_seeds=2)
    assert summarise(runs, [1, 4]) == summarise(runs, [4, 1, 1])
    shuffled = {seed: frame.sample(frac=1, random_state=seed) for seed, frame in runs.items()}
    assert summarise(shuffled, [1, 4]) == summarise(runs, [1, 4]), "the order of rows means nothing"


GOOD = grades(np.eye(3)[None])
BAD = {
    "a sample is missing": (GOOD.drop(index=4), "p0001.* has 2 samples for seed 42"),
    "samples are numbered from 1": (GOOD.assign(sample=GOOD["sample"] + 1), "has 3 samples .* 0 to 3"),
    "a sample number is negative": (GOOD.assign(sample=GOOD["sample"].replace({0: -1})), "expected samples 0 to 2"),
    "a row is there twice": (pd.concat([GOOD, GOOD.iloc[[5]]]), "'p0001', seed 42, sample 2 .* more than once"),
    "a seed lacks a problem": (
        pd.concat([GOOD, GOOD[GOOD["problem_id"] != "p0002"].assign(seed=142)]),
        "p0002.* has 0 samples for seed 142",
    ),
    "an outcome is unknown": (GOOD.assign(outcome="RIGHT"), "unknown outcome 'RIGHT'.*CORRECT"),
    "a problem is missing": (
        GOOD.assign(problem_id=GOOD["problem_id"].replace({"p0001": None})),
        "has no problem_id",
    ),
    "a lenient outcome is unknown": (GOOD.assign(outcome_lenient="RIGHT"), "unknown outcome_lenient 'RIGHT'"),
    "an outcome is missing": (GOOD.assign(outcome=None), "unknown outcome"),
    "a finish reason is unknown": (GOOD.assign(finish_reason="eos"), "unknown finish_reason 'eos'"),
    "a completion is empty": (GOOD.assign(n_tokens=0), "no tokens"),
    "there are no rows": (GOOD.iloc[:0], "no grades"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_grades_are_refused(case):
    frame, message = BAD[case]
    with pytest.raises(UserError, match=message):
        summarise({0: frame}, [1])


def test_runs_that_cannot_be_averaged_are_refused():
    with pytest.raises(UserError, match="no grades"):
        summarise({}, [1])
    other = GOOD.assign(problem_id=GOOD["problem_id"] + "x")
    for frame in (other, GOOD.assign(seed=1), grades(np.ones((1, 3, 4)))):
        with pytest.raises(UserError, match="training seeds 0 and 5 differ"):
            summarise({0: GOOD, 5: frame}, [1])


def test_read_grades(tmp_path):
    path = tmp_path / "grades.parquet"
    with pytest.raises(UserError, match="grade first"):
        read_grades(path)
    GOOD.to_parquet(path)
    assert summarise({0: read_grades(path)}, [1]) == summarise({0: GOOD}, [1])
    GOOD.drop(columns="seed").to_parquet(path)
    with pytest.raises(UserError, match="no column 'seed'"):
        read_grades(path)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"cannot be read \(.*grade again"):
        read_grades(path)


def test_only_what_is_measured_is_read(tmp_path):
    path = tmp_path / "grades.parquet"
    GOOD.assign(text="a long text", outcome_lenient="CORRECT").to_parquet(path)
    frame = read_grades(path)
    assert "text" not in frame
    assert (
        frame.memory_usage(index=False, deep=True).drop(["problem_id", "finish_reason", "outcome"]).max() < 8 * 9 + 300
    )
    assert summarise({0: frame}, [1]) == summarise({0: GOOD}, [1]), "whatever the dictionaries of the file"
    back = GOOD.iloc[::-1]
    back.to_parquet(path)
    mixed = {0: read_grades(path), 1: GOOD}
    assert summarise(mixed, [1]).train_seeds == [0, 1], "the order of problems in a file means nothing"


def test_tallies_give_the_measures_and_survive_their_file(tmp_path):
    runs = simulate(np.random.default_rng(3), 30, 4, train_seeds=3, spread=0.1)
    runs = {
        seed: frame.assign(formatted=frame["sample"] > 0, outcome_lenient="CORRECT") for seed, frame in runs.items()
    }
    samples = Samples.of(runs)
    summary, tally = samples.summary([1, 4]), samples.tally()
    for measure, key in {"pass@4": "pass@4", "length": "length@4", "ratio@4": "ratio@4"}.items():
        assert tally.values(measure).mean() == pytest.approx(summary.cells[key].mean), measure
    every = pd.concat(runs.values())
    correct, seeds = every["outcome"] == "CORRECT", np.repeat(list(runs), 120)
    by_seed = every["n_tokens"].groupby(seeds).sum() / correct.groupby(seeds).sum()
    assert tally.values("tokens_per_correct").mean(axis=1) == pytest.approx(by_seed.to_numpy())
    assert (tally.rate("formatted"), summary.format_rate, tally.rate("lenient")) == (0.75, 0.75, 1.0)
    assert (tally.values("lenient@4") == 1).all()
    tally.to_parquet(tmp_path / "counts.parquet")
    again = Tally.from_parquet(tmp_path / "counts.parquet")
    assert (again.problems, again.train_seeds) == (tally.problems, (0, 1, 2))
    assert all((again.counts[name] == tally.counts[name]).all() for name in tally.counts)
    (tmp_path / "counts.parquet").write_text("no")
    with pytest.raises(UserError, match="measure again"):
        Tally.from_parquet(tmp_path / "counts.parquet")


def test_quotients_without_a_correct_answer_are_not_known():
    tally = Samples.of({0: grades(np.zeros((1, 2, 3)))}).tally()
    assert np.isnan(tally.values("tokens_per_correct")).all()
    assert tally.values("ratio@1").tolist() == [[0, 0]]
    assert np.isnan(tally.values("lenient@1")).all(), "the grades have no lenient outcome"
