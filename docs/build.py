"""Writes docs/methods.md, then builds the documentation as a site in build/site: `python docs/build.py`."""

import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import lxml.html

from iapo_bench.cli import cli
from iapo_bench.method import list_methods, load_method

ROOT = Path(__file__).parent.parent
PAGES, SITE = ROOT / "build/pages", ROOT / "build/site"
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "docs", "results/reference")


def methods_page() -> str:
    """docs/methods.md: every method's docstring, options and signals."""
    parts = [
        "# Methods\n",
        "Made by `python docs/build.py` from the docstrings in `baselines/` and `methods/`. Each entry has equations,",
        "then options: defaults are the paper's setting (profile `paper`), the last column what the released code",
        "computes (profile `released`), where it departs. [Your method](your-method.md) becomes one more entry.\n",
        *(_method(name, path) for name, path in sorted(list_methods().items())),
    ]
    return "\n".join(parts)


def _method(name: str, path: Path) -> str:
    method = load_method(name)
    module = inspect.getdoc(sys.modules[type(method).__module__]) or ""
    signals = ", ".join(sorted(f"`{signal.name}`" for signal in method.needs)) or "none"
    rows = [
        f"| `{option.name}` | {_code(getattr(method, option.name))} | {_code(method.released.get(option.name, ''))} |"
        for option in dataclasses.fields(method)
        if option.init
    ]
    return "\n".join(
        [
            f"## {name}\n",
            f"{module.splitlines()[0]} `{path.relative_to(ROOT)}`\n",
            _prose(inspect.getdoc(type(method)) or ""),
            f"\nSignals: {signals}.\n",
            "| option | default | released |\n|---|---|---|",
            *rows,
            "",
        ]
    )


def _prose(text: str) -> str:
    """A docstring as Markdown: its formulas are indented already, and outside of code `*` and `<` mean themselves."""
    text = re.sub(r"\n(?=`[^`\n]+`(?:, `[^`\n]+`)*:)", "\n\n", text)
    lines = [
        line if line.startswith("    ") else "`".join(_escaped(part, n) for n, part in enumerate(line.split("`")))
        for line in text.splitlines()
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _escaped(part: str, number: int) -> str:
    return part if number % 2 else part.replace("*", "\\*").replace("<", "&lt;")


def _code(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        changed = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        plain = type(value)()
        value = {key: each for key, each in changed.items() if each != getattr(plain, key)}
        return ", ".join(f"`{key}: {each}`" for key, each in value.items()) or "as usual"
    if isinstance(value, dict):
        return ", ".join(f"`{key}: {each}`" for key, each in value.items())
    return "" if value == "" else f"`{value}`"


def commands_page() -> str:
    """The `--help` of every command."""
    parts = ["# Commands\n\nThe `--help` of every command. `iapo-bench` alone lists them by purpose.\n"]
    for path, command in _commands(cli, "iapo-bench"):
        context = click.Context(command, info_name=path, terminal_width=86, **cli.context_settings)
        parts.append(f"## {path}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            yield from _commands(below, f"{path} {name}")


def assemble() -> None:
    """Lay out the texts in build/pages as they lie in the tree, so that their links hold on a site too."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for name in TEXTS:
        source, target = ROOT / name, PAGES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        else:
            shutil.copy(source, target)
    (PAGES / "docs/commands.md").write_text(commands_page())


def faults(site: Path) -> list[str]:
    """Links that lead nowhere, their anchors and images included, and all that a page would load from another host."""
    pages = {path.resolve(): lxml.html.parse(path).getroot() for path in site.rglob("*.html")}
    anchors = {path: set(page.xpath("//@id | //a/@name")) for path, page in pages.items()}
    found = []
    for path, page in pages.items():
        for element, attribute, link, _ in page.iterlinks():
            to = urlsplit(link)
            place = f"{path.relative_to(site.resolve())}: {attribute}={link}"
            if to.scheme or to.netloc:
                if element.tag != "a" and element.get("rel") != "canonical" and to.scheme != "data":
                    found.append(f"{place} is loaded from another host")
                continue
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            if path.name == "404.html":  # shown at any address: its links begin at the root
                continue
            if not target.exists():
                found.append(f"{place} leads nowhere")
            elif to.fragment and target in anchors and to.fragment not in {*anchors[target], "__skip"}:
                found.append(f"{place} has no such anchor")
    return found


def main() -> None:
    """Write, assemble, build and check; exit 1 where a link leads nowhere or reading would need a network."""
    (ROOT / "docs/methods.md").write_text(methods_page())
    assemble()
    shutil.rmtree(SITE, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=ROOT)
    if done.returncode:
        sys.exit("the site does not build; it needs: pip install -c constraints.txt -e '.[docs]'")
    if wrong := faults(SITE):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
