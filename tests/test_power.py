"""The power calculation: what it takes from a pilot, and how a design moves it."""

from dataclasses import replace

import pytest
from test_comparisons import rows_of

from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import estimate
from iapo_bench.plan.power import power


@pytest.fixture
def pilot(tmp_path):
    rows = rows_of(train_seeds=(0, 1, 2), spread=0.03)
    paths = [tmp_path / f"{row.name}.json" for row in rows]
    for row, path in zip(rows, paths, strict=True):
        row.write(path)
    return rows, paths


def design(found: list[dict], **sizes) -> dict:
    (row,) = [row for row in found if all(row[name] == size for name, size in sizes.items())]
    return row


def test_the_pilots_own_design_has_its_comparisons_power(pilot):
    rows, paths = pilot
    better, alike = (row.tally.values("pass@1") for row in rows[1:])
    row = design(power(paths, [200]), train_seeds=3, samples=64)
    assert row["pass@1 checkpoints"] == pytest.approx(estimate(alike, better, seeds=False).detectable, abs=1e-4)
    assert row["pass@1 methods"] == pytest.approx(estimate(alike, better, seeds=True).detectable, abs=1e-4)
    assert row["pass@1 methods"] > row["pass@1 checkpoints"]


def test_four_times_the_problems_halve_what_is_detectable_of_checkpoints_only(pilot):
    found = power(pilot[1], [200, 800])
    few, many = (design(found, train_seeds=3, samples=64, problems=problems) for problems in (200, 800))
    assert many["pass@1 checkpoints"] == pytest.approx(few["pass@1 checkpoints"] / 2, rel=0.02)
    assert many["pass@1 methods"] > 0.6 * few["pass@1 methods"]


def test_more_samples_and_seeds_detect_less_and_one_seed_knows_no_method(pilot):
    found = power(pilot[1], [200])
    one, two = (design(found, train_seeds=1, samples=samples) for samples in (32, 64))
    assert two["pass@1 checkpoints"] < one["pass@1 checkpoints"]
    assert design(found, train_seeds=3, samples=64)["pass@1 checkpoints"] < two["pass@1 checkpoints"]
    assert one["pass@1 methods"] is None


def test_a_pilot_has_two_trained_rows(pilot):
    with pytest.raises(UserError, match="two trained rows"):
        power(pilot[1][:2])


def test_rows_of_other_problems_are_no_pairs(pilot):
    rows, paths = pilot
    tally = rows[1].tally
    replace(rows[1], tally=replace(tally, problems=tally.problems[::-1])).write(paths[1])
    with pytest.raises(UserError, match="different problems"):
        power(paths)
