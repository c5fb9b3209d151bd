"""What departures do to credit, on rollouts of a real small model."""

import numpy as np
import pytest
import torch
from builders import ragged_batch

from iapo_bench.report.departures import ALL, departures_of
from iapo_bench.report.effects import Credits, Judged, compare, effects

POSTFIX = [5, 6]
SETTINGS = {"temperature": 1.0, "micro_batch_tokens": 400, "postfix_ids": POSTFIX}


@pytest.fixture
def credits(model) -> Credits:
    """Two steps of eight groups of two, where the released code finds another answer right and no format kept."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    batch = ragged_batch(groups=8)
    other = batch.correct_B.clone()
    other[:4] = torch.tensor([False, True, True, True])
    return Credits([Judged(batch, other, ~batch.formatted_B)] * 2, model, **SETTINGS)


def row(table, departure: str, compared: str = "advantage"):
    return table[(table["departure"] == departure) & (table["compared"] == compared)].iloc[0]


def test_comparison_by_hand():
    before, after = torch.tensor([1.0, -1.0, 2.0, 0.0]).double(), torch.tensor([2.0, 1.0, 4.0, 0.0]).double()
    found = compare(before, after)
    assert found["correlation"] == pytest.approx(np.corrcoef(before, after)[0, 1])
    assert found["relative_size"] == pytest.approx((21 / 6) ** 0.5)
    assert found["relative_difference"] == pytest.approx((9 / 6) ** 0.5)
    assert found["sign_flips"] == 0.25
    assert np.isnan(compare(before, torch.zeros(4).double())["correlation"])


def test_each_switch_acts_where_it_should(credits):
    table = effects(credits, {"iapo": {}})
    assert set(table["departure"]) == {d.name for d in departures_of("iapo") if d.options or d.train} | {ALL}
    for departure in ("smoothing", "position gaps", "mean over std", "statistics over padding"):
        assert row(table, departure, "informativeness term")["relative_difference"] > 0.05, departure
    assert row(table, "exploration by entropy", "exploration term")["relative_difference"] > 0.5
    assert row(table, "exploration by entropy", "informativeness term")["relative_difference"] == 0
    assert row(table, "exact strings")["relative_difference"] > 0.05
    assert row(table, "format of one line")["sign_flips"] >= 0
    for departure in ("learning rate falls", "one update per rollout", "clip higher"):
        assert row(table, departure, "gradient weight")["relative_difference"] == 0, departure
    micro_batches = "token mean of micro-batches"
    assert row(table, micro_batches)["relative_difference"] == 0
    assert row(table, micro_batches, "gradient weight")["relative_difference"] > 0.05
    assert row(table, ALL, "informativeness term")["relative_size"] < 0.9  # a unit norm, not a unit variance
    assert (table["completions"] == 32).all()


def test_the_gradient_weights_of_the_token_mean_are_the_advantages(credits):
    found = credits.measure("dapo", {})
    torch.testing.assert_close(found["gradient weight"], found["advantage"], rtol=1e-6, atol=1e-6)


def test_a_departure_is_measured_on_top_of_the_given_options(credits):
    departure = next(d for d in departures_of("sgrpo") if d.name == "budget by length")
    before = credits.measure("sgrpo", {"a": 1, "k": 5})
    after = credits.measure("sgrpo", {"a": 1, "k": 5}, departure)
    assert not torch.equal(before["gradient weight"], after["gradient weight"])
    assert torch.equal(before["advantage"], after["advantage"])


def test_judging_as_the_released_code_does():
    batch = ragged_batch()
    judged = Judged(batch, ~batch.correct_B, ~batch.formatted_B)
    other = judged.as_released({"grader": "exact"})
    assert torch.equal(other.correct_B, ~batch.correct_B)
    assert torch.equal(other.rewards_B, -batch.rewards_B)
    assert torch.equal(other.formatted_B, batch.formatted_B)
    assert torch.equal(judged.as_released({"format_rule": "one_line"}).formatted_B, ~batch.formatted_B)
    assert judged.as_released({"lr_schedule": "linear"}) is batch


def test_groups_too_small_for_a_departure_leave_it_out(credits):
    table = effects(credits, {"gfpo": {"k": 2}})
    assert "six of eight" not in set(table["departure"])
    assert "ties of topk" in set(table["departure"])
