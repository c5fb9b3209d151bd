"""Errors that are the user's to mend: one clear line, exit code 2, nothing half-written."""

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake in the input. The message says what is wrong and what to do; the CLI prints it without a traceback."""


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
def blamed(file: str | Path, owner: str, part: str) -> Iterator[None]:
    """Make one line of whatever goes wrong inside: a UserError with the owner of `file`, the last line reached in it,
    the part of the owner that was at work, and what most likely helps."""
    try:
        yield
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        kind = "" if isinstance(error, UserError | ValueError) else f"{type(error).__name__}: "
        hints = [hint for words, hint in _HINTS.items() if words in str(error)]
        place = f"{file}:{lines[-1]}" if lines else f"{file}"
        raise UserError(": ".join([f"{owner} ({place})", part, f"{kind}{error}", *hints[:1]])) from error
