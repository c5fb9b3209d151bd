"""Jobs that read settings, grade integers, measure or write tables start without torch, which takes seconds."""

import subprocess
import sys

import pytest

LIGHT = [
    "iapo_bench.cli",
    "iapo_bench.workflow",
    "iapo_bench.worlds.prepare",
    "iapo_bench.evaluate.grade",
    "iapo_bench.evaluate.metrics",
    "iapo_bench.report.rows",
    "iapo_bench.report.table1",
    "iapo_bench.report.comparisons",
    "iapo_bench.report.wallclock",
    "iapo_bench.report.curves",
    "iapo_bench.report.tuning",
    "iapo_bench.report.sensitivity",
    "iapo_bench.report.lm_eval",
]


@pytest.mark.parametrize("grader", ["micro", "smollm2"])
def test_light_jobs_import_no_torch(grader):
    code = (
        f"import sys, {', '.join(LIGHT)}\n"
        "from iapo_bench.config.tier_file import read_tier\n"
        "from iapo_bench.worlds.load import load_world\n"
        f"tier = read_tier({grader!r}); load_world(tier.world, 0); tier.row_job('iapo')\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-800:]
