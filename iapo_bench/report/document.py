"""Text and tables in three forms: Markdown, LaTeX (booktabs) and HTML, beside the CSV file for machines."""

import html
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from iapo_bench.files import whole_file

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": "$-$",
    "<": "$<$",
    ">": "$>$",
    "³": "$^3$",
    "·": r"$\cdot$",
}
CSS = """\
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; padding-bottom: .4em; color: #555; }
th { border-top: 2px solid #222; border-bottom: 1px solid #222; text-align: left; padding: .3em .9em .3em 0; }
td { padding: .2em .9em .2em 0; } tr:last-child td { border-bottom: 2px solid #222; }
figure { margin: 1.5em 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #555; }
"""


@dataclass(frozen=True)
class Table:
    """A table: the texts of its cells by column; `**text**` is bold."""

    columns: Mapping[str, Sequence[str]]
    caption: str = ""


Block = str | Table
"""A paragraph (a heading if it opens with `# ` or `## `; `**`, `*` mark bold and italics), or a table."""


def ranged(value: float, lo: float, hi: float, *, form: str) -> str:
    """A value with its interval, such as `0.58 [0.55, 0.61]`; the value alone if `lo` is NaN, empty if it is NaN."""
    if pd.isna(value):
        return ""
    text = f"{value:{form}}" if pd.isna(lo) else f"{value:{form}} [{lo:{form}}, {hi:{form}}]"
    return text.replace("-", "\N{MINUS SIGN}")


def write_document(out: Path, frame: pd.DataFrame, blocks: Sequence[Block]) -> None:
    """Write `frame` to the CSV file `out`, and `blocks` to `.md`, `.tex` and `.html` beside it, all of them or none."""
    texts = {".md": markdown(blocks), ".tex": latex(blocks), ".html": page(blocks)}
    with ExitStack() as stack:
        paths = {suffix: stack.enter_context(whole_file(out.with_suffix(suffix))) for suffix in (".csv", *texts)}
        frame.to_csv(paths[".csv"], index=False, float_format="%.6g")
        for suffix, text in texts.items():
            paths[suffix].write_text(text, encoding="utf-8")


def markdown(blocks: Sequence[Block]) -> str:
    """GitHub's Markdown."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return block.strip()
    table = tabulate(dict(block.columns), headers="keys", tablefmt="github", disable_numparse=True)
    return f"{block.caption}\n\n{table}" if block.caption else table


def latex(blocks: Sequence[Block]) -> str:
    """LaTeX to `\\input`: tables with booktabs' rules, paragraphs unchanged."""
    return "% \\usepackage{booktabs}\n" + "\n\n".join(_latex(block) for block in blocks) + "\n"


def _latex(block: Block) -> str:
    if isinstance(block, str):
        level, _, heading = block.strip().partition(" ")
        command = {"#": "section", "##": "subsection"}.get(level)
        return f"\\{command}*{{{escape(heading)}}}" if command else escape(" ".join(block.split()))
    names = list(block.columns)
    rows = list(zip(*block.columns.values(), strict=True))
    lines = [
        "\\begin{table}",
        "\\centering",
        *([f"\\caption{{{escape(block.caption)}}}"] if block.caption else []),
        f"\\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
        "\\toprule",
        " & ".join(map(escape, names)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(escape, row)) + " \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines)


def escape(text: str) -> str:
    """A text with `**bold**` and `*italics*` as LaTeX."""
    special = re.compile("|".join(map(re.escape, _LATEX)))
    plain = special.sub(lambda match: _LATEX[match[0]], text)
    return re.sub(r"\*(.+?)\*", r"\\emph{\1}", re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", plain))


def page(blocks: Sequence[Block]) -> str:
    """A self-contained HTML page."""
    title = next((block.lstrip("# ").strip() for block in blocks if isinstance(block, str)), "")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{CSS}</style>\n{fragment(blocks)}</html>\n"
    )


def fragment(blocks: Sequence[Block]) -> str:
    """The HTML of blocks, to be put into a page."""
    return "".join(f"{_html(block)}\n" for block in blocks)


def _html(block: Block) -> str:
    if isinstance(block, str):
        level, _, heading = block.strip().partition(" ")
        tag = {"#": "h1", "##": "h2"}.get(level)
        return f"<{tag}>{_marked(heading)}</{tag}>" if tag else f"<p>{_marked(block.strip())}</p>"
    head = "".join(f"<th>{_marked(name)}</th>" for name in block.columns)
    rows = zip(*block.columns.values(), strict=True)
    body = "".join("<tr>" + "".join(f"<td>{_marked(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    caption = f"<caption>{_marked(block.caption)}</caption>" if block.caption else ""
    return f"<table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def _marked(text: str) -> str:
    escaped = html.escape(text)
    return re.sub(r"\*(.+?)\*", r"<em>\1</em>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped))
