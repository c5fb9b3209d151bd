"""What the Snakefile asks of the package."""

import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from iapo_bench.config import CONFIG_DIR, TierConfig, digest, merge, parse_tier, read_tier
from iapo_bench.errors import UserError, unknown
from iapo_bench.files import whole_file
from iapo_bench.machine.code import code_digest as digest_of_code
from iapo_bench.method import list_methods

# Large tensors come and go at every step: let malloc keep its heap rather than return it to the kernel each time.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
_TARGETS = "IAPO_BENCH_TARGETS"
PAPER_TIERS = ("qwen-0.5b", "qwen-1.5b", "qwen-7b")

# The module that does each stage's work: its imports decide what makes a result stale.
STAGES = {
    "worlds": "iapo_bench.worlds.prepare",
    "base": "iapo_bench.train.base",
    "train": "iapo_bench.train.run",
    "sample": "iapo_bench.evaluate.sample",
    "grade": "iapo_bench.evaluate.grade",
    "metrics": "iapo_bench.report.rows",
    "tables": "iapo_bench.report.table1",
    "comparisons": "iapo_bench.report.comparisons",
    "roles": "iapo_bench.tokens.scores",
    "role_tables": "iapo_bench.tokens.roles",
    "lm_eval": "iapo_bench.evaluate.lm_evaluation",
    "lm_eval_table": "iapo_bench.report.lm_eval",
}


def read_workflow_tier(
    config: dict[str, Any], given: dict[str, Any] | None = None, targets: Iterable[str] = ()
) -> TierConfig:
    """The tier of a workflow run: a whole one given with --configfile, or a named one with --config on top: the one
    that is named there, or whose folder `targets` lie in, or micro.

    `given` is what --config says, which `config` has already: here it wins over the settings of a dataset. Raises
    UserError for targets of several tiers.
    """
    config, given = _typed(config), _typed(given)
    if {"model", "world", "train", "evaluate", "methods"} <= config.keys():
        return parse_tier(config, given, source="the --configfile")
    if "tier" not in config:
        config = merge(_tier_of(targets), config)
    return read_tier(str(config.get("tier", "micro")), config)


def asked_for(arguments: Iterable[str]) -> list[str]:
    """The results that a command line asks for: Snakemake does not say so before it has read the Snakefile.

    In a job that an executor starts as a run of its own, those of the run that it is of.
    """
    if targets := [argument for argument in arguments if argument.startswith("results/")]:
        os.environ[_TARGETS] = " ".join(targets)
    return os.environ.get(_TARGETS, "").split()


def _tier_of(targets: Iterable[str]) -> dict[str, Any]:
    """What --config would say of the tier, and its dataset, in whose folder of `results` the targets lie."""
    found = []
    for parts in (Path(target).parts for target in targets):
        if len(parts) > 2 and parts[0] == "results" and (CONFIG_DIR / f"{parts[1]}.yaml").is_file():
            tier: dict[str, Any] = {"tier": parts[1]}
            if parts[2] in read_tier(parts[1]).datasets:
                tier["world"] = {"name": parts[2]}
            if tier not in found:
                found.append(tier)
    if len(found) > 1:
        raise UserError("the targets are of several tiers or datasets: ask for one at a time, or use paper.smk")
    return found[0] if found else {}


def _typed(value: Any) -> Any:
    """With numbers, booleans and null for the words that Snakemake leaves within a section of --config."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return {"true": True, "false": False, "null": None}.get(value.lower(), value)


def paper_cells(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For every model and dataset of `config["tiers"]`: a prefix for rule names, and the workflow's configuration.

    By default the tiers of the paper; whatever else `config` says goes to all. Raises UserError for an unknown tier.
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


def export_settings(tier: TierConfig, folder: str | Path) -> str:
    """Give every job of this run the resolved tier and this interpreter, through the environment; return the file.

    The settings go to a file of `folder` that is named by its content, so that no later change reaches a running job.
    """
    content = tier.model_dump(mode="json")
    path = Path(folder) / f"{digest(content)}.yaml"
    if not path.exists():
        with whole_file(path) as partial:
            partial.write_text(yaml.safe_dump(content, sort_keys=False))
    os.environ["IAPO_BENCH_CONFIG"] = str(path)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A waiting thread that spins takes the core from whatever else runs: ten times slower when the machine is busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name, value in MALLOC.items():
        os.environ.setdefault(name, value)
    return str(path)


def code_digest(stage: str, method: str | None = None) -> str:
    """A hash of the code behind a stage's results; of training, with the one method's own file."""
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    return digest_of_code(STAGES[stage], [list_methods()[method]] if method else [])
