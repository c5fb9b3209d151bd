"""`iapo-bench try`: train one method and compare it with finished runs of other methods."""

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pandas as pd
from tabulate import tabulate

from iapo_bench.config.asked import read_workflow_tier
from iapo_bench.config.report import BASE
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError, unknown
from iapo_bench.files import read_csv
from iapo_bench.plugins import list_methods
from iapo_bench.report.comparisons import label, make_comparisons, number
from iapo_bench.report.rows import measure
from iapo_bench.workflow import Workflow


def try_method(name: str, tier: str, *, seeds: int, cores: int) -> None:
    """Train, sample and grade `name` for the first training seeds of a tier, and print how it differs from the base and
    from every other method whose runs of these seeds exist and are current. No other method is trained.

    Raises UserError for an unknown method or tier, outside a checkout, and if a job fails.
    """
    if name not in list_methods():
        raise unknown("method", name, list_methods())
    if not Path("Snakefile").is_file():
        raise UserError("there is no Snakefile here: run `iapo-bench try` in the project's directory")
    known = read_tier(tier).train.seeds
    if seeds > len(known):
        raise UserError(f"tier {tier} has {len(known)} training seeds, fewer than --seeds {seeds}: ask for fewer")
    asked = known[:seeds]
    others = _there(_flow(tier, [], asked), name, asked)
    flow = _flow(tier, [*others, name], asked)
    current = [other for other in others if flow.is_current(other)]
    _train(flow, name, tier, cores)
    rows = [BASE, *current, name]
    out = Path(flow.work) / "try" / name / "comparisons.csv"
    table = _compare(flow, rows, out)
    click.echo(_verdict(table, name, asked))
    if left := [other for other in others if other not in current]:
        click.echo(f"Left out: {', '.join(left)}, trained with different settings, inputs or code.")
    if not current:
        click.echo(f"No finished run of another method is in {flow.work}: `snakemake --cores all` trains the others.")
    click.echo(f"Every pair and measure: {out.with_suffix('.md')}")


def _flow(tier: str, methods: list[str], seeds: list[int]) -> Workflow:
    chosen = {"methods": methods} if methods else {}
    return Workflow(read_workflow_tier({"tier": tier, "train": {"seeds": seeds}, **chosen}))


def _there(flow: Workflow, name: str, seeds: list[int]) -> list[str]:
    """Other methods and variants that have grades for all of the seeds, in the tier's order and then by name."""
    found = {path.parts[-4] for path in Path(flow.work).glob("*/seed*/test/grades.parquet")} - {name}
    known = [*flow.methods, *sorted({*flow.tier.ablations, *list_methods()} - {*flow.methods})]
    return [
        each
        for each in known
        if each in found
        and all((Path(flow.work) / each / f"seed{seed}" / "test" / "grades.parquet").is_file() for seed in seeds)
    ]


def _train(flow: Workflow, name: str, tier: str, cores: int) -> None:
    targets = [f"{folder}/test/grades.parquet" for folder in [*flow.folders(BASE), *flow.folders(name)]]
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), *targets]
    settings = [f"tier={tier}", f"methods=[{name}]", f"train={{seeds: {flow.seeds}}}"]
    done = subprocess.run([*command, "--config", *settings])
    if done.returncode:
        hint = f"see the output above and the logs in {flow.work}/logs"
        if any(Path(".snakemake/locks").glob("*")):
            hint = "another Snakemake is running here: wait for it; if none is, run `snakemake --unlock` and try again"
        raise UserError(f"{name} could not be tried: {hint}")


def _compare(flow: Workflow, rows: list[str], out: Path) -> pd.DataFrame:
    """Write the comparisons. The summaries are temporary, because they cover some seeds only."""
    with tempfile.TemporaryDirectory() as folder:
        summaries = []
        for row in rows:
            runs = dict(zip([0] if row == BASE else flow.tier.train_seeds(row), flow.folders(row), strict=True))
            grades = {seed: Path(run) / "test" / "grades.parquet" for seed, run in runs.items()}
            logs = [path for run in runs.values() if (path := Path(run) / "train.jsonl").is_file()]
            summaries.append(Path(folder) / f"{row}.json")
            measure(flow.tier.row_job(row), grades, summaries[-1], logs)
        make_comparisons(summaries, out=out, figure=out.with_suffix(".png"))
    return read_csv(out, {})


def _verdict(table: pd.DataFrame, name: str, seeds: list[int]) -> str:
    """How `name`, the last row, differs from each of the others."""
    first = table.iloc[0]
    lines = []
    for other, pairs in table[table["b"] == table["b"].iloc[-1]].groupby("a", sort=False):
        for place, (_, pair) in enumerate(pairs.iterrows()):
            measure = str(pair["measure"])
            difference, low, high = (
                number(measure, pair[column], signed=True)
                for column in ("difference", "checkpoints_lo", "checkpoints_hi")
            )
            lines.append(
                {
                    f"{name} against": "" if place else other,
                    "measure": label(measure),
                    "difference [95% interval]": f"{difference} [{low}, {high}]",
                    "these checkpoints": pair["checkpoints_verdict"],
                }
            )
    behind = f"{first['n_problems']} problems x {first['n_samples']} samples, paired by problem"
    return (
        f"\n{first['model']} on {first['dataset']}, {behind}; training seeds: {' '.join(map(str, seeds))}\n\n"
        f"{tabulate(lines, headers='keys', tablefmt='github')}\n\n"
        "This is about these checkpoints: another draw of problems would say the same of them, other training seeds of "
        f"{name} may not.\nTrain more of them for that: --seeds, or `snakemake` for a table.\n"
    )
