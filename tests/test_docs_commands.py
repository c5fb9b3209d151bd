"""Every command of README and docs: its options exist, and it is run, dry for Snakemake, or says what it needs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest
from commands import PAGES, ROOT, SCRIPT, Command, blocks, commands
from project_copy import copy_project, snakemake
from snakemake.cli import get_argument_parser

from iapo_bench.cli import cli

ALL = [command for page in PAGES for command in commands(page)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CI = (ROOT / ".ci/run").read_text()
PLACEHOLDER = re.compile(r"\.\.\.|[A-Z]{3,}|\b[A-Z]\b")


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def check_iapo_bench(command: Command) -> None:
    """Raise click's own error for an unknown command or option, a missing one, or a value of the wrong kind."""
    words = [word for word in command.words[1:] if word != "..."]
    if command.inline:
        check_options(words)
        return
    try:
        context = cli.make_context("iapo-bench", words)
        below: click.Command = cli
        while isinstance(below, click.Group):
            name, sub, words = below.resolve_command(context, [*context._protected_args, *context.args])
            assert sub is not None
            below, context = sub, sub.make_context(name, words, parent=context)
    except click.exceptions.Exit:  # --help
        return


def check_options(words: list[str]) -> None:
    """Running text may leave out what is needed, and say N or DIR: the command and its options exist."""
    command: click.Command = cli
    options = {name for parameter in cli.params for name in parameter.opts} | {"--help"}
    for word in words:
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
            options |= {name for parameter in command.params for name in parameter.opts}
        elif word.startswith("--"):
            assert word.split("=")[0] in options, f"no option {word}"
    assert command is not cli or not [word for word in words if re.fullmatch("[a-z][a-z-]+", word)], "no such command"


@cache
def snakemake_parser() -> ArgumentParser:
    return get_argument_parser()


def check_snakemake(command: Command) -> None:
    words = [word for word in command.words[1:] if word != "..."]
    snakemake_parser().parse_args(words)  # ends the process where it does not know an option


def check_pytest(command: Command) -> None:
    markers = {marker.split(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    for before, word in pairwise(command.words):
        if before == "-m":
            assert word in markers
        elif word.startswith("tests/") and not PLACEHOLDER.search(word):
            page = (ROOT / command.place).read_text()  # which may show the file itself
            assert (ROOT / word).exists() or f"# {word}\n" in page, word


def check_pip(command: Command) -> None:
    for before, word in pairwise(command.words):
        if before == "-c":
            assert (ROOT / word).exists(), word
        for extra in re.findall(r"^\.\[(.*)\]", word):
            assert set(extra.split(",")) <= PROJECT["project"]["optional-dependencies"].keys(), extra


def check_other(command: Command) -> None:
    """A script of the tree, a step of the continuous integration, or marked with what it needs."""
    first, *rest = command.words
    script = next((word for word in (rest[0] if rest else "", first) if (ROOT / word).is_file()), None)
    text = CI.replace(".venv/bin/", "")
    assert script or " ".join(command.words) in text or first in (".", "python3") or command.needs, "mark what it needs"


CHECKS = {"iapo-bench": check_iapo_bench, "snakemake": check_snakemake, "pytest": check_pytest, "pip": check_pip}


@pytest.mark.parametrize("command", ALL, ids=str)
def test_its_options_exist(command):
    CHECKS.get(command.words[0], check_other)(command)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_stand_in_bash_blocks_and_are_spelt_alike(page):
    """The environment is activated once: no command spells out its folder."""
    text = page.read_text()
    program = r"(?:iapo-bench|snakemake|pytest|pip install|python3? -m)\b"
    assert not re.findall(rf"^(?: {{4}}|\t)(?:\$ )?{program}.*", text, flags=re.MULTILINE), "indented: use ```bash"
    assert not [body for language, body in blocks(page) if language != "bash" and re.match(program, body)]
    assert not re.findall(r"\.venv/bin/(?!activate).*|(?<!\d )-m iapo_bench|python3? -m pytest", text)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_scripts_are_run_by_the_test_that_they_name(page):
    for test in SCRIPT.findall(page.read_text()):
        assert page.name in (ROOT / test).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(not c.needs for c in commands(page))], ids=names)
def test_it_runs(page, tmp_path):
    """In a copy of the project, in the page's order; Snakemake with -n."""
    folder = copy_project(tmp_path)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    for command in dict.fromkeys(commands(page)):
        words = command.words
        if command.needs or (command.inline and PLACEHOLDER.search(" ".join(words))):
            continue
        if words[0] == "snakemake":
            done = snakemake(folder, "-n", *words[1:], cores="--cores" not in words)
        elif words[0] == "iapo-bench" and not command.inline:
            run = [sys.executable, "-m", "iapo_bench", *words[1:]]
            done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        else:
            continue
        assert done.returncode == 0, f"{command}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
