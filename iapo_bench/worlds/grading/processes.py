"""Grading in processes that can be killed: each answer has its own small limit of time and memory."""

import enum
import logging
import math
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from iapo_bench.progress import progress as progress_bar

logger = logging.getLogger(__name__)
# math-verify warns when its own timeouts are off, as they are here: process limits replace them.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class Outcome(enum.StrEnum):
    """The outcome of a completion. Only CORRECT is a success; report TIMEOUT and ERROR beside a result.

    UNPARSEABLE: no answer was given. TIMEOUT: judging exceeded a limit of time or memory. ERROR: a fault of the grader
    or the gold, never of the completion.
    """

    CORRECT = "CORRECT"
    WRONG = "WRONG"
    UNPARSEABLE = "UNPARSEABLE"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"


Judge = Callable[[str, str], Outcome]


@dataclass(frozen=True)
class Limits:
    """Limits for one answer and for a batch: `batch_seconds`, plus `batch_seconds_per_answer` for each answer judged.

    `seconds` are CPU time, so that a busy machine makes no difference; `wall_seconds` end a judgement that sleeps.
    `megabytes` are on top of a worker's own memory.
    """

    seconds: int = 3
    wall_seconds: float = 30.0
    megabytes: int = 512
    batch_seconds: float = 60.0
    batch_seconds_per_answer: float = 0.1


class Judges:
    """Processes (default: one per core, at most 8) that apply a judge to pairs of texts and golds.

    They start with the first pair. `judge` must be importable by name. When no worker can start, judging raises
    BrokenProcessPool; a script that grades needs `if __name__ == "__main__":`, as with all of multiprocessing.
    """

    def __init__(self, *, workers: int | None = None, limits: Limits | None = None) -> None:
        self._workers = workers or min(8, len(os.sched_getaffinity(0)))
        self._limits = limits or Limits()
        self._pool: ProcessPool | None = None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def apply(self, judge: Judge, pairs: Sequence[tuple[str, str]], *, progress: bool = False) -> list[Outcome]:
        """One outcome for each pair, in order; `progress` shows a bar.

        A judgement over a limit is TIMEOUT, one that raises or exits is ERROR and logged; the others go on. Judgements
        left when the batch's time is over are TIMEOUT. Short texts are judged first, so long ones do not delay them.
        """
        if not pairs:
            return []
        pool, limits = self._start(), self._limits
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
        deadline = time.monotonic() + limits.batch_seconds + limits.batch_seconds_per_answer * len(pairs)
        futures = {
            i: pool.schedule(_judge_within, args=(limits.seconds, judge, *pairs[i]), timeout=limits.wall_seconds)
            for i in order
        }
        outcomes = {}
        for i, future in progress_bar(futures.items(), desc="grading", unit="answer", disable=not progress):
            try:
                while not wait([future], timeout=max(0.0, min(1.0, deadline - time.monotonic()))).done:
                    # A broken pool can forget queued tasks.
                    if not pool.active:
                        raise BrokenProcessPool("the grading processes do not start")
                    if time.monotonic() > deadline:
                        future.cancel()
                        raise TimeoutError
                outcomes[i] = future.result()
            except TimeoutError:
                outcomes[i] = Outcome.TIMEOUT
            except BrokenProcessPool:
                raise
            except ProcessExpired as error:
                # Killed by a signal: the kernel's at a limit, or that of a library out of memory or stack.
                outcomes[i] = Outcome.TIMEOUT if (error.exitcode or 0) < 0 else self._fault(pairs[i], error)
            except Exception as error:
                outcomes[i] = self._fault(pairs[i], error)
        return [outcomes[i] for i in range(len(pairs))]

    def _start(self) -> ProcessPool:
        if self._pool is None:
            # Processes forked from one that holds torch's threads can deadlock; the fork server holds none, and since
            # it has imported everything, replacing a killed worker is cheap.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["math_verify", "iapo_bench.worlds.grading"])
            self._pool = ProcessPool(
                max_workers=self._workers,
                context=context,
                initializer=_limit_worker,
                initargs=(self._limits.megabytes,),
            )
        return self._pool

    @staticmethod
    def _fault(pair: tuple[str, str], error: Exception) -> Outcome:
        logger.warning("cannot grade %r against %r: %s: %s", *pair, type(error).__name__, error)
        return Outcome.ERROR


def _limit_worker(megabytes: int) -> None:
    """Import in a new worker what the first judgement would otherwise import on its own time, then limit its memory."""
    import math_verify

    math_verify.parse(r"$\frac{1}{2} + \sqrt{3}x^2$", parsing_timeout=None)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + megabytes * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _judge_within(seconds: int, judge: Judge, text: str, gold: str) -> Outcome:
    """Judge with `seconds` of CPU time left to this process; after that the kernel kills it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime) + seconds, hard))
    try:
        return judge(text, gold)
    except MemoryError:
        return Outcome.TIMEOUT
