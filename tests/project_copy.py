"""The project in a folder of its own, and Snakemake in it: a run that leaves the checkout as it was."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = (
    *("Snakefile", "paper.smk", "rules", "profiles", "configs"),
    *("iapo_bench", "baselines", "methods", "rewards", "results/published"),
)


def copy_project(folder: Path) -> Path:
    """Copy all that a workflow reads into `folder`, and return it."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)
    return folder


def snakemake(
    folder: Path, *arguments: str, cores: bool = True, timeout: float = 900, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a copy of the project, with nothing but its own code and settings: on two cores, or, without
    `cores`, as a profile says. `changes`: to the environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **changes}
    environment.pop("IAPO_BENCH_CONFIG", None)
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *(["--cores", "2"] if cores else []), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
