"""Errors that are the user's to mend, or the machine's fault: one clear line, exit code 2, nothing half-written."""

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


# What libraries say when memory is short; each has an exception of its own.
_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|failed to) allocate|bad_alloc|can't start new thread|"
    r"failed to map segment|mmap failed",
    re.IGNORECASE,
)
# What libraries that write in another language than Python say of the file system.
_SYSTEM = re.compile(r"\(os error \d+\)|file write failed|No space left|File too large|Read-only file system")
GOES_ON = "the same command goes on where it stopped"
_ADDRESS_SPACE = 1.25  # GiB; loading torch, transformers and scipy takes 1.1


def explain(error: BaseException) -> str | None:
    """The line for an error of the user, or of the machine: memory, disk, files. None for a mistake of the program."""
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
    """What an error says in its first line, or else its kind."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def short_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, in the words of Python or of a library."""
    if isinstance(error, SystemError):
        # Where an allocation fails, an extension can lose the MemoryError. Allocations fail under a limit; without one
        # the kernel ends processes instead, and a SystemError is a mistake of an extension.
        return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError | ImportError) and bool(_MEMORY.search(str(error)))
    )


def require_address_space() -> None:
    """Refuse a limit of address space in which libraries do not load: there OpenBLAS waits for ever, or the loader
    aborts, before Python can say a word."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE * 2**30:
        raise UserError(
            f"out of memory (`ulimit -v` leaves {limit / 2**30:.2f} GiB, and {_ADDRESS_SPACE} are needed to load the "
            f"libraries): give it more; {GOES_ON}"
        )


@contextmanager
def damaged(file: str | Path, hint: str) -> Iterator[None]:
    """Make a UserError of whatever a library raises that reads `file`, but for a lack of memory."""
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
    """Let what the file system says of no path, or of one that begins with `unfinished`, name `file`."""
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
        raise OSError(errno.EIO, first_line(error), str(file)) from error


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names or all that do."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {kind} '{name}': {hint}known: {', '.join(known) or 'none'}")


# What a failing line of a user's file most likely needs, by what the error says.
_HINTS = {
    "bool tensor": "flags such as correct_B are bool: use per_group(batch.correct_B, batch), or .float()",
    "dtype must be either a floating point": "lengths and flags are not floats: use per_group, or .float()",
    "NoneType": "a signal that `needs` does not name is None: name it there, and read it with signal(batch, Signal.X)",
}


@contextmanager
def blamed(file: str | Path, owner: str, part: str, function: object = None) -> Iterator[None]:
    """Make one line of whatever goes wrong inside: a UserError with the owner of `file`, the last line reached in it,
    or else where `function` begins there, the part of the owner that was at work, and what most likely helps."""
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
