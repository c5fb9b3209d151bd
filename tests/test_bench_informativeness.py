"""The benchmarks of informativeness, on a small real model: their numbers are numbers, their exact rows exact."""

from pathlib import Path

import pytest

from iapo_bench.bench.informativeness import bench_approximations, bench_informativeness
from iapo_bench.bench.step import bench_step
from iapo_bench.models import build_micro, save_model
from iapo_bench.trainer import PHASES


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
