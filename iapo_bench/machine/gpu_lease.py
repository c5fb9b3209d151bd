"""Leases of one machine's GPUs: Snakemake counts GPUs, but does not tell a job which ones it may use.

A lease is two locks for each device in a directory that all jobs of a user share: of the device, shared by jobs that
share it, and of one of its slots. The kernel releases them when their process ends, however it ends.
"""

import fcntl
import os
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from iapo_bench.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
SLURM_JOB = "SLURM_JOB_ID"
STARTED = "LOCAL_RANK"  # set in the processes of a launcher
# If set, jobs lease GPUs but compute on the CPU: to test a cluster, or several processes, on a machine without GPUs.
PRETEND = "IAPO_BENCH_PRETEND_GPUS"
NO_DEVICE = re.compile(r"-\d+|NoDevFiles")  # in CUDA_VISIBLE_DEVICES; the latter is Slurm's
POLL_SECONDS = 0.5


@contextmanager
def lease_gpus(count: int, *, jobs_per_gpu: int = 1, folder: Path | None = None) -> Iterator[list[str]]:
    """Wait for `count` GPUs that no other job holds or, with `jobs_per_gpu` above 1, fewer than that many, all of which
    share; make them the only ones this process sees.

    Call this before CUDA starts. Yields their ids. Candidates are the devices of `CUDA_VISIBLE_DEVICES`, which a
    scheduler assigns, or else all of the machine. Raises UserError when there are fewer than `count`.
    """
    names = _lock_names(visible_devices())
    if (seen := len(set(names.values()))) < count:
        raise UserError(
            f"{count} GPUs were requested but this job sees {seen}: lower the tier's 'gpus' (0: use the CPU)"
        )
    folder = folder or Path(tempfile.gettempdir()) / f"iapo-bench-gpus-{os.getuid()}"
    # Where Slurm hides other jobs' devices, each job's first is number 0: ids are comparable within a job only.
    folder = folder / os.environ.get(SLURM_JOB, "")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        while (leased := _try(names, count, jobs_per_gpu, folder, held)) is None:
            time.sleep(POLL_SECONDS)
        with only_visible(leased):
            yield leased


@contextmanager
def only_visible(devices: Sequence[str]) -> Iterator[None]:
    """Make only these GPUs visible to this process and its children; none if empty."""
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(devices)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before


def require_usable(count: int) -> None:
    """Raise UserError, with the reason, unless torch can use `count` GPUs: it would silently compute on the CPU."""
    if os.environ.get(PRETEND):
        return
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if usable >= count:
        return
    if not torch.version.cuda and not torch.version.hip:
        reason = f"torch {torch.__version__} is a build for CPUs: install one for CUDA"
    else:
        said = " ".join(str(told[-1].message).split()) if told else f"it sees {usable}"
        reason = f"torch {torch.__version__}, for CUDA {torch.version.cuda}, says: {said}"
    raise UserError(f"{count} GPUs were requested but torch cannot use them: {reason}")


def visible_devices() -> list[str]:
    """Ids of the GPUs that this process may use, without starting CUDA."""
    if VISIBLE not in os.environ:
        return list(_uuids())
    named = (part.strip() for part in os.environ[VISIBLE].split(","))
    # Like CUDA, ignore everything after the first invalid id. Drop duplicates, for which CUDA would refuse the list.
    return list(dict.fromkeys(takewhile(lambda name: not NO_DEVICE.fullmatch(name), filter(None, named))))


def _uuids() -> dict[str, str]:
    """UUIDs of the machine's GPUs by their number."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    rows = (line.partition(",") for line in listed.splitlines())
    return {
        number.strip(): uuid.strip() for number, _, uuid in rows if number.strip().isdigit()
    }  # other lines are messages


def _lock_names(devices: Sequence[str]) -> dict[str, str]:
    """A lock name for each device, the same for its number, its UUID and a shortened UUID."""
    known = _uuids()
    names = {
        device: known.get(device) or next((uuid for uuid in known.values() if uuid.startswith(device)), device)
        for device in devices
    }
    return {device: re.sub(r"\W", "-", name) for device, name in names.items()}


def _try(names: Mapping[str, str], count: int, jobs_per_gpu: int, folder: Path, held: ExitStack) -> list[str] | None:
    """Lock `count` devices, all or none: jobs that each held some while waiting for more would deadlock."""
    kind = fcntl.LOCK_EX if jobs_per_gpu == 1 else fcntl.LOCK_SH
    with ExitStack() as stack:
        leased: list[str] = []
        # Empty slots first, so that jobs that share do so only when no device is free.
        for slot in range(jobs_per_gpu):
            for device, name in names.items():
                if len(leased) == count:
                    break
                if device in leased:
                    continue
                with ExitStack() as both, suppress(BlockingIOError):
                    both.enter_context(_locked(folder / f"{name}.lock", kind))
                    both.enter_context(_locked(folder / f"{name}.{slot}.lock", fcntl.LOCK_EX))
                    stack.push(both.pop_all())
                    leased.append(device)
        if len(leased) < count:
            return None
        held.push(stack.pop_all())
        return leased


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    """Hold a lock on a file, exclusive or shared. Raises BlockingIOError while another lock excludes it."""
    with path.open("w") as file:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        yield
