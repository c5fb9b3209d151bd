"""Data-parallel training: the ranks share a step's groups and end the step with equal weights.

A rank is one process of `torchrun` or `accelerate launch`. Every rank holds the whole model and the whole batch, but
does the expensive work (generation, grading, forward and backward passes) only for its share of the groups. The result
equals that of one process, up to the order in which floats are summed. A single process does not communicate.
"""

import ctypes
import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from iapo_bench.errors import GOES_ON, Stopped, UserError
from iapo_bench.machine.gpu_lease import STARTED

# How long a rank waits for the others: longer than completions or a checkpoint can delay one.
TIMEOUT = timedelta(minutes=30)
BUCKET = 2**25  # gradients summed at once: 128 MiB of float32
SERIAL_GLOO = "serial_gloo"  # the backend that `_serial_gloo` makes
LAUNCHER = "IAPO_BENCH_LAUNCHER"  # to its ranks, the process id of `launch`
_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


@contextmanager
def processes() -> Iterator[None]:
    """Join the process group that the environment (RANK, WORLD_SIZE, LOCAL_RANK) describes, if any; leave it when all
    ranks are done.

    On CUDA the current device becomes that of LOCAL_RANK, or the only visible one. Raises UserError when the
    environment is incomplete, a rank does not join, or there are too few GPUs.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield
        return
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"WORLD_SIZE is set but {name} is not: start with torchrun or accelerate launch")
    _end_with_launcher()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_local_device(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()))
    with in_touch():
        store, own, count = next(rendezvous("env://", timeout=TIMEOUT))
        store.set_timeout(TIMEOUT)
        dist.Backend.register_backend(SERIAL_GLOO, _serial_gloo, devices=["cpu"])
        # Objects go through gloo even if tensors go through nccl; the names of those collectives are short.
        backends = "cpu:gloo,cuda:nccl" if cuda else SERIAL_GLOO
        ranks = dist.PrefixStore("ranks", store)
        dist.init_process_group(backends, store=ranks, rank=own, world_size=count, timeout=TIMEOUT)
    if cuda:
        require_own_gpus(gather([str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)]))
    yield
    gather([])
    # Not after an error: the other ranks still wait, and only the exit of this process tells them.
    dist.destroy_process_group()
    with in_touch():
        store.set(f"parted-{own}", "")
        if own == 0:  # rank 0 may serve the store, so it leaves last
            store.wait([f"parted-{rank}" for rank in range(count)])


def is_started() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return STARTED in os.environ


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run iapo-bench with `arguments` in `count` ranks of this machine; return 0, or the exit code of one that failed.

    Ranks print their errors on standard error themselves, but for one that is killed. Raises Stopped for a signal,
    after it has ended the ranks.
    """
    # Silence torchelastic's own traceback; the worker has printed the error.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # by default the machine's own name, which need not resolve
        max_restarts=0,
    )
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        elastic_launch(config, sys.executable)("-m", "iapo_bench", *arguments)
    except SignalException as stop:
        raise Stopped(stop.sigval) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        click.echo(f"iapo-bench: process {rank} was killed by {name}: is there enough memory? {GOES_ON}", err=True)
        return 128 - failure.exitcode
    return 0


def _end_with_launcher() -> None:
    """Get SIGTERM when `launch` is killed, which could not end its ranks: they would compute on, their GPUs free to be
    leased."""
    if (launcher := os.environ.get(LAUNCHER)) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(launcher):
            raise UserError(f"the process that started this one was killed; {GOES_ON}")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The world size: the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the rank that writes files and shows progress."""
    return rank() == 0


def share(n: int, group_size: int = 1) -> slice:
    """This rank's slice of `n` rows: adjacent whole groups, spread evenly over the ranks; it may be empty."""
    each, more = divmod(n // group_size, size())
    start = rank() * each + min(rank(), more)
    return slice(start * group_size, (start + each + (rank() < more)) * group_size)


def gather(items: list[Any]) -> list[Any]:
    """All ranks' items in the order of the ranks; tensors must be on the CPU. Every rank must call it."""
    if size() == 1:
        return items
    parts: list[list[Any]] = [[] for _ in range(size())]
    with in_touch():
        dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def sum_gradients(model: torch.nn.Module) -> None:
    """Replace each gradient by its sum over the ranks; a rank that has none counts as zero. Every rank must call it."""
    if size() == 1:
        return
    bucket: list[torch.nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            _sum_bucket(bucket)
            bucket = []
        bucket.append(parameter)
    _sum_bucket(bucket)


def sum_numbers(numbers: dict[str, float]) -> dict[str, float]:
    """Each number's sum over the ranks, which must all call it with the same keys."""
    if size() == 1:
        return numbers
    total = torch.tensor(list(numbers.values()), dtype=torch.float64)
    with in_touch():
        dist.all_reduce(total)
    return dict(zip(numbers, total.tolist(), strict=True))


def largest(number: int) -> int:
    """The largest of the ranks' numbers. Every rank must call it."""
    return max(gather([number]))


def _serial_gloo(store: dist.Store, rank: int, size: int, timeout: timedelta) -> Any:
    """Gloo with one worker thread.

    The default two threads write the name of the collective that ended last (`pgStatus_` in torch's
    ProcessGroupGloo::runLoop) without a lock. Names of over 15 characters, as for a sharded model's tensors, are on the
    heap: when two collectives end at once, the old name is freed twice, and the process aborts, then or later.
    """
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._threads = 1
    options._timeout = timeout
    options._devices = [gloo.create_default_device()]
    return gloo(store, rank, size, options)


def _sum_bucket(parameters: list[torch.nn.Parameter]) -> None:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    # In float32: a bfloat16 sum would round once per rank.
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    with in_touch():
        dist.all_reduce(flat)
    for parameter, gradient, total in zip(
        parameters, gradients, flat.split([g.numel() for g in gradients]), strict=True
    ):
        parameter.grad = gradient.copy_(total.view_as(gradient))


def _local_device(local_rank: int, count: int) -> int:
    """The GPU for a rank of this machine. A scheduler may show each rank one GPU, which then is number 0."""
    if count > 1 and local_rank >= count:
        raise UserError(f"{count} GPUs are too few for process {local_rank + 1} of this machine: start one per GPU")
    return local_rank if count > 1 else 0


def require_own_gpus(devices: Sequence[str]) -> None:
    """Raise UserError when two ranks compute on one GPU; `devices`: a globally unique id of each rank's GPU."""
    for rank, device in enumerate(devices):
        if (first := devices.index(device)) < rank:
            raise UserError(
                f"processes {first} and {rank} see the same single GPU: show each process its own GPU, or all GPUs"
            )


@contextmanager
def in_touch() -> Iterator[None]:
    """Turn a communication failure into a one-line UserError; the rank that failed prints the cause."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[.*?\] ", "", str(error).split("\n")[0].split(". ")[0])
        raise UserError(
            f"process {os.environ.get('RANK')} lost contact with the others: one of them has failed ({reason})"
        ) from None
