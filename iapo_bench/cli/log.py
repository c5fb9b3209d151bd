"""A job's log: all that it says goes to a file, and the terminal gets one line."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def logged(path: str, what: str) -> Iterator[None]:
    """Send standard output and error, those of child processes too, to `path`; say on the terminal how it ended."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    terminal = os.dup(2)
    name = Path(path).with_suffix("").name
    with Path(path).open("w") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        ended = "failed"
        try:
            yield
            ended = "done"
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            line = f"{what} {name}: {ended} in {time.monotonic() - started:.0f} s"
            os.write(terminal, f"{line}{'' if ended == 'done' else f', see {path}'}\n".encode())
