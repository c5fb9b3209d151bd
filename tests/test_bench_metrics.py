"""Measuring grows no faster than the grades, in time and in memory."""

import pytest

from iapo_bench.bench.metrics import bench_metrics, write_grades
from iapo_bench.evaluate.metrics import Samples, read_grades


def test_the_grades_are_what_grading_writes(tmp_path):
    assert write_grades(tmp_path / "grades.parquet", 1000) == 960
    summary = Samples.of({0: read_grades(tmp_path / "grades.parquet")}).summary([1, 32])
    assert (summary.n_problems, summary.n_samples, summary.sampling_seeds) == (10, 32, [42, 142, 242])
    assert 0 < summary.format_rate < 1


@pytest.mark.slow
def test_ten_times_the_rows_take_at_most_so_much_more_memory_and_time():
    """A million rows took 355 MB when texts were read; now about 155 MB beyond an empty process."""
    small, large = bench_metrics((100_000, 1_000_000))
    assert large["peak_mib"] - large["empty_mib"] < 200
    assert large["seconds"] < 15 * max(small["seconds"], 0.2)
