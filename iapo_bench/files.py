"""Files that are written whole or not at all, so that no later step ever reads half of one, and strict JSON."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iapo_bench.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, in the same directory; it becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; it replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as strict JSON; a NumPy scalar becomes its number, and what else JSON does not know (a path) its text.

    Raises UserError, naming the place, for a number that is not finite: bare NaN is no JSON, and no result either.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False, default=_plain)
    except ValueError as error:
        place = next(_not_finite(value), None)
        raise UserError(f"nothing is written: {f'{place} is not finite' if place else error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, indented, whole or not at all. Raises UserError as `to_json` does."""
    text = to_json(value, indent=2) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Where in nested values the numbers stand that are not finite: "cells.pass@1.lo"."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(part, f"{place}.{key}" if place else str(key))
