"""The command line: steps of the workflow, tables and figures, tools; a module for each group."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click

from iapo_bench.errors import GOES_ON, Stopped, UserError, explain, require_address_space


class _Grouped(click.Group):
    """Commands listed under what people do with them."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.sections: dict[str, list[str]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands under a heading of `--help`."""
        for command in commands:
            if command.callback is not None:
                command.callback = _sparing(command.callback)
            self.add_command(command)
            self.sections.setdefault(title, []).append(str(command.name))

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list per section."""
        for title, names in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=86)) for name in names])


_OUTPUTS = ("out", "figure")


def _sparing(call: Callable[..., Any]) -> Callable[..., Any]:
    """A command that refuses an output which is one of its inputs and would replace it."""

    @wraps(call)
    def spared(**given: Any) -> Any:
        outputs = {os.path.realpath(path) for name in _OUTPUTS if (path := given.get(name))}
        for name, value in given.items():
            for path in value if isinstance(value, tuple) else (value,):
                if name not in _OUTPUTS and isinstance(path, Path) and os.path.realpath(path) in outputs:
                    raise UserError(f"{path} is what this command reads: choose another output")
        return call(**given)

    return spared


@click.group(
    cls=_Grouped,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; by default torch's own choice.")
@click.option("--gpus", type=click.IntRange(0), default=0, help="Lease this many GPUs for exclusive use (0: use none).")
@click.option("--jobs-per-gpu", type=click.IntRange(1), default=1, help="Number of commands that may share a GPU.")
@click.option(
    "--log",
    type=click.Path(),
    help="Write all output to this file; the terminal gets one line on failure.",
)
@click.pass_context
def cli(context: click.Context, threads: int | None, gpus: int, jobs_per_gpu: int, log: str | None) -> None:
    """Which RL method makes a language model reason in fewer tokens without losing accuracy?

    `snakemake --cores all results/table1.csv` runs these commands in order, for every method and training seed. By
    hand, for one run of one method on the default tier:

    \b
      iapo-bench prepare --out data
      iapo-bench base    --out base
      iapo-bench train   --method iapo --base base --data data --out iapo
      iapo-bench sample  --model iapo/model --data data --out iapo/test
      iapo-bench grade   --samples iapo/test/samples.parquet --data data --out iapo/test/grades.parquet
      iapo-bench metrics --grades iapo/test/grades.parquet --method iapo --out iapo/summary.json
      iapo-bench table   --summary iapo/summary.json --out table1.csv --figure accuracy_length.png
    """
    require_address_space()
    if log:
        from iapo_bench.cli.log import logged

        context.with_resource(logged(log, context.invoked_subcommand or ""))
    _use_gpus(context, gpus, jobs_per_gpu)
    if threads is not None:
        import torch

        torch.set_num_threads(max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


def _use_gpus(context: click.Context, count: int, jobs_per_gpu: int) -> None:
    """Make only the requested GPUs visible to this process; a launcher has already done so for its processes."""
    from iapo_bench.machine.gpu_lease import STARTED, lease_gpus, only_visible, require_usable

    if STARTED in os.environ:
        return
    context.with_resource(lease_gpus(count, jobs_per_gpu=jobs_per_gpu) if count else only_visible([]))
    if count:
        require_usable(count)


def _add_commands() -> None:
    from iapo_bench.cli import bench, reports, steps, tools

    cli.add_section("Steps of the workflow", *steps.COMMANDS)
    cli.add_section("Tables and figures", *reports.COMMANDS)
    cli.add_section("Tools", *tools.COMMANDS, bench.bench)


_add_commands()


def main() -> None:
    """Run the command line; an error of the user or the machine, and a signal, each print one line."""
    with _stopped_by_signals():
        _main()


def _main() -> None:
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt, Stopped) as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        fail(f"stopped by {signal.Signals(number).name}; {GOES_ON}", 128 + number)
    except click.exceptions.NoArgsIsHelpError as asked:  # its message is the help, which keeps its lines
        asked.show()
        sys.exit(asked.exit_code)
    except click.ClickException as error:
        fail(error.format_message())
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        error.__traceback__ = None  # it keeps alive the objects that fill the memory
        fail(line)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Make TERM and HUP raise Stopped, and send them, and INT, again if a destructor swallows the exception."""
    hook, ours = sys.unraisablehook, partial(_once_more, sys.unraisablehook)
    # nohup ignores SIGHUP, and so do we
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _stop)
    sys.unraisablehook = ours
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        if sys.unraisablehook is ours:
            sys.unraisablehook = hook


def _once_more(otherwise: Callable[[Any], object], swallowed: Any) -> None:
    error = swallowed.exc_value
    if not isinstance(error, Stopped | KeyboardInterrupt):
        otherwise(swallowed)
        return
    number = error.number if isinstance(error, Stopped) else signal.SIGINT
    if isinstance(error, Stopped):
        signal.signal(number, _stop)
    again = threading.Timer(0.1, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _stop(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # one is enough: the process is shutting down
    raise Stopped(number)


def fail(message: str, code: int = 2) -> None:
    """Print an error as one line and exit with `code`, 2 for an error of the user."""
    # Hide later errors: of objects that a signal left half built, of exit handlers without memory.
    sys.unraisablehook = lambda _: None
    bars = sys.modules.get("tqdm")
    # A bar that a library left open owns the terminal's line.
    with suppress(OSError), bars.tqdm.external_write_mode(sys.stderr) if bars else nullcontext():
        click.echo(f"iapo-bench: {' '.join(message.split())}", err=True)  # stderr may be a file on the full disk
    sys.exit(code)


if __name__ == "__main__":
    main()
