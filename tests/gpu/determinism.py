"""The check of determinism, for each device: it needs a process of its own, whose settings no other test sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def check_determinism(device: str, folder: Path) -> None:
    """Two runs of a seed in deterministic mode write the same rows and end with the same weights."""
    # cuBLAS is deterministic with a fixed workspace only, and reads this once.
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": path}
    command = [sys.executable, "-m", "gpu.bodies", device, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((folder / f"{name}.jsonl").read_text() for name in ("first", "second"))
    rows = [json.loads(line) for line in first.splitlines()]
    assert len(rows) == 4
    assert rows[0]["grad_norm"] > 0
    assert first == second
