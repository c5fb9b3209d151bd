"""A job's log: all output goes to a file as whole lines, and the terminal gets one line on failure."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from iapo_bench.errors import explain, first_line
from iapo_bench.machine import parallel
from iapo_bench.progress import bars_as_lines


@contextmanager
def logged(path: str, what: str) -> Iterator[None]:
    """Send standard output and error, those of child processes too, to `path`; say on the terminal why it failed."""
    log = Path(path)
    log.parent.mkdir(parents=True, exist_ok=True)
    if not parallel.is_started():  # the processes of one job share its log
        log.unlink(missing_ok=True)
    terminal = os.dup(2)
    with log.open("a") as file:
        _flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    bars_as_lines()
    try:
        yield
    except Exception as error:
        _flush()
        os.write(terminal, f"{what} failed: {_line(error)} (log: {path})\n".encode())
        raise
    except SystemExit as stop:
        _flush()
        said = log.read_text(errors="replace").strip().splitlines()
        if stop.code:
            os.write(terminal, f"{what} failed: {said[-1] if said else stop.code} (log: {path})\n".encode())
        raise


def _line(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    return " ".join((explain(error) or f"{type(error).__name__}: {first_line(error)}").split())


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
