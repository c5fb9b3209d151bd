"""The command line in a process of its own, and what it said."""

import resource
import subprocess
import sys

SMALL = {"model": {"source": "taught", "sft": {"hidden": 32, "layers": 1, "heads": 2, "steps": 20}}}
RUN = (sys.executable, "-m", "iapo_bench")


def iapo_bench(*arguments: object, limit: tuple[int, int] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=(lambda: resource.setrlimit(limit[0], (limit[1], limit[1]))) if limit else None,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith(("iapo-bench:", "Traceback"))]
