"""The Slurm profile on a real cluster: run where one answers, such as that of `scripts/slurm_one_node.sh`."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
ANSWERS = shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True).returncode == 0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ANSWERS, reason="no Slurm cluster answers here"),
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
        reason="snakemake-executor-plugin-slurm is not installed",
    ),
]


def test_the_smallest_table_comes_out_of_slurm_jobs(tmp_path):
    parts = ("Snakefile", "rules", "profiles", "configs", "iapo_bench", "baselines", "methods", "results/published")
    for part in parts:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    smoke = (tmp_path / "configs" / "smoke.yaml").read_text()
    (tmp_path / "tier.yaml").write_text(smoke[: smoke.index("methods:")] + "methods:\n  grpo:\n")
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", "--configfile", "tier.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("IAPO_BENCH_CONFIG", None)
    # Without an accounting database only squeue knows how a job fares.
    options = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"]
    small = ["--cores", "2", "--default-resources", "mem_mb=1500", "runtime=10"]
    run = subprocess.run(
        [*command, *options, *small, "--", "results/smoke/table1.csv"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    submitted = re.findall(r"has been submitted with SLURM jobid (\d+)", run.stderr + run.stdout)
    assert len(submitted) >= 8  # prepare, base, train, and two each to sample, grade and measure; then the table
    table = pd.read_csv(tmp_path / "results" / "smoke" / "table1.csv")
    assert table["method"].tolist()[:2] == ["base", "grpo"]
