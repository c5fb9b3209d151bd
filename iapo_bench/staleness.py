"""What makes a job stale: each job reads a settings file whose name is a digest of all that can change its result."""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from iapo_bench.config.reading import dump_yaml, read_yaml
from iapo_bench.config.section import digest, identity
from iapo_bench.errors import UserError
from iapo_bench.files import read_json, whole_file, write_json
from iapo_bench.machine.code import code_digest, differences
from iapo_bench.machine.provenance import checksum

_SUMS = "checksums.json"


class SettingsFiles:
    """The settings files of a workflow's jobs, in one folder, and in `ran` a copy of those that each job last ran
    with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: set[str] = set()

    def write(
        self, name: str, job: BaseModel | None, module: str, plugins: Iterable[Path] = (), **contents: Any
    ) -> str:
        """Write a job's settings file, unless it exists, and print why the job is stale if its last run had others.
        Returns its path. `module` does the job's work and loads `plugins`; `contents` are digests of what it reads."""
        told = {"settings": identity(job) if job else {}, "code": code_digest(module, plugins), **contents}
        name = name.replace("/", "-").replace(" ", "--")
        path = self.folder / f"{name}-{digest(told)}.yaml"
        content = {"name": name, "job": job.model_dump(mode="json") if job else {}, "identity": told}
        text = dump_yaml(content)
        if not path.is_file():
            with whole_file(path) as partial:
                partial.write_text(text)
        elif path.read_bytes() != text.encode():
            _rewrite(path, text)
        self._tell(name, told, path)
        return str(path)

    def ran(self, settings: str) -> bool:
        """Whether the last run of a job had these settings, or others with the same identity."""
        content, _ = read_yaml(Path(settings))
        ran = _ran(self.folder, content["name"])
        return ran.is_file() and read_yaml(ran)[0].get("identity") == content["identity"]

    def checksum(self, path: Path) -> str:
        """SHA-256 of a file, in hex. It is kept until the file is another, or is changed: models are large."""
        known, stat = self._sums, path.stat()
        # Weights of two checkpoints are equally large, and copying can keep the time of a file's content.
        key, state = str(path.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        if key not in known or known[key][:-1] != state:
            known[key] = [*state, checksum(path)]
            write_json(self.folder / _SUMS, known)
        return known[key][-1]

    @cached_property
    def _sums(self) -> dict[str, Any]:
        """What `checksum` has kept; nothing if the file is damaged."""
        with suppress(UserError):
            return read_json(self.folder / _SUMS)
        return {}

    def _tell(self, name: str, told: dict[str, Any], path: Path) -> None:
        ran = _ran(self.folder, name)
        if name in self._told or not ran.is_file():
            return
        self._told.add(name)
        before = read_yaml(ran)[0].get("identity")
        if before != json.loads(json.dumps(told)):
            click.echo(f"stale: {name}, {_why(before, told)}", err=True)
            if path.stat().st_mtime_ns < ran.stat().st_mtime_ns:
                # Where Snakemake goes by times alone, a settings file of an earlier call would make nothing stale.
                os.utime(path)


def _why(before: Any, told: dict[str, Any]) -> str:
    """What differs between two identities, in words: of two lists, such as the rows of a table, their items."""

    def items(identity: Any) -> Any:
        lists = identity.items() if isinstance(identity, dict) else ()
        return {key: dict.fromkeys(value, "there") if isinstance(value, list) else value for key, value in lists}

    by_item = items(before), items(told)
    return differences(before, told) if by_item[0] == by_item[1] else differences(*by_item)


def note_ran(settings: Path) -> None:
    """Record the settings of a finished job, so that the workflow can say why it runs again."""
    content, _ = read_yaml(settings)
    with whole_file(_ran(settings.parent, content["name"])) as ran:
        shutil.copy(settings, ran)


def _ran(folder: Path, name: str) -> Path:
    return folder / "ran" / f"{name}.yaml"


def _rewrite(path: Path, text: str) -> None:
    """Rewrite settings that cannot change a result; keep the file's mtime, as a newer one would make the job stale."""
    stat = path.stat()
    with whole_file(path) as partial:
        partial.write_text(text)
        os.utime(partial, ns=(stat.st_atime_ns, stat.st_mtime_ns))
