"""Tools outside the workflow."""

import json
import os
import sys
from pathlib import Path

import click

from iapo_bench.cli.options import FILE, OUT, read_options, refuse_given, tier_options
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import list_tiers
from iapo_bench.files import whole_file
from iapo_bench.new import KINDS, Kind
from iapo_bench.worlds import POSTFIX


@click.command()
@click.option("--model", type=FILE, required=True, help="Directory of the model.")
@click.option("--input", "transcripts", type=FILE, required=True, help="JSON-lines file of transcripts.")
@click.option("--postfix", default=POSTFIX, help="Text that makes the model answer at once.")
@click.option(
    "--temperature",
    default=1.0,
    type=click.FloatRange(0, min_open=True),
    help="Temperature of every distribution that is measured.",
)
@click.option("--limit", type=click.IntRange(1), help="Number of transcripts to read, from the first.")
@click.option("--out", type=FILE, required=True, help="Directory for tokens.parquet and informativeness.html.")
def informativeness(
    model: Path, transcripts: Path, postfix: str, temperature: float, limit: int | None, out: Path
) -> None:
    """Show how much each token of your own transcripts tells about the answer.

    Two files come out: a page with coloured tokens, and a table with a row for each token.

    \b
    Every line of the input is a JSON object with
      prompt, completion          text, or
      prompt_ids, completion_ids  lists of token ids; text beside them is not read
      id                          optional; the line number otherwise
      correct                     optional, true or false; shown beside the id

    Text is tokenised as it is, without special tokens: apply the chat template to the prompt first.
    """
    from iapo_bench.tokens.transcripts import score_transcripts

    score_transcripts(
        model=model, transcripts=transcripts, out=out, postfix=postfix, temperature=temperature, limit=limit
    )


@click.command()
@click.argument("rollout", type=FILE)
@click.option("--groups", type=click.IntRange(1), help="Number of groups to show, from the first.")
@click.option("--out", type=OUT, required=True, help="HTML file.")
def credit(rollout: Path, groups: int | None, out: Path) -> None:
    """Show the completions of one training step, each token in the colour of its credit.

    \b
    ROLLOUT is a file that training kept, if train.keep_rollouts asked for it:
      iapo-bench train ... --set train.keep_rollouts='[0, 40]' --out DIR
      iapo-bench credit DIR/rollouts/step40.parquet --out credit.html
    """
    from iapo_bench.tokens.credit import make_credit_page

    make_credit_page(rollout, out, groups)


@click.command()
@click.argument("runs", type=FILE, nargs=-1, required=True, metavar="RUN...")
@click.option("--once", is_flag=True, help="Draw once and exit.")
def watch(runs: tuple[Path, ...], once: bool) -> None:
    """Draw the training curves of runs in the terminal, as they grow, until they end.

    RUN is a directory with a train.jsonl, that file, or a folder of such directories, such as results/micro. If the
    output is not a terminal, the curves are drawn once.
    """
    from iapo_bench.watch import watch as watch_runs

    watch_runs(runs, once=once)


@click.command()
@tier_options
@click.option("--model", type=FILE, help="Directory of a model: show how it is prompted and read.")
@click.option(
    "--dataset", help="With --model: a dataset, such as gsm8k; by default the tier's. A file: --set world.file=FILE."
)
def doctor(config: str, overrides: tuple[str, ...], model: Path | None, dataset: str | None) -> None:
    """Report what this machine can run and what is missing. Exit code 1 only when nothing works.

    With --model: the exact prompt, the tokens that stop a completion, and whether a perfect completion would be graded
    right and well formed; exit code 1 when not, 2 when the model's chat template cannot be used.
    """
    from iapo_bench import doctor

    if model is not None:
        tier = read_options(config, (f"model.source={json.dumps(str(model))}", *overrides))
        text, works = doctor.examine_model(tier, model, dataset)
        click.echo(text)
    else:
        refuse_given(
            "only a model is checked by a tier's settings, and --model is not given", "config", "overrides", "dataset"
        )
        rows, works = doctor.examine()
        click.echo(doctor.show(rows))
    if not works:
        sys.exit(1)


@click.command("try")
@click.argument("method")
@click.option(
    "--config", "tier", default="micro", metavar="TIER", show_default=True, help="The tier to try it on, by name."
)
@click.option("--seeds", default=1, type=click.IntRange(1), help="Number of training seeds, from the tier's first.")
@click.option(
    "--cores", default=os.cpu_count(), type=click.IntRange(1), show_default="all", help="CPU cores for Snakemake."
)
def try_command(method: str, tier: str, seeds: int, cores: int) -> None:
    """Train METHOD once on micro and compare it with finished runs: a few minutes.

    \b
      iapo-bench new method brief    write methods/brief.py, and change it
      iapo-bench try brief           train it once, sample the test problems, compare
      iapo-bench watch results/micro/brief/seed0    meanwhile, elsewhere

    It is compared with the base and with each method that has a finished run of the same training seed, made with
    the current settings and code. Nothing else is trained and no table is changed: the verdict goes to the terminal,
    all pairs to results/TIER/try/METHOD/. The verdict holds for these checkpoints only: to compare the methods, run
    `snakemake` with several training seeds.
    """
    from iapo_bench.try_out import try_method

    try_method(method, tier, seeds=seeds, cores=cores)


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
def new(kind: Kind, name: str) -> None:
    """Write a commented file to start from, and its test: both pass as they are.

    \b
      iapo-bench new method NAME   methods/NAME.py
      iapo-bench new dataset NAME  iapo_bench/worlds/datasets/NAME.py
      iapo-bench new reward NAME   rewards/NAME.py
    """
    from iapo_bench.new.write import write_new

    code, test = write_new(kind, name)
    click.echo(f"wrote {code} and {test}; run: pytest {test}")


@click.command()
@tier_options
@click.option("--device", help="a100, h100, h200 or cpu; by default h100, and cpu for a tier that asks for no GPU.")
@click.option("--every-tier", is_flag=True, help="One table of all tiers instead.")
@click.option("--gpus", default=8, type=click.IntRange(2), help="GPUs of the strategies that use several.")
@click.option("--length", type=click.FloatRange(1), help="Mean tokens of a completion; by default assumed per dataset.")
@click.option(
    "--calibrate",
    type=FILE,
    help="A run's METHOD/seed0/train.jsonl, or a directory of such runs; by default results/TIER if it has any.",
)
def plan(
    config: str,
    overrides: tuple[str, ...],
    device: str | None,
    every_tier: bool,
    gpus: int,
    length: float | None,
    calibrate: Path | None,
) -> None:
    """Estimate the cost of a tier before it runs: jobs, CPU- or GPU-hours, memory, disk.

    The estimate is for `snakemake all`, which makes more than table1.csv, and for every dataset of the tier unless
    --set world.name=NAME chooses one.
    """
    from iapo_bench.plan.show import default_device, overview
    from iapo_bench.plan.show import plan as make_plan

    if every_tier:
        refuse_given("--every-tier plans each tier as it is", "config", "device", "gpus", "length", "calibrate")
        click.echo(overview([tier for name in list_tiers() for tier in _by_dataset(name, overrides)]))
        return
    tiers = _by_dataset(config, overrides)
    chosen = device or default_device(tiers[0])
    click.echo(make_plan(tiers, device=chosen, gpus=gpus, length=length, calibrate=calibrate))


def _by_dataset(config: str, overrides: tuple[str, ...]) -> list[TierConfig]:
    """The tier for each of its datasets, or for the one that `overrides` choose."""
    tier = read_options(config, overrides)
    chosen = not {"name", "file"}.isdisjoint(tier.given.get("world") or {})
    names = [tier.world.name] if chosen or not tier.datasets else list(tier.datasets)
    return [read_options(config, (*overrides, f"world.name={name}")) for name in names]


@click.command()
@click.argument("table", type=FILE)
@click.option("--row", required=True, help="The cell's row: a method, a variant, or base.")
@click.option("--column", required=True, help="The cell's column: pass@K, length@K or ratio@K.")
@click.option("--against", help="The row whose samples are shown next to it; by default the base.")
@click.option("--problems", default=3, type=click.IntRange(0), help="Number of problems to show.")
@click.option("--samples", default=2, type=click.IntRange(1), help="Number of samples of each.")
def explain(table: Path, row: str, column: str, against: str | None, problems: int, samples: int) -> None:
    """Show the origin of a cell of TABLE: files, settings, versions, machines, samples.

    TABLE is results/table1.csv, another table of this kind (ablations.csv), a folder of results, or a bundle. Problems
    on which the row and --against differ most come first.

    \b
      iapo-bench explain results/table1.csv --row iapo --column pass@16
      iapo-bench explain micro.tar.gz --row dapo --column length@32 --against iapo
    """
    from iapo_bench.report.explain import explain as explain_cell

    click.echo(explain_cell(table, row=row, column=column, against=against, problems=problems, samples=samples))


@click.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--problem", help="The problem's id; by default the one on which A and B differ most.")
@click.option("--samples", default=4, type=click.IntRange(1), help="Number of samples of each.")
@click.option("--out", type=OUT, help="Also write an HTML page.")
def compare(a: Path, b: Path, problem: str | None, samples: int, out: Path | None) -> None:
    """Show two runs' completions of one problem side by side.

    A and B are folders of runs (a method has one for each training seed) or files of grades.

    \b
      iapo-bench compare results/micro/base results/micro/iapo/seed0
      iapo-bench compare results/micro/iapo/seed0 results/micro/iapo/seed1 --problem micro-test-17
    """
    from iapo_bench.report.side_by_side import compare as compare_runs

    click.echo(compare_runs(a, b, problem=problem, samples=samples, out=out))


@click.command()
@click.argument("results", type=FILE)
@click.option("--against", type=FILE, required=True, help="The reference: a folder of results, or a bundle.")
@click.option("--points", default=0.02, type=click.FloatRange(0), help="Margin of Pass@k.")
@click.option("--share", default=0.03, type=click.FloatRange(0), help="Margin of length and ratio, as a share.")
@click.option("--out", type=OUT, help="Also write every cell to this CSV file.")
def verify(results: Path, against: Path, points: float, share: float, out: Path | None) -> None:
    """Compare results with a reference, cell by cell.

    RESULTS and the reference are a folder with table1.csv, or a bundle. A cell is reproduced if its difference lies
    within the margin, within seed variation if it cannot be told from 0, else not reproduced (exit code 1). Results
    with other settings are refused (exit code 2), and the settings that differ are listed; seeds may differ.

    \b
      iapo-bench verify results --against results/reference/micro
    """
    from iapo_bench.files import whole_file
    from iapo_bench.report import verify as verifying

    margins = verifying.Margins(points, share)
    cells = verifying.verify(results, against, margins)
    status = verifying.exit_status(cells)
    if out is not None:
        with whole_file(out) as partial:
            cells.to_csv(partial, index=False, float_format="%.6g")
    click.echo(verifying.report(cells, margins))
    if set(cells["verdict"]) != {verifying.REPRODUCED} and (told := verifying.surroundings(results, against)):
        click.echo(told)
    sys.exit(status)


@click.command()
@click.argument("results", type=FILE)
@click.option("--out", type=FILE, required=True, help="Archive to write, such as micro.tar.gz, or a folder.")
def bundle(results: Path, out: Path) -> None:
    """Keep a folder of results for `verify`: tables, figures, provenance, counts by problem.

    An archive also holds every graded sample with its text, for `explain` and `compare`. A folder leaves them out and
    is small enough for a repository.

    \b
      iapo-bench bundle results --out micro.tar.gz
      iapo-bench bundle results --out results/reference/micro
    """
    from iapo_bench.report.results import bundle as pack

    names = pack(results, out)
    size = out.stat().st_size if out.is_file() else sum((out / name).stat().st_size for name in names)
    click.echo(f"{out}: {len(names)} files, {size / 2**20:.1f} MiB")


@click.command()
@click.option("--write", is_flag=True, help="Write docs/settings.md and configs/schema.json.")
def settings(write: bool) -> None:
    """Show every setting: type, default, meaning, and whether it can change a result."""
    from iapo_bench.config.reference import DOCUMENT, documents

    if not write:
        click.echo(documents()[DOCUMENT])
        return
    for path, text in documents().items():
        with whole_file(Path(path)) as partial:
            partial.write_text(text)


COMMANDS = (try_command, watch, credit, informativeness, explain, compare, verify, bundle, doctor, plan, new, settings)
