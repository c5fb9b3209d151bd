"""Errors that the user or the machine causes: one clear line, exit code 2, nothing half-written."""

import difflib
import errno
import inspect
import re
import resource
import signal
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake in the input. The message says what is wrong and what to do; the CLI prints it without a traceback."""


class Stopped(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.name = signal.Signals(number).name


# Out-of-memory messages of libraries, each of which raises its own type of exception.
_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|failed to) allocate|bad_alloc|can't start new thread|"
    r"failed to map segment|mmap failed",
    re.IGNORECASE,
)
# File-system errors of libraries written in other languages, which carry no errno.
_SYSTEM = re.compile(
    r"\(os error \d+\)|file write failed|No space left|File too large|Read-only file system|inline_container"
)
GOES_ON = "the same command goes on where it stopped"
_ADDRESS_SPACE = 1.25  # GiB; loading torch, transformers and scipy takes 1.1


def explain(error: BaseException) -> str | None:
    """One line for an error of the user or the machine (memory, disk, files); None for a bug in the program."""
    if isinstance(error, UserError):
        return str(error)
    reason = first_line(error)
    if short_of_memory(error):
        return f"out of memory ({reason}): give it more, or smaller batches; {GOES_ON}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or reason}; when that is mended, {GOES_ON}"
    if isinstance(error, OSError) or _SYSTEM.search(str(error)):
        return f"{reason}; when that is mended, {GOES_ON}"
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if the message is empty."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def short_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or a library means that memory ran out."""
    if isinstance(error, SystemError):
        # An extension can lose the MemoryError of a failed allocation. Allocations fail only under a limit; without one
        # the kernel kills processes instead, and a SystemError is a bug in the extension.
        return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | ImportError) and bool(_MEMORY.search(str(error)))
    )


def require_address_space() -> None:
    """Raise UserError if `ulimit -v` is too low to load the libraries: OpenBLAS would hang, or the loader abort, before
    Python could report an error."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE * 2**30:
        raise UserError(
            f"out of memory (`ulimit -v` leaves {limit / 2**30:.2f} GiB, and {_ADDRESS_SPACE} are needed to load the "
            f"libraries): give it more; {GOES_ON}"
        )


@contextmanager
def damaged(file: str | Path, hint: str) -> Iterator[None]:
    """Turn any exception of a library that reads `file`, unless memory ran out, into a UserError that ends with
    `hint`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if short_of_memory(error):
            raise
        raise UserError(f"{file} cannot be read ({first_line(error)}): {hint}") from None


@contextmanager
def written(file: Path, unfinished: str) -> Iterator[None]:
    """Make a file-system error name `file` if it names no path, or one that begins with `unfinished`."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if error.errno is None or not str(Path(error.filename or unfinished)).startswith(unfinished):
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error
    except Exception as error:
        if not _SYSTEM.search(str(error)):
            raise
        unclear = "inline_container" in str(error)  # torch's: it names neither the file nor the cause
        reason = "cannot be written whole (is the disk full?)" if unclear else first_line(error)
        raise OSError(errno.EIO, reason, str(file)) from error


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name: the nearest known name, if one is close, and all known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {kind} '{name}': {hint}known: {', '.join(known) or 'none'}")


# The likely fix of a failing line in a user's file, by words of the error.
_HINTS = {
    "bool tensor": "flags such as correct_B are bool: use per_group(batch.correct_B, batch), or .float()",
    "dtype must be either a floating point": "lengths and flags are not floats: use per_group, or .float()",
    "NoneType": "a signal that `needs` does not name is None: name it there, and read it with signal(batch, Signal.X)",
}


@contextmanager
def blamed(file: str | Path, owner: str, part: str, function: object = None) -> Iterator[None]:
    """Turn any error inside into a one-line UserError: `owner`, the last line reached in `file` (or else the first line
    of `function` there), the failing `part`, the message, and a likely fix."""
    try:
        yield
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        hints = [hint for words, hint in _HINTS.items() if lines and words in str(error)]
        kind = "" if isinstance(error, UserError | ValueError) else f"{type(error).__name__}: "
        what = f"{kind}{error}"
        if isinstance(error, SyntaxError) and error.filename == str(file):
            lines, what = [error.lineno], f"{kind}{error.msg}"
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        if not lines and code and code.co_filename == str(file):
            lines = [code.co_firstlineno]
        place = f"{file}:{lines[-1]}" if lines else f"{file}"
        raise UserError(": ".join([f"{owner} ({place})", part, what, *hints[:1]])) from error
