"""Two ranks of this machine, each a process of its own."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

SECONDS = 600  # for everything that the two processes do, on a busy machine


def become(rank: int, port: int) -> None:
    """Make this process the rank of that number."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_ranks(work: Callable[..., None], *arguments: Any, ports: int) -> list[int | None]:
    """Exit codes of `work(rank, *arguments, free ports)` in two processes; None of one that did not end in time."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(ports)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        free = tuple(each.getsockname()[1] for each in sockets)
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, *arguments, free)) for rank in range(2)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
