"""The tier of a workflow run, from its targets, --config and --configfile, checked before any job starts."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iapo_bench.config.reading import Places, merge, parse_yaml, placed, read_yaml, typed
from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import COMMAND_LINE, list_tiers, parse_tier, read_tier
from iapo_bench.errors import UserError, unknown
from iapo_bench.files import read_text
from iapo_bench.plugins import list_rewards, load_function

PAPER_TIERS = ("qwen-0.5b", "qwen-1.5b", "qwen-7b")


def read_workflow_tier(
    config: dict[str, Any],
    given: dict[str, Any] | None = None,
    targets: Iterable[str] = (),
    files: Iterable[Path] = (),
) -> TierConfig:
    """The tier of a workflow run: a complete one from --configfile, or a named one with --config on top. The name comes
    from --config, else from the folder of `targets`, else it is micro.

    `config` holds the settings of --config and --configfile together. `given` holds those of --config alone, which also
    override settings of a dataset; `files` are those of --configfile, for the lines in errors. Raises UserError for
    targets of several tiers, or of a tier that does not exist.
    """
    config, given = typed(config), typed(given or {})
    content: dict[str, Any] = {}
    in_files: Places = {}
    for each, places in map(read_yaml, files):
        content, in_files = merge(content, each), in_files | places
    content = content or config
    whole = ("model", "world", "train", "evaluate", "methods")
    if all(key in content for key in whole) and any(content[key] != given.get(key) for key in whole):
        return check_methods(parse_tier(content, given, source="the --configfile", places=in_files))
    if "tier" not in config:
        config = merge(_tier_of(targets, config), config)
    where = {**placed(config, COMMAND_LINE), **in_files, **placed(given, COMMAND_LINE)}
    name = str(config.pop("tier", "micro"))
    if name not in list_tiers():
        raise UserError(f"{where[('tier',)]}: {unknown('tier', name, list_tiers())}")
    tier = read_tier(name, config, where=where)
    if (folder := tier.world.data_dir) and not Path(folder).is_dir():
        raise UserError(f"world.data_dir: {folder} is not a directory: give the one with the dataset's files")
    return check_methods(tier)


def _tier_of(targets: Iterable[str], config: dict[str, Any]) -> dict[str, Any]:
    """Infer tier and dataset from targets such as results/smollm2/table1.csv; a dataset in `config` wins."""
    found = []
    for parts in (Path(target).parts for target in targets):
        if len(parts) < 3 or parts[1] == "figures":  # the default tier's
            continue
        if parts[1] not in list_tiers():
            raise UserError(f"{'/'.join(parts)}: {unknown('tier', parts[1], list_tiers())}")
        tier: dict[str, Any] = {"tier": parts[1]}
        datasets = read_tier(parts[1]).datasets
        if parts[2] in datasets:
            tier["world"] = {"name": parts[2]}
        elif datasets and len(parts) > 3 and "world" not in config:
            raise UserError(f"{'/'.join(parts)}: {unknown('dataset of this tier', parts[2], datasets)}")
        if tier not in found:
            found.append(tier)
    if len(found) > 1:
        raise UserError("the targets belong to several tiers or datasets: request one at a time, or use paper.smk")
    return found[0] if found else {}


def check_methods(tier: TierConfig) -> TierConfig:
    """Build every method and load every reward of the tier once, so that a mistake is an error now and not after an
    hour.

    Raises UserError with the place where the option was set.
    """
    from iapo_bench.method import load_method  # imports torch: once per run, not once per job

    for name in tier.train.rewards:
        load_function(list_rewards()[name], "reward")
    seed = tier.train.seeds[0]
    for name in [*tier.trained, *tier.ablations]:
        section = "methods" if name in tier.methods else "ablations"
        points = tier.sensitivity.points() if tier.sensitivity and tier.sensitivity.method == name else []
        for options in [{}, *points]:
            chosen = tier.train_job(name, seed, options=options).method
            try:
                load_method(chosen.name, chosen.profile, **chosen.options)
            except UserError as error:
                place = tier.place("sensitivity", "grid") if options else tier.place(section, name, "options")
                raise UserError(f"{place}: {error}") from None
    return tier


def check_arguments(arguments: Iterable[str]) -> None:
    """Raise UserError for settings that Snakemake silently drops: all but the last --config, and duplicate keys in one
    --config or in a profile."""
    options: dict[str, list[list[str]]] = {}
    latest: list[str] = []
    for argument in arguments:
        if argument.startswith("-"):
            option, _, value = argument.partition("=")
            latest = [value] if value else []
            options.setdefault("--config" if option == "-C" else option, []).append(latest)
        else:
            latest.append(argument)
    settings = options.get("--config", [])
    if len(settings) > 1:
        raise UserError(f"{COMMAND_LINE} is given twice, and only the last would count: put all settings after one")
    if len(files := options.get("--configfile", []) + options.get("--configfiles", [])) > 1:
        raise UserError(f"--configfile is given {len(files)} times, and only the last would count: name all after one")
    for key, _, value in (setting.partition("=") for group in settings for setting in group):
        parse_yaml(value, f"{COMMAND_LINE} {key}")
    profiles = [group[0] for name in ("--profile", "--workflow-profile") for group in options.get(name, []) if group]
    for file in (file for profile in profiles for file in sorted(Path(profile).glob("config*.yaml"))):
        parse_yaml(read_text(file), str(file))


def check_call(home: Path, cores: int | None) -> None:
    """Raise UserError for a call in another folder than the Snakefile's, whose code and inputs jobs would miss, and for
    one without cores, which Snakemake would wait for without end."""
    if Path.cwd().resolve() != home.resolve():
        raise UserError(f"Snakemake works in {Path.cwd()}, not in its Snakefile's folder: first cd {home.resolve()}")
    if cores is not None and cores < 1:
        raise UserError(f"--cores {cores} runs no job: give 1 or more, or 'all'")


def asked_for(arguments: Iterable[str]) -> list[str]:
    """The result files on a command line, which Snakemake reveals only after it has read the Snakefile."""
    return [path for path in map(os.path.normpath, arguments) if path.startswith("results/")]


def paper_cells(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For every model and dataset of `config["tiers"]`: a prefix for rule names, and the workflow's configuration.

    By default the tiers of the paper; all other keys of `config` apply to all. Raises UserError for an unknown tier.
    """
    names = config.get("tiers", PAPER_TIERS)
    rest = {key: value for key, value in config.items() if key != "tiers"}
    cells = {}
    for name in [names] if isinstance(names, str) else names:
        tier = read_tier(name)
        for dataset in tier.datasets or [tier.world.name]:
            choice = {"tier": name, "world": {"name": dataset}}
            cells[re.sub(r"\W", "_", f"{tier.tier}_{dataset}_")] = merge(rest, choice)
    return cells
