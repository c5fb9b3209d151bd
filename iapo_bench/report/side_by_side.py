"""Two methods' completions of one problem, side by side, in the terminal and as a page."""

import html
import itertools
import textwrap
from pathlib import Path

import pandas as pd

from iapo_bench.errors import UserError, unknown
from iapo_bench.files import whole_file
from iapo_bench.report.explain import describe, most_different, plain
from iapo_bench.report.results import read_texts

COLUMN = 60

_CSS = """\
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2em; }
table { border-collapse: collapse; table-layout: fixed; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .6em 1em .6em 0; border-bottom: 1px solid #ccc; }
pre { white-space: pre-wrap; font: 13px/1.4 ui-monospace, monospace; margin: .3em 0 0; }
.CORRECT { border-left: 4px solid #0072B2; padding-left: .8em; }
.other { border-left: 4px dashed #D55E00; padding-left: .8em; }
"""


def compare(a: Path, b: Path, *, problem: str | None, samples: int, out: Path | None) -> str:
    """The completions of one problem by two runs, as text; with `out` as a page too.

    `a` and `b` are run folders or files of grades. Without `problem`, the one on which they differ most. Raises
    UserError for an unknown problem, or grades of different problems.
    """
    frames = [_grades(path) for path in (a, b)]
    order = most_different(*frames)
    problem = problem or str(order.index[0])
    if problem not in order.index:
        raise unknown("problem", problem, order.index)
    chosen = [frame[frame["problem_id"] == problem].iloc[:samples] for frame in frames]
    heads = [
        f"{path}: {share:.0%} of {int((frame['problem_id'] == problem).sum())} samples are correct"
        for path, frame, share in zip((a, b), frames, order.loc[problem], strict=True)
    ]
    first = chosen[0].iloc[0]
    question = first["question"] if isinstance(first.get("question"), str) else ""
    title = f"{problem}, gold {first.get('gold', 'not recorded')}"
    if out is not None:
        with whole_file(out) as partial:
            partial.write_text(_page(title, question, heads, chosen), encoding="utf-8")
    return _text(title, question, heads, chosen)


def _grades(path: Path) -> pd.DataFrame:
    file = path / "test" / "grades.parquet" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{path} is neither a file of grades nor a run with test/grades.parquet, such as DIR/dapo/seed0"
        )
    problems = next((p / "data" / "test.jsonl" for p in file.parents if (p / "data" / "test.jsonl").is_file()), None)
    return read_texts(file, problems)


def _text(title: str, question: str, heads: list[str], chosen: list[pd.DataFrame]) -> str:
    lines = [plain(title), *textwrap.wrap(plain(question), 2 * COLUMN), "", *_columns(*heads)]
    for left, right in itertools.zip_longest(*(list(frame.iterrows()) for frame in chosen)):
        cells = [f"{describe(pair[1])}\n{plain(pair[1]['text'])}" if pair else "" for pair in (left, right)]
        lines += ["", *_columns(*cells)]
    return "\n".join(lines) + "\n"


def _columns(*texts: str) -> list[str]:
    """Two texts in columns of equal width."""
    wrapped = []
    for text in texts:
        parts = [textwrap.wrap(part, COLUMN - 3) or [""] for part in text.splitlines()]
        wrapped.append([line for part in parts for line in part])
    return [f"{left:<{COLUMN}}{right}".rstrip() for left, right in itertools.zip_longest(*wrapped, fillvalue="")]


def _page(title: str, question: str, heads: list[str], chosen: list[pd.DataFrame]) -> str:
    rows = []
    for pair in itertools.zip_longest(*(list(frame.iterrows()) for frame in chosen)):
        rows.append("<tr>" + "".join(f"<td>{_sample(found[1]) if found else ''}</td>" for found in pair) + "</tr>")
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{_CSS}</style>\n<h1>{html.escape(title)}</h1>\n<p>{html.escape(question)}</p>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>\n</html>\n"
    )


def _sample(sample: pd.Series) -> str:
    kind = "CORRECT" if sample["outcome"] == "CORRECT" else "other"
    return f'<div class="{kind}">{html.escape(describe(sample))}<pre>{html.escape(plain(sample["text"]))}</pre></div>'
