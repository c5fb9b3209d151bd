"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import os
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

SECONDS = 10.0  # between the lines of a log


def bars_as_lines() -> None:
    """Let every bar of every library write whole lines, seldom: for files that people read later."""
    os.environ["TQDM_MININTERVAL"] = str(SECONDS)  # for child processes
    tqdm.status_printer = staticmethod(_lines)  # type: ignore[method-assign]


def _lines(file: Any) -> Callable[[str], None]:
    """What writes each state of a bar as a line of its own."""

    def write(state: str) -> None:
        if state.strip():
            file.write(f"{state.strip()}\n")
            file.flush()

    return write


class _Lines(tqdm):
    """A bar that writes whole lines."""

    status_printer = staticmethod(_lines)


def progress(iterable: Any = None, **options: Any) -> tqdm:
    """A `tqdm` bar of the options given; where standard error is no terminal, at most a line in ten seconds."""
    if sys.stderr.isatty():
        return tqdm(iterable, **{"mininterval": 1, **options})
    return _Lines(iterable, **{**options, "mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 1, "ascii": True})
