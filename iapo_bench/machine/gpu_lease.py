"""GPUs of one machine, lent to one job at a time: Snakemake counts them, but gives no job an id of its own.

A lease is a locked file for each device in a directory that all jobs of a user share. The system frees it when its
process ends, however it ends.
"""

import getpass
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from iapo_bench.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
SLURM_JOB = "SLURM_JOB_ID"
POLL_SECONDS = 0.5


@contextmanager
def lease_gpus(count: int, *, jobs_per_gpu: int = 1, folder: Path | None = None) -> Iterator[list[str]]:
    """Wait for `count` GPUs that fewer than `jobs_per_gpu` jobs hold, and make them the only ones this process sees.

    To be called before CUDA starts. Yields their ids. The devices to choose from are those of `CUDA_VISIBLE_DEVICES`
    (what a scheduler assigned), or else all of the machine. Raises UserError when there are fewer than `count`.
    """
    devices = visible_devices()
    if len(devices) < count:
        raise UserError(f"{count} GPUs are asked for, and this job sees {len(devices)}: lower the tier's 'gpus'")
    folder = folder or Path(tempfile.gettempdir()) / f"iapo-bench-gpus-{getpass.getuser()}"
    # Where Slurm hides other jobs' devices, each job's first is number 0: ids are comparable within a job only.
    folder = folder / os.environ.get(SLURM_JOB, "")
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(VISIBLE)
    with ExitStack() as held:
        while (leased := _try(devices, count, jobs_per_gpu, folder, held)) is None:
            time.sleep(POLL_SECONDS)
        os.environ[VISIBLE] = ",".join(leased)
        try:
            yield leased
        finally:
            if before is None:
                os.environ.pop(VISIBLE, None)
            else:
                os.environ[VISIBLE] = before


def visible_devices() -> list[str]:
    """Ids of the GPUs that this process may use, without starting CUDA."""
    if VISIBLE in os.environ:
        return [part.strip() for part in os.environ[VISIBLE].split(",") if part.strip()]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return listed.stdout.split()


def _try(devices: Sequence[str], count: int, jobs_per_gpu: int, folder: Path, held: ExitStack) -> list[str] | None:
    """Lock `count` devices, all or none: a job that waited with a part of its own could wait for ever."""
    with ExitStack() as stack:
        leased: list[str] = []
        # Empty slots first, so that jobs that share do so only when no device is free.
        for slot in range(jobs_per_gpu):
            for device in devices:
                if len(leased) == count:
                    break
                if device in leased:
                    continue
                name = "".join(c if c.isalnum() else "-" for c in device)
                try:
                    stack.enter_context(FileLock(folder / f"{name}.{slot}.lock", timeout=0))
                except Timeout:
                    continue
                leased.append(device)
        if len(leased) < count:
            return None
        held.push(stack.pop_all())
        return leased
