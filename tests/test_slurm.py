"""The Slurm profile on a real cluster: run where one answers, such as that of `scripts/slurm_one_node.sh`."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from project_copy import copy_project, snakemake

from iapo_bench.machine.gpu_lease import PRETEND

ROOT = Path(__file__).parent.parent
NODES = ["sinfo", "--noheader", "--format=%G"]
CLUSTER = subprocess.run(NODES, capture_output=True, text=True) if shutil.which("sinfo") else None
ANSWERS = CLUSTER is not None and CLUSTER.returncode == 0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ANSWERS, reason="no Slurm cluster answers here"),
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
        reason="snakemake-executor-plugin-slurm is not installed",
    ),
]


def test_the_smallest_table_comes_out_of_slurm_jobs(tmp_path):
    copy_project(tmp_path)
    smoke = (tmp_path / "configs" / "smoke.yaml").read_text()
    # A job that asks for a GPU and gets none from Slurm ends with an error.
    gpus = 2 if CLUSTER and "gpu" in CLUSTER.stdout else 0
    cpus = min(4, os.cpu_count() or 1)
    # No kind of job may ask for more than this machine has: Slurm would let it wait for ever.
    wishes = f"base: {{ cpus: {cpus} }}, train: {{ cpus: {cpus} }}"
    smoke = smoke.replace("job: {", f"job: {{ {wishes},")
    (tmp_path / "tier.yaml").write_text(f"gpus: {gpus}\n{smoke[: smoke.index('methods:')]}methods:\n  grpo:\n")
    # Without an accounting database only squeue knows how a job fares.
    options = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"]
    small = ["--default-resources", "mem_mb=1500", "runtime=10"]
    tier = ["--profile", "profiles/slurm", "--configfile", "tier.yaml"]
    target = ["--", "results/smoke/table1.csv"]
    run = snakemake(tmp_path, *tier, *options, *small, *target, cores=False, timeout=1200, **{PRETEND: "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    told = "".join(log.read_text() for log in (tmp_path / ".snakemake" / "log").glob("*.log"))
    submitted = set(re.findall(r"has been submitted with SLURM jobid (\d+)", told + run.stderr + run.stdout))
    assert len(submitted) >= 8  # prepare, base, train, and two each to sample, grade and measure; then the table
    table = pd.read_csv(tmp_path / "results" / "smoke" / "table1.csv")
    assert table["method"].tolist()[:2] == ["base", "grpo"]
    run_of = json.loads((tmp_path / "results" / "smoke" / "grpo" / "seed0" / "provenance.json").read_text())
    assert run_of["processes"] == max(1, gpus)
