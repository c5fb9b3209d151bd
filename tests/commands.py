"""The commands that README and docs show: every line of a fenced bash block, and those that stand in running text.

A comment `# needs: ...` says why a command is not run by a test: at a line's end of that line, on a line of its own of
the lines below it in the block. Its options are checked all the same. A script says `# run by tests/...`.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The changelog names commands that are gone.
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("results/reference/**/*.md")]
)
PROGRAMS = ("iapo-bench", "snakemake", "pytest", "pip", "bash")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SCRIPT = re.compile(r"^#.*run by (tests/\S+)", re.MULTILINE)
_SPAN = re.compile(rf"`((?:{'|'.join(PROGRAMS)})\s[^`]+)`")
# What stands before a program: settings of the environment, and a limit of time.
_BEFORE = re.compile(r"^(?:\w+=\S*\s+)*(?:timeout\s+(?:--\S+\s+)*\d+\s+)?")


@dataclass(frozen=True)
class Command:
    """One command: the words of its line, where it stands, and what it needs that a test has not."""

    words: tuple[str, ...]
    place: str
    needs: str = ""
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return _FENCE.findall(page.read_text())


def commands(page: Path) -> list[Command]:
    """Every command of the page, in order; those in running text last."""
    name = str(page.relative_to(ROOT))
    shell = [text for language, text in blocks(page) if language == "bash" and not SCRIPT.search(text)]
    fenced = [command for text in shell for command in _of_block(text, name)]
    prose = _FENCE.sub("", page.read_text())
    spans = [part for span in _SPAN.findall(prose) for part in " ".join(span.split()).split(" && ")]
    return [*fenced, *(Command(tuple(shlex.split(part)), name, inline=True) for part in spans)]


def _of_block(text: str, place: str) -> list[Command]:
    found, needs = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        mark = re.search(r"# needs: ([^\n]+)", line)
        if line.startswith("#"):
            needs = mark[1] if mark else needs
            continue
        code = re.sub(r"(?:^|\s)#\s.*", "", line).strip()
        for part in filter(None, re.split(r"\s&&\s", code)):
            words = tuple(shlex.split(_BEFORE.sub("", part)))
            found.append(Command(words, place, mark[1] if mark else needs))
    return found
