"""Rows timed alone: every row in every round, in turn, with intervals over rounds."""

import pandas as pd
import pytest

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.report import timing


def test_every_row_in_every_round_and_nobody_always_first(tmp_path, monkeypatch):
    """What is timed is faked: how long a job takes is no test's business, in what order it runs is."""
    order = []

    def fake(job, name, run, base, data):
        order.append(name)
        return {"sample_ms_per_completion": float(len(order))} | (
            {"train_ms_per_completion": 2.0} if name != "base" else {}
        )

    monkeypatch.setattr(timing, "_time", fake)
    job = read_tier("smoke").timing_job().model_copy(update={"rounds": 3})
    runs = {"base": tmp_path, "grpo/0": tmp_path, "iapo/0": tmp_path}
    timing.time_rows(job, runs, base=tmp_path, data=tmp_path, out=tmp_path / "time.csv")
    assert order == ["base", "grpo/0", "iapo/0", "grpo/0", "iapo/0", "base", "iapo/0", "base", "grpo/0"]
    table = pd.read_csv(tmp_path / "time.csv").set_index("run")
    assert table.loc["base", "sample_ms_per_completion"] == pytest.approx((1 + 6 + 8) / 3)
    assert table.loc["base", "sample_ms_per_completion_lo"] < 5 < table.loc["base", "sample_ms_per_completion_hi"]
    assert table["train_ms_per_completion"].isna().tolist() == [True, False, False]
    assert len(pd.read_csv(tmp_path / "time.rounds.csv")) == 9
    assert "| grpo/0 | 5.00 [\N{MINUS SIGN}3.96, 14.0]  | 2.00 [2.00, 2.00] |" in (tmp_path / "time.md").read_text()
    assert "numbers mean nothing" in (tmp_path / "time.html").read_text(), "it is the smoke tier's"


def test_what_is_timed_is_short():
    job = read_tier("micro").timing_job()
    assert (job.sample.evaluate.n_samples, len(job.sample.evaluate.seeds)) == (2, 1)
    assert {train.train.completions for train in job.train.values()} == {5 * 16 * 8}


def test_a_tier_that_trains_in_several_processes_is_refused():
    with pytest.raises(UserError, match="time trains in one process, but tier qwen-7b on 8 GPUs"):
        read_tier("qwen-7b").timing_job()
