"""Errors that are the user's to mend: one clear line, exit code 2, nothing half-written."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input. The message says what is wrong and what to do; the CLI prints it without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest names or all that do."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {kind} '{name}': {hint}known: {', '.join(known) or 'none'}")
