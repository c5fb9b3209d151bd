"""Atomic writes, flushed to disk before the rename, and readers whose errors name file and line."""

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

# Age in seconds from which an unlocked temporary folder counts as left by a killed writer.
_ABANDONED = 60
_LOCK = ".lock"  # in a claimed directory: NFS shares the locks of files among machines, not those of directories


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path on the same file system; it is renamed to `path`, or its link target, when the block ends
    without an error. Raises UserError if `path` exists and is not a file.

    Each writer has its own temporary path: of two at once, the later one wins, and its file is complete.
    """
    path = _linked(path)
    with _workplace(path) as folder:
        partial = folder / path.name
        yield partial
        if path.exists() and not path.is_file():
            raise UserError(f"{path} exists and is not a file: choose another output")
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; it replaces `path`, or its link target, when the block ends without an error. Of two writers
    the later one wins. Raises UserError if `path` is not a directory, or has entries but none that the new one has."""
    path = _linked(path)
    with _workplace(path) as folder:
        partial = folder / path.name
        partial.mkdir()
        yield partial
        if (there := _names(path)) and there.isdisjoint(_names(partial)):
            raise UserError(f"{path} contains other files ({min(there)}), which would be lost: choose another output")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} exists and is not a directory: choose another output")
        for part in [*partial.rglob("*"), partial]:
            _flush(part)
        while True:
            before = folder / uuid.uuid4().hex
            try:
                with suppress(FileNotFoundError):
                    path.rename(before)
                partial.rename(path)
                break
            except BaseException as error:
                with suppress(OSError):
                    before.rename(path)  # stays, unless another writer was faster
                if getattr(error, "errno", None) not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        _flush(path.parent)


def _names(folder: Path) -> set[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return {path.name for path in folder.iterdir()}
    return set()


def remove(path: Path) -> None:
    """Remove a file or a directory with all that it holds."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on an existing directory. Raises UserError if another process holds it."""
    lock = _lock(folder)
    if lock is None:
        raise UserError(f"another process is using {folder}: wait for it, stop it, or choose another output")
    try:
        yield
    finally:
        os.close(lock)


def is_claimed(folder: Path) -> bool:
    """Whether a process has claimed the directory; False on a file system without locks."""
    try:
        with (folder / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` for one writer; removes those that killed writers left."""
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
    """The target of a symbolic link, so that a write keeps the link; any other path unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _lock(folder: Path) -> int | None:
    """A descriptor that locks a directory until it is closed, or None if another process holds the lock. On a file
    system without locks it locks nothing."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.fstat(descriptor).st_nlink > 0  # else its holder has just removed the directory
    except BlockingIOError:
        held = False
    except OSError:
        held = True
    if not held:
        os.close(descriptor)
    return descriptor if held else None


def _flush(path: Path) -> None:
    """Flush a file or directory to disk: after a power loss the rename can survive without the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # directories of some file systems
            raise
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """UTF-8 text, without byte-order mark. Raises UserError for a file that is missing, unreadable or not UTF-8."""
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
    finite or have thousands of digits, lone surrogates, and too deep nesting."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        reason = error.msg
    except UnicodeEncodeError:
        raise UserError(f"{place}: a string contains a lone surrogate: {hint}") from None
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
            raise UserError(f"{place} is not a JSON object: {hint}")
        if missing := [name for name in required if name not in row]:
            raise UserError(f"{place} lacks the field '{missing[0]}'")
        rows.append(row)
    return rows


def read_parquet(path: Path, columns: Mapping[str, Any], hint: str = "make it again") -> "pd.DataFrame":
    """Read a parquet file that has rows and at least `columns`, as `require_columns` checks them. Raises UserError for
    a file that is missing, broken, empty or lacks a column.

    Arrow gets the path, not a Python file object, which pandas would pass: at interpreter exit an Arrow thread may
    still hold that object, and crashes the process when it asks for the GIL.
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
# The kinds of columns: in words, and the Arrow types that match.
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
    """Raise UserError unless the table of `path` has `columns`, each of its kind: `str`, `int`, `float`, `bool`,
    `list[int]` and so on, or `object` for anything. Only columns of floats and objects may have nulls."""
    for name, kind in columns.items():
        if name not in table.column_names:
            raise UserError(f"{path} has no column '{name}': {hint}")
        (words, stored), column = _KINDS[kind], table[name]
        gaps = column.null_count and kind not in (float, object)
        if len(table) and (gaps or not re.fullmatch(stored, str(column.type))):
            raise UserError(f"{path}: the column '{name}' is not {words} in every row: {hint}")


def read_csv(path: Path, columns: Mapping[str, type], hint: str = "make it again", **options: Any) -> "pd.DataFrame":
    """Read a CSV file that has at least `columns`, each of its kind: `str` (an empty cell is ""), `int` or `float`;
    `options` go to pandas. Raises UserError for a file that is missing, broken, lacks a column or holds other values.
    """
    import io

    import pandas as pd

    text, words = read_text(path), {column: kind for column, kind in columns.items() if kind is str}
    with damaged(path, hint):
        frame = pd.read_csv(io.StringIO(text), dtype=words, **options)
        if missing := [column for column in columns if column not in frame]:
            raise UserError(f"{path} has no column '{missing[0]}': {hint}")
        return frame.fillna(dict.fromkeys(words, "")).astype(dict(columns))


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as strict JSON; a NumPy scalar becomes a number, any other type that JSON lacks (a path) a string.

    Raises UserError, naming the place, for a number that is not finite: NaN is not JSON, nor a result.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False, default=_plain)
    except ValueError as error:
        place = first_infinite(value)
        raise UserError(f"nothing was written: {f'{place} is not finite' if place else error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path`, indented, whole or not at all. Raises UserError as `to_json` does."""
    text = to_json(value, indent=2) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)[:40]}' appears twice")
    return found


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is not a finite number")
    return value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def first_infinite(value: Any, place: str = "") -> str | None:
    """The place of the first number in nested values that is not finite; None if all are finite."""
    return next(_not_finite(value, place), None)


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """The places of numbers in nested values that are not finite, such as "cells.pass@1.lo"."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(part, f"{place}.{key}" if place else str(key))
