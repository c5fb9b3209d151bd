"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

SECONDS = 10.0  # between the lines of a log


class _Lines(tqdm):
    """A bar that writes whole lines, for files that people read later."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Write each state as a line of its own."""

        def write(state: str) -> None:
            if state.strip():
                file.write(f"{state}\n")
                file.flush()

        return write


def progress(iterable: Any = None, **options: Any) -> tqdm:
    """A `tqdm` bar of the options given; where standard error is no terminal, at most a line in ten seconds."""
    if sys.stderr.isatty():
        return tqdm(iterable, **{"mininterval": 1, **options})
    return _Lines(iterable, **{**options, "mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 1, "ascii": True})
