"""Decode steps of few fixed shapes without host synchronisation, which a GPU replays as CUDA graphs.

A step of an eager model launches some forty kernels a layer, one by one, and a GPU waits for most of them. Captured as
a graph they are one launch. A graph has fixed shapes, so rows and attention span are rounded up to few sizes, and a row
that ended runs on without effect until the host looks at which did.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from iapo_bench.errors import first_line

SMALLEST_ROWS = 32  # below, a step takes as long as its launches and weights: fewer rows gain nothing
SMALLEST_SPAN = 128
WIDTH_MULTIPLE = 64  # of the cache: masks must be aligned for the fast kernels


@dataclass(frozen=True)
class Schedule:
    """How closely the work follows the rows under way.

    `check_every`: steps between two looks at which rows ended, each of which waits for the device.
    `padded`: rows and span rounded up. Rows are halves of all slots: a capture takes some twenty replays, and halving
    the rows saves a fifth of a step, so fewer sizes would compute too much and more would be captured too often. Spans
    are powers of two and the middles between: a fifth of the cache is read in vain, on average.
    `graphs`: replay each shape from its second step on.
    """

    check_every: int = 1
    padded: bool = False
    graphs: bool = False

    def rows(self, active: int, slots: int) -> int:
        """How many rows a step computes for `active` of them."""
        if not self.padded:
            return active
        size = slots
        while size // 2 >= max(active, SMALLEST_ROWS):
            size //= 2
        return size

    def span(self, needed: int, width: int) -> int:
        """How many positions of the cache a step reads to see `needed` of them."""
        if not self.padded:
            return needed
        size = SMALLEST_SPAN
        while size < needed:
            power_of_two = size & (size - 1) == 0
            size += size // 2 if power_of_two else size // 3
        return min(size, width)

    def width(self, needed: int) -> int:
        """Positions of the cache that hold `needed` of them."""
        return -(-needed // WIDTH_MULTIPLE) * WIDTH_MULTIPLE if self.padded else needed


EXACT = Schedule()  # on a CPU, where looking costs nothing and every row counts
PADDED = Schedule(check_every=8, padded=True)
GRAPHS = Schedule(check_every=8, padded=True, graphs=True)


class Replayable(Protocol):
    """A captured step."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...


class CudaCapture:
    """Captures work as CUDA graphs that share one pool of memory: no two of them run at a time."""

    def __init__(self, device: torch.device) -> None:
        self.stream = _side_stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work where captures are made, so that what the libraries set up once is not captured."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Replayable:
        """The work as a graph, not done yet. Raises RuntimeError for work that needs the host."""
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream the current one; the outer context does not.
        # Thread-local: what other threads do on the device is none of its concern.
        with (
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph

    def release(self) -> None:
        """Give the memory of graphs that were reset back, for other uses than graphs."""
        torch.cuda.empty_cache()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all calls: the matrix libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream(device)


class StepGraphs:
    """Runs `step(rows, span)`: a shape's first time as it is, then as a graph.

    The graphs read the tensors that the step read, at their addresses: they must not outlive them.
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
            # Nothing ran while capturing, so the step can still be taken.
            self.failed = True
            reason = first_line(error)
            warnings.warn(f"generating without CUDA graphs, several times slower: {reason}", stacklevel=2)

    def release(self) -> None:
        """Free the graphs. What they computed must have been read."""
        for graph in self.graphs.values():
            graph.reset()
        self.graphs.clear()
        self.capture.release()
