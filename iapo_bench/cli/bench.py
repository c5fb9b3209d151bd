"""Benchmarks: each prints ratios that one run measured."""

from pathlib import Path
from typing import Any

import click

from iapo_bench.cli.options import FILE, OUT


@click.group()
def bench() -> None:
    """Benchmarks: speed ratios measured in one run, and a table's time and power."""


_BASE = click.option(
    "--base", type=FILE, default=Path("results/micro/base/model"), show_default=True, help="Directory of a micro model."
)
_PAIRS = click.option("--pairs", default=7, show_default=True, type=click.IntRange(1), help="Interleaved pairs.")
_CSV = click.option("--out", type=OUT, help="Also write the rows to this CSV file.")


@bench.command("core")
@_BASE
@_PAIRS
@_CSV
@click.option(
    "--environment",
    type=FILE,
    default=Path(".bench/trl"),
    show_default=True,
    help="Environment with TRL, made on first use.",
)
@click.option("--trl-micro-batch", default=256, show_default=True, help="Completions in a micro-batch of TRL.")
@click.pass_context
def bench_core_command(
    context: click.Context, base: Path, pairs: int, out: Path | None, environment: Path, trl_micro_batch: int
) -> None:
    """A training step against TRL's GRPOTrainer.

    Tokens per second, at natural lengths and with every completion at the cap.
    """
    from iapo_bench.bench.core import bench_core

    threads = context.find_root().params["threads"] or 1
    _show(bench_core(base, environment=environment, pairs=pairs, threads=threads, micro_batch=trl_micro_batch), out)


@bench.command("engine")
@_BASE
@_PAIRS
@_CSV
def bench_engine_command(base: Path, pairs: int, out: Path | None) -> None:
    """The rollout engine against `model.generate`.

    Tokens per second at batch 256, natural lengths.
    """
    from iapo_bench.bench.engine import bench_engine

    _show(bench_engine(base, pairs=pairs), out)


@bench.command("informativeness")
@_BASE
@click.option("--pairs", default=3, show_default=True, type=click.IntRange(1), help="Interleaved rounds.")
@click.option(
    "--length",
    "lengths",
    type=click.IntRange(1),
    multiple=True,
    help="Completion length; repeat. By default 64 to 512.",
)
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, help="Rows; repeat. By default 1 and 8.")
@_CSV
def bench_informativeness_command(
    base: Path, pairs: int, lengths: tuple[int, ...], batches: tuple[int, ...], out: Path | None
) -> None:
    """Answer entropies against the replicated scheme.

    Time and extra memory of both, and the measured floor of the arithmetic.
    """
    from iapo_bench.bench.informativeness import BATCHES, LENGTHS, bench_informativeness

    _show(bench_informativeness(base, pairs=pairs, lengths=lengths or LENGTHS, batches=batches or BATCHES), out)


@bench.command("approximations")
@_BASE
@_PAIRS
@_CSV
def bench_approximations_command(base: Path, pairs: int, out: Path | None) -> None:
    """Answer entropies after fewer prefixes.

    Time saved and error made, on the micro world.
    """
    from iapo_bench.bench.informativeness import bench_approximations

    _show(bench_approximations(base, pairs=pairs), out)


@bench.command("metrics")
@click.option("--rows", "sizes", type=click.IntRange(96), multiple=True, help="Graded completions; repeat.")
@_CSV
def bench_metrics_command(sizes: tuple[int, ...], out: Path | None) -> None:
    """Seconds and memory of one row's summary.

    By default for 10^5, 10^6 and 10^7 graded completions.
    """
    from iapo_bench.bench.metrics import SIZES, bench_metrics

    _show(bench_metrics(sizes or SIZES), out)


@bench.command("power")
@click.option("--work", type=FILE, default=Path("results/micro"), show_default=True, help="A tier's working directory.")
@click.option("--problems", type=click.IntRange(2), multiple=True, help="Test problems; repeat. By default 100 to 800.")
@_CSV
def bench_power_command(work: Path, problems: tuple[int, ...], out: Path | None) -> None:
    """Smallest difference that a table could detect.

    For other numbers of problems, samples and training seeds; the spread is taken from the finished table in --work.
    """
    from iapo_bench.plan.power import PROBLEMS, power

    _show(power(sorted((work / "summaries").glob("*.json")), problems or PROBLEMS), out)


@bench.command("step")
@_BASE
@_PAIRS
@_CSV
def bench_step_command(base: Path, pairs: int, out: Path | None) -> None:
    """A training step of IAPO against one of GRPO, by phase."""
    from iapo_bench.bench.step import bench_step

    _show(bench_step(base, pairs=pairs), out)


@bench.command("table")
@click.option("--work", type=FILE, default=Path("results/micro"), show_default=True, help="A tier's working directory.")
@_CSV
def bench_table_command(work: Path, out: Path | None) -> None:
    """Seconds of the last workflow run, by rule."""
    from iapo_bench.bench.table import bench_table

    _show(bench_table(work), out)


def _show(rows: list[dict[str, Any]], out: Path | None) -> None:
    from tabulate import tabulate

    click.echo(tabulate(rows, headers="keys", tablefmt="github"))
    if out is not None:
        import pandas as pd

        from iapo_bench.files import whole_file

        with whole_file(out) as partial:
            pd.DataFrame(rows).to_csv(partial, index=False)
