"""State of a stopped job: a folder for its unfinished work, files with checksums, and finished parts."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from iapo_bench.config.section import identity
from iapo_bench.errors import UserError
from iapo_bench.files import claimed, read_json, remove, whole_file, write_json
from iapo_bench.machine.code import code_digest, differences

_SEAL = hashlib.sha256().digest_size
_CHUNK = 2**24


def run_identity(
    job: BaseModel,
    module: str,
    plugins: Iterable[Path] = (),
    packages: Iterable[str] = ("torch", "transformers"),
    *,
    inputs: dict[str, Any],
) -> dict[str, Any]:
    """Everything that a job's unfinished work depends on: settings that change results, inputs, code and versions."""
    return {
        "settings": identity(job),
        **inputs,
        "code": code_digest(module, plugins),
        **{name: metadata.version(name) for name in packages},
    }


@contextmanager
def resuming(folder: Path, run: dict[str, Any], *, main: bool = True) -> Iterator[Path]:
    """Claim `folder`, which may hold unfinished work of the same run; remove it when the block ends without an error.

    The work of a different run is set aside, with a line that says why. Raises UserError while another process works
    there. Of several ranks only the `main` one does this, and its block must end last.
    """
    with ExitStack() as claims:
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            claims.enter_context(claimed(folder))
            if _work(folder) and (why := _foreign(folder, run)):
                aside = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:12]}")
                folder.rename(aside)
                folder.mkdir()
                claims.enter_context(claimed(folder))
                click.echo(f"starts anew, {why}; the old checkpoint is set aside in {aside}", err=True)
            elif _work(folder):
                click.echo(f"goes on with what an earlier call finished, in {folder}", err=True)
            write_json(folder / "run.json", run)
        yield folder
        if main:
            _remove(folder)
    if main:
        with suppress(OSError):
            folder.rmdir()  # NFS keeps a directory while one of its files, here the lock, is open


def _remove(folder: Path) -> None:
    """Remove `folder`, run.json last: what a kill leaves without it would be taken for the work of another run."""
    with suppress(OSError):
        for path in _work(folder):
            remove(path)
    shutil.rmtree(folder, ignore_errors=True)


def _work(folder: Path) -> list[Path]:
    """What `folder` holds beyond what a run leaves if it fails before its first checkpoint."""
    return [path for path in folder.iterdir() if not path.name.startswith((".", "run.json"))]


def _foreign(folder: Path, run: dict[str, Any]) -> str:
    """Why the work in `folder` is not this run's; empty if it is."""
    note = folder / "run.json"
    if not note.exists():
        return "its checkpoint does not say of what run it is"
    try:
        before = read_json(note)
    except UserError as error:
        return str(error)
    if not isinstance(before, dict):
        return f"{note} is damaged"
    return "" if before == json.loads(json.dumps(run)) else differences(before, run)


def seal(path: Path) -> None:
    """Append to a file the SHA-256 of its content, 32 bytes."""
    with path.open("r+b") as file:
        checksum = hashlib.file_digest(file, "sha256").digest()
        file.seek(0, os.SEEK_END)
        file.write(checksum)


def is_sound(path: Path) -> bool:
    """Whether the content of a sealed file matches its checksum."""
    left, checksum = path.stat().st_size - _SEAL, hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            checksum.update(chunk)
            left -= len(chunk)
        return left == 0 and file.read() == checksum.digest()


def kept(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """A finished part of a job, a JSON value: read from `folder` if an earlier call kept it, else made and kept there.

    A damaged part is made again, with a warning.
    """
    path = folder / f"{name}.json"
    if path.is_file():
        if is_sound(path):
            return json.loads(path.read_bytes()[:-_SEAL])
        click.echo(f"warning: {path} is damaged: this part is made again", err=True)
    text = json.dumps(make())
    with whole_file(path) as partial:
        partial.write_text(text)
        seal(partial)
    return json.loads(text)
