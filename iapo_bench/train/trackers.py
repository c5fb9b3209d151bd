"""Training logs in TensorBoard, Trackio and Weights & Biases, written by the libraries themselves.

The rows of the checkpoint are logged first, in place of an earlier process's log: a resumed run continues the same log,
and no step is missing or repeated, wherever the earlier process stopped.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from iapo_bench.config.train import Tracker, TrainJob
from iapo_bench.errors import UserError, first_line

PROJECT = "iapo-bench"
Row = dict[str, Any]  # a row of train.jsonl
Log = Callable[[dict[str, float], int], None]  # takes the numbers of a step, and the step


def require_trackers(names: Iterable[Tracker]) -> None:
    """Raise UserError, with the command that installs it, for a library that is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.report_to: {name} is not installed: pip install -c constraints.txt -e '.[{name}]', or drop it"
            )


@contextmanager
def tracking(
    names: Sequence[Tracker], rows: Iterable[Row], *, folder: Path, run: str, job: TrainJob
) -> Iterator[Callable[[Row], None]]:
    """Open the logs of a run, log `rows`, and yield the function that logs each further row.

    `folder`: where TensorBoard and Weights & Biases write; Trackio has its own place. `run`: the run's name, unique to
    its settings, inputs and code. Raises UserError for a log that cannot be opened; one that fails later ends with a
    warning.
    """
    with ExitStack() as ends:
        logs: dict[str, Log] = {}
        for name in names:
            try:
                logs[name] = ends.enter_context(_OPENERS[name](folder, run, job))
            except Exception as error:
                offline = "; WANDB_MODE=offline logs on this machine alone" if name == "wandb" else ""
                raise UserError(f"train.report_to: {name} cannot log: {first_line(error)}{offline}") from error

        def tell(row: Row) -> None:
            found = numbers(row)
            step = int(found.pop("step"))  # the logs' x-axis
            for name in list(logs):
                try:
                    logs[name](found, step)
                except Exception as error:  # a failing log must not stop the run
                    del logs[name]
                    click.echo(f"warning: {name} logs no further: {first_line(error)}", err=True)

        for row in rows:
            tell(row)
        yield tell


def numbers(row: Row, prefix: str = "") -> dict[str, float]:
    """The numbers of a row by their names in train.jsonl, nested ones as `rewards/correct`."""
    found: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found[prefix + key] = float(value)
    return found


@contextmanager
def _tensorboard(folder: Path, run: str, job: TrainJob) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tensorboard"
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(place) as writer:

        def log(found: dict[str, float], step: int) -> None:
            for name, value in found.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield log


@contextmanager
def _trackio(folder: Path, run: str, job: TrainJob) -> Iterator[Log]:
    import trackio

    with suppress(ValueError):  # there is no such project yet
        for earlier in [each for each in trackio.Api().runs(PROJECT) if each.name == run]:
            earlier.delete()
    opened = trackio.init(
        PROJECT, run, config=job.model_dump(mode="json"), embed=False, auto_log_gpu=False, auto_log_cpu=False
    )
    try:
        yield lambda found, step: opened.log(found, step=step)
    finally:
        opened.finish()


@contextmanager
def _wandb(folder: Path, run: str, job: TrainJob) -> Iterator[Log]:
    import wandb

    for earlier in folder.glob(f"wandb/offline-run-*-{run}"):
        shutil.rmtree(earlier)
    with wandb.init(
        project=PROJECT, name=run, id=run, resume="allow", dir=folder, config=job.model_dump(mode="json")
    ) as opened:
        first = opened.step  # after the steps that the server has

        def log(found: dict[str, float], step: int) -> None:
            if step >= first:
                opened.log(found, step=step)

        yield log


_OPENERS = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
