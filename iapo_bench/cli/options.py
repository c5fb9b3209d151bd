"""Options that several commands share, and the source of a command's settings."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic import BaseModel, ValidationError

from iapo_bench.config.reading import merge, nest, parse_yaml, read_yaml
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.staleness import note_ran


class _Path(click.Path):
    """A path in UTF-8, as some libraries need it; `named`: it must have a name, unlike `.` and `..`."""

    def __init__(self, *, named: bool = False) -> None:
        super().__init__(path_type=Path)
        self._named = named

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, context)))
        try:
            str(path).encode()
        except UnicodeEncodeError:
            self.fail(f"{str(path)!r} is not UTF-8: rename it", param, context)
        if self._named and path.name in ("", ".."):
            self.fail(f"'{value}' does not end in a file name: add one", param, context)
        return path


FILE, OUT = _Path(), _Path(named=True)

_RUN: dict[str, Any] = {
    "multiple": True,
    "metavar": "METHOD/SEED=DIR",
    "help": "A run, such as dapo/0=results/micro/dapo/seed0; base=DIR for the base. Repeat.",
}
RUNS = click.option("--run", "runs", required=True, **_RUN)
ANY_RUNS = click.option("--run", "runs", **_RUN)  # none where nothing is trained


def tier_options(command: Any) -> Any:
    """`--config` and `--set`."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one setting, e.g. --set train.completions=512. Repeat.",
    )(command)
    return click.option("--config", "config", default="micro", metavar="TIER|FILE", help="A tier's name or file.")(
        command
    )


def read_options(config: str, overrides: tuple[str, ...]) -> TierConfig:
    """The tier that `--config` and `--set` describe."""
    changes: dict[str, Any] = {}
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise UserError(f"--set {item}: write KEY=VALUE, for example train.completions=512")
        changes = merge(changes, nest(key, parse_yaml(value, f"--set {item}")[0]))
    return read_tier(config, changes, where="--set")


def with_job(kind: type[BaseModel], make: Callable[..., BaseModel], *names: str) -> Callable[[Any], Any]:
    """Give a command its settings as `job`: read from the file of `--settings`, or else `make(tier, **options)`, where
    `--config` and `--set` describe the tier and `names` are the command's options to pass."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def command(*args: Any, settings: Path | None, config: str, overrides: tuple[str, ...], **given: Any) -> Any:
            own = {name: given.pop(name) for name in names}
            if settings:
                refuse_given("--settings holds all settings", "config", "overrides", *names)
                job = read_job(settings, kind)
            else:
                job = _made(make, read_options(config, overrides), own)
            result = function(*args, job, **given)
            if settings:
                note_ran(settings)
            return result

        option = click.option(
            "--settings",
            type=FILE,
            metavar="FILE",
            help="Resolved settings that the workflow wrote, in place of --config, --set and the like.",
        )
        return option(tier_options(command))

    return decorate


def refuse_given(reason: str, *names: str) -> None:
    """Raise UserError if the user gave one of these parameters to the command that runs."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            (option,) = (each.opts[0] for each in context.command.params if each.name == name)
            raise UserError(f"{reason}: leave out {option}")


def _made(make: Callable[..., BaseModel], tier: TierConfig, options: dict[str, Any]) -> BaseModel:
    try:
        return make(tier, **options)
    except ValidationError as error:
        raise UserError(_first(error)) from None


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"


def read_job(path: Path, kind: type[BaseModel]) -> Any:
    """The settings of a job, from a file of the workflow. Raises UserError when they are not those of `kind`."""
    content, _ = read_yaml(path)
    if not isinstance(content.get("name"), str):
        raise UserError(f"{path} has no 'name' of the job: let the workflow write it again")
    try:
        return kind.model_validate(content.get("job"))
    except ValidationError as error:
        raise UserError(f"{path}: job.{_first(error)}") from None


def named(runs: tuple[str, ...]) -> dict[str, Path]:
    """The directories of `--run` by name. Raises UserError for a value that is not NAME=DIR."""
    found = {}
    for run in runs:
        name, separator, folder = run.partition("=")
        if not separator or not name or not folder:
            raise UserError(f"--run {run}: write METHOD/SEED=DIR, or base=DIR")
        if name in found:
            raise UserError(f"--run {name} is given twice: give each run its own name")
        found[name] = Path(folder)
    return found
