"""Renew the golden trajectories of this machine's instruction sets: `python -m tests.golden` on a clean tree.

Look at the difference before it is committed: each number that moved is a result that moved.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from iapo_bench.cli import main
from tests import golden

CAPABILITIES = ("avx512", "avx2")


def command(*arguments: Any) -> None:
    """Run iapo-bench in this process."""
    sys.argv = ["iapo-bench", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise


def renew() -> None:
    """Write the trajectories of the instruction set in use."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"arithmetic": golden.arithmetic()}
        found["base"] = golden.make_base(command, Path(folder))
        for method, profile in golden.trajectories():
            found[f"{method} {profile}"] = golden.record(command, Path(folder), method, profile)
    golden.write(found)


if __name__ == "__main__":
    if "--here" in sys.argv:
        renew()
        sys.exit()
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    if changed:
        sys.exit(f"the tree is dirty, commit first: golden numbers belong to a commit\n{changed.rstrip()}")
    for capability in CAPABILITIES:
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "tests.golden", "--here"], env=environment, check=True)
