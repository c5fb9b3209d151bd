"""Tables, figures and pages: one command for each artefact."""

from pathlib import Path

import click

from iapo_bench.cli.options import ANY_RUNS, FILE, OUT, RUNS, named, with_job
from iapo_bench.config.fidelity import FidelityJob
from iapo_bench.config.report import BASE, CostsJob, Labels, ProtocolJob, RolesJob, RowJob
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tune import SensitivityJob, TuneJob
from iapo_bench.errors import UserError

SUMMARIES = click.option(
    "--summary", "summaries", type=FILE, multiple=True, required=True, help="Summary of `metrics`; repeat, in order."
)
_FORMS = "Markdown, LaTeX and HTML are written beside it"


def _base_job(tier: TierConfig) -> RowJob:
    return tier.row_job(BASE)


def _labels(tier: TierConfig) -> Labels:
    return tier.labels


def _row_job(tier: TierConfig, method: str | None) -> RowJob:
    if method is None:
        raise UserError("metrics needs --method: an entry of the tier, or base")
    return tier.row_job(method)


@click.command()
@with_job(RowJob, _row_job, "method")
@click.option("--method", help="The method behind the grades, or 'base'.")
@click.option(
    "--grades", type=FILE, multiple=True, required=True, help="Outcomes of `grade`; repeat for training seeds."
)
@click.option(
    "--train-seed", "seeds", type=int, multiple=True, help="The training seed of each --grades; by default 0, 1, ..."
)
@click.option("--log", "logs", type=FILE, multiple=True, help="train.jsonl of a run; repeat for training seeds.")
@click.option("--out", type=OUT, required=True, help="JSON file of the summary.")
def metrics(job: RowJob, grades: tuple[Path, ...], seeds: tuple[int, ...], logs: tuple[Path, ...], out: Path) -> None:
    """Measure Pass@k, Length@k and Ratio@k of one method, with 95% intervals."""
    from iapo_bench.report.rows import measure

    seeds = seeds or tuple(range(len(grades)))
    if len(seeds) != len(grades):
        raise UserError(f"{len(grades)} --grades but {len(seeds)} --train-seed: give one for each --grades, or none")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"training seeds must be distinct, are {list(seeds)}: give each --grades its run's seed")
    measure(job, dict(zip(seeds, grades, strict=True)), out, logs)


@click.command()
@SUMMARIES
@click.option("--published", type=FILE, help="CSV of published cells to show beside those that match.")
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}, and provenance.")
@click.option(
    "--figure", type=OUT, required=True, help="Accuracy against length: a PNG file; the SVG is written beside it."
)
def table(summaries: tuple[Path, ...], published: Path | None, out: Path, figure: Path) -> None:
    """Put the summaries of all methods into one table and one figure."""
    from iapo_bench.report.table1 import make_table

    make_table(summaries, published=published, out=out, figure=figure)


@click.command()
@SUMMARIES
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}.")
@click.option(
    "--figure", type=OUT, required=True, help="Matrix of differences: a PNG file; the SVG is written beside it."
)
def comparisons(summaries: tuple[Path, ...], out: Path, figure: Path) -> None:
    """Compare every pair of rows, paired by problem.

    A pair has its difference, interval, corrected p-value and verdict.
    """
    from iapo_bench.report.comparisons import make_comparisons

    make_comparisons(summaries, out=out, figure=figure)


@click.command()
@SUMMARIES
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}, and provenance.")
@click.option(
    "--figure", type=OUT, required=True, help="Changes from the method: a PNG file; the SVG is written beside it."
)
def ablations(summaries: tuple[Path, ...], out: Path, figure: Path) -> None:
    """Compare each variant of a method with the method that it changes."""
    from iapo_bench.report.ablations import make_ablations

    make_ablations(summaries, out=out, figure=figure)


@click.command()
@SUMMARIES
@click.option(
    "--figure", type=OUT, required=True, help="Changes from the base: a PNG file; the SVG is written beside it."
)
def paired(summaries: tuple[Path, ...], figure: Path) -> None:
    """Draw the main figure: each method's change from the base, paired by problem."""
    from iapo_bench.report.paired import make_paired

    make_paired(summaries, figure)


@click.command()
@with_job(RowJob, _base_job)
@click.option("--grades", type=FILE, required=True, help="The base's grades.")
@click.option("--out", type=FILE, required=True, help="Directory for the summaries base_cut and base_shortest.")
def controls(job: RowJob, grades: Path, out: Path) -> None:
    """Shorten the base without training: cut its samples, or take the shortest of four."""
    from iapo_bench.report.controls import make_controls

    make_controls(job, grades, out)


@click.command()
@SUMMARIES
@click.option("--base", type=FILE, required=True, help="The base's grades.")
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}.")
@click.option(
    "--figure", type=OUT, required=True, help="Accuracy against length: a PNG file; the SVG is written beside it."
)
def frontier(summaries: tuple[Path, ...], base: Path, out: Path, figure: Path) -> None:
    """Test whether any method beats early stopping of the base."""
    from iapo_bench.report.frontier import make_frontier

    make_frontier(summaries, base, out=out, figure=figure)


@click.command()
@click.argument("table", type=FILE)
@click.option("--out", type=OUT, required=True, help="HTML file.")
def page(table: Path, out: Path) -> None:
    """Write the report: verdict, figures and tables on one page that works offline.

    TABLE is a table1.csv; the other tables and the figures are read from the same folder.
    """
    from iapo_bench.report.page import make_page

    make_page(table, out)


@click.command()
@with_job(CostsJob, TierConfig.costs_job)
@SUMMARIES
@ANY_RUNS
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}.")
def costs(job: CostsJob, summaries: tuple[Path, ...], runs: tuple[str, ...], out: Path) -> None:
    """Tabulate the training cost, outcomes and efficiency scores of every row."""
    from iapo_bench.report.costs import make_costs

    make_costs(job, summaries, named(runs), out=out)


@click.command()
@with_job(Labels, _labels)
@RUNS
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}.")
@click.option("--figure", type=OUT, required=True, help="Bars by phase: a PNG file; the SVG is written beside it.")
def wallclock(job: Labels, runs: tuple[str, ...], out: Path, figure: Path) -> None:
    """Tabulate seconds by method: training by phase, sampling of the test problems."""
    from iapo_bench.report.wallclock import make_wallclock

    make_wallclock(job, named(runs), out=out, figure=figure)


@click.command()
@with_job(Labels, _labels)
@RUNS
@click.option(
    "--figure",
    type=OUT,
    required=True,
    help="Accuracy and length during training: a PNG file; the SVG is written beside it.",
)
def curves(job: Labels, runs: tuple[str, ...], figure: Path) -> None:
    """Draw the training curves of runs."""
    from iapo_bench.report.curves import make_curves

    make_curves(job, named(runs), figure)


@click.command()
@with_job(TuneJob, TierConfig.tune_job)
@click.option("--trials", type=FILE, required=True, help="Directory of METHOD/trial<i>/validation/grades.parquet.")
@click.option("--base", type=FILE, required=True, help="The base model's grades on the validation split.")
@click.option("--out", type=OUT, required=True, help="YAML file of choices; the evidence is written beside it.")
def tune(job: TuneJob, trials: Path, base: Path, out: Path) -> None:
    """Choose every method's settings from its trials on the validation split."""
    from iapo_bench.report.tuning import choose

    choose(job, trials, base, out)


@click.command()
@with_job(SensitivityJob, TierConfig.sensitivity_job)
@click.option("--base", type=FILE, required=True, help="The base model's grades on the validation split.")
@click.option("--grades", type=FILE, multiple=True, required=True, help="Grades of each point, in order; repeat.")
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}.")
@click.option("--figure", type=OUT, required=True, help="Heat maps: a PNG file; the SVG is written beside it.")
def sensitivity(job: SensitivityJob, base: Path, grades: tuple[Path, ...], out: Path, figure: Path) -> None:
    """Show how two options of a method move accuracy and length.

    Measured on the tier's grid, on the validation split.
    """
    from iapo_bench.report.sensitivity import make_sensitivity

    make_sensitivity(job, base, grades, out=out, figure=figure)


@click.command("lm-eval-table")
@with_job(Labels, _labels)
@RUNS
@click.option("--out", type=OUT, required=True, help=f"CSV file: a row for each run, task and metric; {_FORMS}.")
def lm_eval_table(job: Labels, runs: tuple[str, ...], out: Path) -> None:
    """Join the scores that `lm-eval` wrote to the lm_eval/ of each run."""
    from iapo_bench.report.lm_eval import make_lm_eval_table

    make_lm_eval_table(job, named(runs), out)


@click.command("role-tables")
@with_job(RolesJob, TierConfig.roles_job)
@RUNS
@click.option("--out", type=OUT, required=True, help=f"CSV file: how well each score ranks needed tokens; {_FORMS}.")
@click.option("--roles", type=OUT, required=True, help=f"CSV file: tokens of a completion by role; {_FORMS}.")
@click.option("--figure", type=OUT, required=True, help="Both tables: a PNG file; the SVG is written beside it.")
def role_tables(job: RolesJob, runs: tuple[str, ...], out: Path, roles: Path, figure: Path) -> None:
    """Measure which scores rank needed tokens first, and which roles each method removed.

    Micro world only.
    """
    from iapo_bench.tokens.roles import make_role_tables

    make_role_tables(job, named(runs), informativeness=out, roles=roles, figure=figure)


def _fidelity_job(tier: TierConfig) -> FidelityJob:
    from iapo_bench.report.departures import fidelity_job

    return fidelity_job(tier)


@click.command()
@with_job(FidelityJob, _fidelity_job)
@click.option("--base", type=FILE, required=True, help="Directory of the model whose rollouts are credited.")
@click.option("--data", type=FILE, required=True, help="Directory that `prepare` wrote.")
@click.option("--summary", "summaries", type=FILE, multiple=True, help="Summary of a method or variant; repeat.")
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}.")
def fidelity(job: FidelityJob, base: Path, data: Path, summaries: tuple[Path, ...], out: Path) -> None:
    """Measure the effect of each departure of the released code on credit and models."""
    from iapo_bench.report.fidelity import make_fidelity

    make_fidelity(job, base=base, data=data, summaries=summaries, out=out)


@click.command()
@with_job(ProtocolJob, TierConfig.protocol_job)
@RUNS
@click.option("--data", type=FILE, required=True, help="Directory that `prepare` wrote.")
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}.")
def protocol(job: ProtocolJob, runs: tuple[str, ...], data: Path, out: Path) -> None:
    """Measure the same completions by the released protocol and by ours, part by part."""
    from iapo_bench.report.protocol import make_protocol

    make_protocol(job, named(runs), data=data, out=out)


@click.command()
@click.option("--ledger", type=FILE, required=True, help="YAML file of claims.")
@click.option("--published", type=FILE, required=True, help="CSV of published cells.")
@click.option("--second-hand", type=FILE, required=True, help="CSV of numbers at second hand, with sources.")
@click.option("--summary", "summaries", type=FILE, multiple=True, help="Summary of any tier; repeat.")
@click.option("--wallclock", "wallclocks", type=FILE, multiple=True, help="CSV of `wallclock`; repeat.")
@click.option("--bench", type=FILE, help="CSV of `bench informativeness`.")
@click.option("--out", type=OUT, required=True, help=f"CSV file; {_FORMS}.")
def claims(
    ledger: Path,
    published: Path,
    second_hand: Path,
    summaries: tuple[Path, ...],
    wallclocks: tuple[Path, ...],
    bench: Path | None,
    out: Path,
) -> None:
    """Judge published claims by the published numbers and by what was measured."""
    from iapo_bench.report.claims import make_claims

    make_claims(
        ledger,
        published=published,
        second_hand=second_hand,
        summaries=summaries,
        wallclocks=wallclocks,
        bench=bench,
        out=out,
    )


COMMANDS = (
    *(
        metrics,
        table,
        page,
        paired,
        comparisons,
        controls,
        frontier,
        costs,
        ablations,
        sensitivity,
        wallclock,
        curves,
        tune,
    ),
    *(lm_eval_table, role_tables, fidelity, protocol, claims),
)
