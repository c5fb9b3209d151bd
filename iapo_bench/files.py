"""Files that are written whole or not at all and lie on the disk before they get their name, and readers that name the
file and line of whatever is wrong with one."""

import errno
import fcntl
import glob
import json
import math
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iapo_bench.errors import UserError, damaged, written

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Seconds after which the folder of a writer that holds no lock is that of one that was killed.
_ABANDONED = 60


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, in the same file system; it becomes `path`, or what that links to, when the block ends
    without an error. Raises UserError where `path` is something else than a file.

    Each writer has a path of its own: of two at once both are whole, and the later one stays.
    """
    path = _linked(path)
    with _workplace(path) as folder:
        partial = folder / path.name
        yield partial
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file and would be lost: choose another output")
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; it replaces `path`, or what that links to, when the block ends without an error. Of two
    writers the later one stays. Raises UserError where `path` is no directory, or one of things that are none of this
    writer's."""
    path = _linked(path)
    with _workplace(path) as folder:
        partial = folder / path.name
        partial.mkdir()
        yield partial
        if (there := _names(path)) and there.isdisjoint(_names(partial)):
            raise UserError(f"{path} holds other things ({min(there)}): they would be lost: choose another output")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is not a directory and would be lost: choose another output")
        for part in [*partial.rglob("*"), partial]:
            _flush(part)
        while True:
            with suppress(FileNotFoundError):
                path.rename(folder / uuid.uuid4().hex)
            try:
                partial.rename(path)
                break
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # those: another writer was faster
                    raise
        _flush(path.parent)


def _names(folder: Path) -> set[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return {path.name for path in folder.iterdir()}
    return set()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep an existing directory to this process. Raises UserError while another one has claimed it."""
    lock = _lock(folder)
    if lock is None:
        raise UserError(f"another process works in {folder}: wait for it, end it, or choose another output")
    try:
        yield
    finally:
        os.close(lock)


def is_claimed(folder: Path) -> bool:
    """Whether a process has claimed the directory; where the file system knows no locks, no."""
    lock = _lock(folder)
    if lock is not None:
        os.close(lock)
    return lock is None


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A directory beside `path` for one writer; those of writers that were killed are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED and (lock := _lock(left)) is not None:
                os.close(lock)
                shutil.rmtree(left, ignore_errors=True)
    with written(path, str(path.with_name(f".{path.name}."))):
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            with claimed(folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _linked(path: Path) -> Path:
    """Where a symbolic link leads, which stays as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a directory until it is closed, or None while another process has it. Where
    the file system knows no locks, it holds none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor


def _flush(path: Path) -> None:
    """Bring a file or a directory to the disk: a rename alone can survive a loss of power that its content does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # directories of some file systems
            raise
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """UTF-8 text, without a byte-order mark. Raises UserError for a file that is missing, unreadable or not that."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line} is not UTF-8 text ({error.reason}): save the file as UTF-8") from None


def parse_json(text: str, place: str, hint: str) -> Any:
    """The value of strict JSON. Raises UserError that names `place` and ends with `hint`, also for numbers that are not
    finite or have thousands of digits, halves of surrogate pairs, and nesting beyond reading."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        reason = error.msg
    except UnicodeEncodeError:
        raise UserError(f"{place}: a string holds half of a surrogate pair: {hint}") from None
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error).split(";")[0]
    raise UserError(f"{place} is not JSON ({reason}): {hint}")


def read_json(path: Path, hint: str = "make it again") -> Any:
    """The value of a JSON file. Raises UserError for a file that is missing or broken."""
    return parse_json(read_text(path), str(path), hint)


def read_jsonl(path: Path, required: Iterable[str], hint: str = "fetch the file again") -> list[dict[str, Any]]:
    """Rows of a JSON-lines file, each with the `required` fields. Raises UserError naming file and line."""
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty: {hint}")
    rows = []
    # splitlines would also break at separators that JSON allows within a string
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        place = f"{path}:{number}"
        row = parse_json(line, place, f"a truncated download? {hint}")
        if not isinstance(row, dict):
            raise UserError(f"{place} is not an object of fields: {hint}")
        if missing := [name for name in required if name not in row]:
            raise UserError(f"{place} lacks the field '{missing[0]}'")
        rows.append(row)
    return rows


def read_parquet(path: Path, columns: Mapping[str, Any], hint: str = "make it again") -> "pd.DataFrame":
    """The table of a parquet file that has rows and at least `columns`, each of its kind. Raises UserError for a file
    that is missing, broken, empty or without one of them.

    Arrow opens the file itself. Given a file of Python's, as pandas would, its threads may still hold that when the
    interpreter ends, and a thread that then asks for the interpreter's lock takes the process down.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path} does not exist: {hint}")
    with damaged(path, hint):
        table = pq.read_table(path, partitioning=None)
        require_columns(table, columns, path, hint)
        frame = table.to_pandas()
    if frame.empty:
        raise UserError(f"{path} is empty: {hint}")
    return frame


_WHOLE, _NUMBER, _TEXT = r"u?int\d+", r"double|float|u?int\d+", "(large_)?string"
_LIST = r"(large_)?list<\w+: (%s)( not null)?>"
# What a column is asked to hold: in words, and the types of Arrow's that do.
_KINDS = {
    str: ("text", rf"{_TEXT}|dictionary<values={_TEXT},.*>"),
    int: ("a whole number", _WHOLE),
    float: ("a number", _NUMBER),
    bool: ("true or false", "bool"),
    list[str]: ("a list of text", _LIST % _TEXT),
    list[int]: ("a list of whole numbers", _LIST % _WHOLE),
    list[float]: ("a list of numbers", _LIST % _NUMBER),
    object: ("anything", ".*"),
}


def require_columns(table: "pa.Table", columns: Mapping[str, Any], path: Path, hint: str) -> None:
    """Raises UserError unless the table of `path` has `columns`, each of its kind: `str`, `int`, `float`, `bool`,
    `list[int]` and so on, or `object`, which is anything. No row is without a value, but for floats and objects."""
    for name, kind in columns.items():
        if name not in table.column_names:
            raise UserError(f"{path} has no column '{name}': {hint}")
        (words, stored), column = _KINDS[kind], table[name]
        gaps = column.null_count and kind not in (float, object)
        if len(table) and (gaps or not re.fullmatch(stored, str(column.type))):
            raise UserError(f"{path}: the column '{name}' is not {words} in every row: {hint}")


def read_csv(path: Path, columns: Iterable[str] = (), hint: str = "make it again", **options: Any) -> "pd.DataFrame":
    """The table of a CSV file that has at least `columns`; `options` are those of pandas. Raises UserError for a file
    that is missing, broken, or without one of them."""
    import io

    import pandas as pd

    text = read_text(path)
    with damaged(path, hint):
        frame = pd.read_csv(io.StringIO(text), **options)
    if missing := [column for column in columns if column not in frame]:
        raise UserError(f"{path} has no column '{missing[0]}': {hint}")
    return frame


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as strict JSON; a NumPy scalar becomes its number, and what else JSON does not know (a path) its text.

    Raises UserError, naming the place, for a number that is not finite: bare NaN is no JSON, and no result either.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False, default=_plain)
    except ValueError as error:
        place = first_infinite(value)
        raise UserError(f"nothing is written: {f'{place} is not finite' if place else error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, indented, whole or not at all. Raises UserError as `to_json` does."""
    text = to_json(value, indent=2) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)[:40]}' is there twice")
    return found


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is not a finite number")
    return value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def first_infinite(value: Any, place: str = "") -> str | None:
    """Where in nested values the first number stands that is not finite; None where all are."""
    return next(_not_finite(value, place), None)


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Where in nested values the numbers stand that are not finite: "cells.pass@1.lo"."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(part, f"{place}.{key}" if place else str(key))
