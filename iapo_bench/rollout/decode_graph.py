"""Decode steps in a few fixed shapes and without host synchronisation, so that a GPU can replay them as CUDA graphs.

An eager step launches about forty kernels per layer, and the GPU waits for most of the launches. Captured as a graph,
they are one launch. A graph has fixed shapes, so rows and attention span are rounded up to a few sizes, and a finished
row keeps running, without effect, until the host next checks.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from iapo_bench.errors import first_line

SMALLEST_ROWS = 32  # below this, launches and reading weights dominate a step: fewer rows save nothing
SMALLEST_SPAN = 128
WIDTH_MULTIPLE = 64  # of the cache width: the fast kernels need aligned masks


@dataclass(frozen=True)
class Schedule:
    """How closely the shapes of decode steps follow the active rows.

    `check_every`: steps between two checks for finished rows, each of which waits for the device.
    `padded`: round rows and span up. Rows go down in halves of all slots: a capture costs about twenty replays and
    halving the rows saves a fifth of a step, so coarser sizes would waste compute and finer ones captures. Spans are
    powers of two and their midpoints: on average a fifth of the cache reads is wasted.
    `graphs`: replay each shape as a CUDA graph from its second step on.
    """

    check_every: int = 1
    padded: bool = False
    graphs: bool = False

    def rows(self, active: int, slots: int) -> int:
        """Number of rows that a step computes for `active` rows."""
        if not self.padded:
            return active
        size = slots
        while size // 2 >= max(active, SMALLEST_ROWS):
            size //= 2
        return size

    def span(self, needed: int, width: int) -> int:
        """Number of cache positions that a step reads to see the first `needed`."""
        if not self.padded:
            return needed
        size = SMALLEST_SPAN
        while size < needed:
            power_of_two = size & (size - 1) == 0
            size += size // 2 if power_of_two else size // 3
        return min(size, width)

    def width(self, needed: int) -> int:
        """Width of a cache for `needed` positions."""
        return -(-needed // WIDTH_MULTIPLE) * WIDTH_MULTIPLE if self.padded else needed


EXACT = Schedule()  # on a CPU, where checks are free and every row costs time
PADDED = Schedule(check_every=8, padded=True)
GRAPHS = Schedule(check_every=8, padded=True, graphs=True)


class Replayable(Protocol):
    """A captured step."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...


class CudaCapture:
    """Captures work as CUDA graphs that share one memory pool, so only one may run at a time."""

    def __init__(self, device: torch.device) -> None:
        self.stream = _side_stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run the work on the capture stream, so that one-time setup of the libraries is not captured."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Replayable:
        """Capture the work as a graph without running it. Raises RuntimeError for work that needs the host."""
        graph = torch.cuda.CUDAGraph()
        # A failed capture leaves its stream current; the outer context restores the previous one.
        # Thread-local: other threads may use the device during a capture.
        with (
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph

    def release(self) -> None:
        """Free the memory of reset graphs for other uses."""
        torch.cuda.empty_cache()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all calls: the matrix libraries keep a workspace for every stream they have seen."""
    return torch.cuda.Stream(device)


class StepGraphs:
    """Runs `step(rows, span)`: eagerly the first time for each shape, then as a graph.

    The graphs hold the addresses of the step's tensors and must not outlive them.
    """

    def __init__(self, step: Callable[[int, int], None], capture: CudaCapture) -> None:
        self.step = step
        self.capture = capture
        self.graphs: dict[tuple[int, int], Replayable] = {}
        self.seen: set[tuple[int, int]] = set()
        self.failed = False

    def __call__(self, rows: int, span: int) -> None:
        shape = (rows, span)

        def work() -> None:
            self.step(rows, span)

        if shape not in self.graphs and shape in self.seen and not self.failed:
            self._capture(shape, work)
        if shape in self.graphs:
            self.graphs[shape].replay()
        elif shape in self.seen:
            work()
        else:
            self.seen.add(shape)
            self.capture.warm_up(work)

    def _capture(self, shape: tuple[int, int], work: Callable[[], None]) -> None:
        try:
            self.graphs[shape] = self.capture.capture(work)
        except RuntimeError as error:
            # Capturing runs nothing, so the step can still run eagerly.
            self.failed = True
            reason = first_line(error)
            warnings.warn(f"generating without CUDA graphs, several times slower: {reason}", stacklevel=2)

    def release(self) -> None:
        """Free the graphs. Their results must have been read."""
        for graph in self.graphs.values():
            graph.reset()
        self.graphs.clear()
        self.capture.release()
