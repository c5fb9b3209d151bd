"""The benchmarks of informativeness, on a small real model: their numbers are numbers, their exact rows exact."""

from pathlib import Path

import pytest
import torch

from iapo_bench.bench.gpu import SIZES, informativeness_at_size, step_at_size
from iapo_bench.bench.informativeness import bench_approximations, bench_informativeness
from iapo_bench.bench.step import _peak_flops, bench_step
from iapo_bench.models.checkpoints import build_micro, save_model
from iapo_bench.plan.costs import Lengths, Work, flops
from iapo_bench.train.trainer import PHASES


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    path = tmp_path_factory.mktemp("base") / "model"
    save_model(build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1), tokenizer, path)
    return path


def test_the_sides_agree_and_everything_is_measured(base):
    rows = bench_informativeness(base, pairs=1, lengths=(8, 300))
    assert [(row["T"], row["batch"], row["tokens"]) for row in rows] == [
        (8, 1, 8),
        (300, 1, 300),
        (8, 8, sum(8 - 8 * i // 16 for i in range(8))),
        (300, 8, sum(300 - 300 * i // 16 for i in range(8))),
    ]
    for row in rows:
        assert row["largest_difference_nats"] < 1e-4
        for side in ("shared_kv", "kv_replicated", "floor"):
            assert row[f"seconds_{side}"] > 0
        assert row["speedup"] == pytest.approx(row["seconds_kv_replicated"] / row["seconds_shared_kv"], rel=0.05)
        assert row["floor_ratio"] == pytest.approx(row["seconds_shared_kv"] / row["seconds_floor"], rel=0.05)
    assert rows[1]["mib_kv_replicated"] > 0


def test_approximations_are_measured_against_the_exact_reading(base):
    rows = {row["reading"]: row for row in bench_approximations(base, pairs=1)}
    assert rows["every prefix (exact)"]["largest_error_nats"] == 0
    assert rows["every prefix (exact)"]["spearman"] == 1
    assert 0 < rows["every 2"]["mean_error_nats"] <= rows["every 8"]["largest_error_nats"]
    assert rows["every 8"]["spearman"] < 1


def test_a_step_by_phase(base):
    rows = {row["step"]: row for row in bench_step(base, pairs=1)}
    assert rows["grpo"]["ratio"] == 1
    assert list(rows)[:2] == ["grpo", "iapo"]
    for row in rows.values():
        assert row["seconds"] == pytest.approx(sum(row[f"seconds_{phase}"] for phase in PHASES), abs=1e-3)
        assert row["ratio"] == pytest.approx(row["seconds"] / rows["grpo"]["seconds"], rel=0.01)


def test_implementations_at_a_models_size():
    (row,) = informativeness_at_size("tiny", pairs=1, lengths=(12,), batch=4, prompt=9)
    assert (row["model"], row["T"], row["batch"], row["prompt"], row["K"]) == ("tiny", 12, 4, 9, 6)
    assert row["largest_difference_nats"] < 1e-4
    assert row["dtype"] == "float32"


def test_a_step_at_a_models_size_says_what_rate_it_reached():
    """Rate times seconds is the arithmetic of the method's passes: GRPO's of the reference alone, IAPO's K + 1 more."""
    rows = step_at_size("tiny", steps=2, prompt=16, length=12, prompts_per_step=2, group_size=4, micro_batch_tokens=256)
    for row, answer in zip(rows, (False, True), strict=True):
        work = Work(8, 8, 8, 4, Lengths(16, 12, 6), 12, answer=answer, reference=True)
        counted = flops(SIZES["tiny"], work)
        for phase in ("signals", "update"):
            assert row[f"tflops_{phase}"] * row[f"seconds_{phase}"] * 1e12 == pytest.approx(8 * counted[phase], rel=0.2)
            assert row[f"share_of_peak_{phase}"] is None
        assert row["rollout_tokens_per_second"] == pytest.approx(96 / row["seconds_rollout"], rel=0.05)
    assert flops(SIZES["tiny"], work)["signals"] > 3 * counted["rollout"]


def test_the_peak_is_that_of_the_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Some Card", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert _peak_flops("bfloat16") == peak
