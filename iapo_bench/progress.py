"""Progress of long work: a bar on a terminal, occasional lines in a log."""

import os
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

SECONDS = 10.0  # between the lines of a log


def bars_as_lines() -> None:
    """Make the bars of all libraries write whole lines at long intervals, for log files."""
    os.environ["TQDM_MININTERVAL"] = str(SECONDS)  # for child processes
    tqdm.status_printer = staticmethod(_lines)  # type: ignore[method-assign]


def _lines(file: Any) -> Callable[[str], None]:
    """A printer that writes each state of a bar on its own line."""

    def write(state: str) -> None:
        if state.strip():
            file.write(f"{state.strip()}\n")
            file.flush()

    return write


class _Lines(tqdm):
    """A bar that writes whole lines."""

    status_printer = staticmethod(_lines)


def progress(iterable: Any = None, **options: Any) -> tqdm:
    """A `tqdm` bar with these options; if standard error is not a terminal, at most one line every ten seconds."""
    if sys.stderr.isatty():
        return tqdm(iterable, **{"mininterval": 1, **options})
    return _Lines(iterable, **{**options, "mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 1, "ascii": True})
