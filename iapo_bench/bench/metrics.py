"""Cost of measuring as grades grow: seconds and peak memory of one row's summary and counts."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iapo_bench.machine.provenance import hardware

SIZES = (100_000, 1_000_000, 10_000_000)
SAMPLES, SEEDS = 32, (42, 142, 242)
_CHUNK = 10_000  # problems written at a time

# Runs in a process of its own, whose peak memory is that of measuring alone.
_CHILD = """
import json, sys, time
from pathlib import Path
from iapo_bench.evaluate.metrics import Samples, read_grades
def peak():  # ru_maxrss would be the parent's, where that is larger
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
empty = peak()
started = time.perf_counter()
samples = Samples.of({0: read_grades(Path(sys.argv[1]))})
samples.summary([1, 2, 4, 8, 16, 32])
samples.tally().to_parquet(Path(sys.argv[1] + ".counts"))
print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak(), "empty": empty}))
"""


def bench_metrics(sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """A row for each number of graded completions: seconds, peak memory of the process and of an empty one (MiB)."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "grades.parquet"
            written = write_grades(path, size)
            done = subprocess.run([sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            rows.append(
                {"completions": written, "file_mib": round(path.stat().st_size / 2**20, 1)}
                | {"seconds": round(found["seconds"], 2)}
                | {"peak_mib": round(found["peak"] / 1024), "empty_mib": round(found["empty"] / 1024)}
                | {"device": hardware()}
            )
    return rows


def write_grades(path: Path, size: int) -> int:
    """Write about `size` rows as `grade` does, texts and golds included; return how many."""
    generator, each = np.random.default_rng(0), SAMPLES * len(SEEDS)
    problems, writer = max(size // each, 1), None
    for start in range(0, problems, _CHUNK):
        ids = [f"problem-{i}" for i in range(start, min(start + _CHUNK, problems))]
        n = len(ids) * each
        correct = generator.random(n) < 0.4
        table = pa.table(
            {
                "problem_id": pa.array(ids).take(np.repeat(np.arange(len(ids)), each)),
                "sample": np.tile(np.arange(SAMPLES), len(ids) * len(SEEDS)),
                "seed": np.tile(np.repeat(SEEDS, SAMPLES), len(ids)),
                "n_tokens": generator.integers(20, 400, n),
                "finish_reason": pa.array(["stop", "length"]).take((generator.integers(0, 50, n) == 0).astype(int)),
                "text": pa.array([f"<think> {i} </think> <answer> {i} </answer>" for i in range(n)]),
                "gold": pa.array(["7"] * n),
                "outcome": pa.array(["WRONG", "CORRECT"]).take(correct.astype(int)),
                "outcome_lenient": pa.array(["WRONG", "CORRECT"]).take(correct.astype(int)),
                "formatted": generator.random(n) < 0.9,
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()
    return problems * each
