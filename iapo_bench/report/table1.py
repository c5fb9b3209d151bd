"""The table, for machines (CSV) and for readers (Markdown, LaTeX, HTML), and accuracy against length."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iapo_bench.config.report import BASE
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import MEASURES, Cell
from iapo_bench.machine.provenance import write_provenance
from iapo_bench.report.accuracy_length import accuracy_length
from iapo_bench.report.comparisons import KINDS, compare, detectable_sentence, undecided_with, worse_than
from iapo_bench.report.document import Block, Table, write_document
from iapo_bench.report.rows import CONTROLS, ENVIRONMENT, LABELS, Row, caution, read_published, read_rows
from iapo_bench.report.style import save_figure
from iapo_bench.worlds.grading import Outcome

_PUBLISHED_KS = (16, 32)


def make_table(summaries: Sequence[Path], *, published: Path | None, out: Path, figure: Path) -> None:
    """Write the table (`out`, CSV; .md, .tex and .html beside it), its figure, and where its cells come from."""
    rows = read_rows(summaries)
    theirs = read_published(published) if published else None
    write_table(rows, summaries, out, table_frame(rows), table_blocks(rows, theirs))
    own = [row for row in rows if row.dataset == rows[0].dataset]  # the figure shows one dataset
    save_figure(accuracy_length([row for row in own if row.trained or row.method == BASE] or own), figure)


def write_table(
    rows: Sequence[Row], summaries: Sequence[Path], out: Path, frame: pd.DataFrame, blocks: Sequence[Block]
) -> None:
    """Write a table of rows, from the files `summaries` (`out`, CSV; .md, .tex and .html beside it), and where its
    cells come from."""
    write_document(out, frame, blocks)
    own = rows[0].dataset if rows else ""
    named = {id(row): row.name if row.dataset == own else f"{row.name} on {row.dataset}" for row in rows}
    write_provenance(
        out.with_suffix(".provenance.json"),
        config={named[id(row)]: row.settings for row in rows},
        inputs=[file for path in summaries for file in (path, path.with_suffix(".parquet"))],
        seeds={
            named[id(row)]: {"train": row.summary.train_seeds, "sampling": row.summary.sampling_seeds} for row in rows
        },
        extra={
            "outcomes": {named[id(row)]: row.summary.outcomes for row in rows},
            "truncated": {named[id(row)]: row.summary.truncated for row in rows},
        },
    )


def table_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The table, rows in the order given.

    Columns: those of the published table (empty where a k was not measured), the other ks, each row's tier, profile,
    sample sizes and selection, the bounds of the 95% intervals, and shares of well-formed and truncated completions.
    """
    if not rows:
        raise UserError("there are no summaries to make a table of")
    measured = sorted({k for row in rows for k in row.summary.ks})
    lines = []
    for row in rows:
        cells, summary = row.summary.cells, row.summary
        line: dict[str, Any] = {label: getattr(row, label) for label in LABELS}
        for key, cell in cells.items():
            line |= {key: cell.mean, f"{key}_std": cell.std, f"{key}_lo": cell.lo, f"{key}_hi": cell.hi}
        line |= {"n_problems": summary.n_problems, "n_samples": summary.n_samples, "train_seeds": _train_seeds(row)}
        line |= {"format_rate": summary.format_rate, "truncated": summary.truncated}
        lines.append(line)
    columns = [
        *("model", "dataset", "method"),
        *_value_columns(_PUBLISHED_KS),
        *_value_columns([k for k in measured if k not in _PUBLISHED_KS]),
        *("tier", "profile", "n_problems", "n_samples", "train_seeds", "selection"),
        *(f"{measure}@{k}_{bound}" for measure in MEASURES for k in measured for bound in ("lo", "hi")),
        *("format_rate", "truncated"),
    ]
    return pd.DataFrame(lines, columns=columns)


def table_blocks(rows: Sequence[Row], published: pd.DataFrame | None = None) -> list[Block]:
    """The table for readers: one part for each model, dataset, tier and set of problems, then how to read it."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.dataset, row.tier, row.tally.problems), []).append(row)
    return [block for group in groups.values() for block in [*_part(group, published), _HOW_TO_READ]]


def _part(rows: list[Row], published: pd.DataFrame | None) -> list[Block]:
    first = rows[0]
    methods = [row for row in rows if row.trained or row.method == BASE]
    common = sorted(set.intersection(*(set(row.summary.ks) for row in methods or rows)))
    if not common:
        raise UserError(f"no k was measured for every method on {first.dataset}: measure them with the same ks")
    keys = list(dict.fromkeys([f"pass@{common[0]}", *(f"{m}@{common[-1]}" for m in MEASURES)]))
    pairs = compare(methods) if len(methods) > 1 else None
    columns: dict[str, list[str]] = {"method": [row.name for row in rows]}
    for key in keys:
        bold = best_rows(methods, pairs, key) if pairs is not None else set()
        texts = [_text(key, _cell(row, key)) for row in rows]
        columns[_heading(key)] = [f"**{t}**" if row.name in bold else t for t, row in zip(texts, rows, strict=True)]
    blocks: list[Block] = [
        f"## {first.model} on {first.dataset} (tier {first.tier})",
        *([f"**{caution(first.tier).strip()}**"] if caution(first.tier) else []),
        Table(columns, "Means with half the width of the 95% interval."),
        _constants(rows),
        *([detectable_sentence(pairs, keys[0])] if pairs is not None else []),
        Table(_answers(rows), "How the rows answered (shares of completions)."),
        *differing_environments(rows),
    ]
    beside = _published(rows, published, keys)
    return [*blocks, Table(beside, "Published, mean ± standard deviation over runs.")] if beside else blocks


def differing_environments(rows: Sequence[Row]) -> list[str]:
    """A sentence about each part of the environment in which rows differ: their last digits are not comparable."""
    found = []
    for part in ENVIRONMENT:
        values = {row.name: ", ".join(row.environment[part]) for row in rows if part in row.environment}
        if len(set(values.values())) > 1:
            told = "; ".join(f"{name}: {value}" for name, value in values.items())
            found.append(f"The rows differ in {part.replace('_', ' ')} ({told}).")
    return found


def best_rows(rows: Sequence[Row], pairs: pd.DataFrame, key: str) -> set[str]:
    """The names of the best row in a cell's measure and of those that paired tests cannot tell from it; empty if these
    are all rows.

    In length and ratio, rows of lower accuracy than the base do not compete: a model that says nothing would win.
    """
    measure = "length" if key.startswith("length") else key
    able = [row.name for row in rows]
    if not key.startswith("pass"):
        base = next((row.name for row in rows if row.method == BASE), None)
        accuracy = str(pairs["measure"].iloc[0])
        able = [name for name in able if base is None or name not in worse_than(pairs, accuracy, base)]
    sign = KINDS[key.partition("@")[0]].sign
    values = {row.name: sign * row.summary.cells[key].mean for row in rows if row.name in able}
    best = max(values, key=values.__getitem__)
    found = {best, *undecided_with(pairs, measure, best)} & values.keys()
    return found if len(found) < len(rows) else set()


def _value_columns(ks: Iterable[int]) -> list[str]:
    spread = [f"{measure}@{k}{suffix}" for measure in ("pass", "length") for k in ks for suffix in ("", "_std")]
    return [*spread, *(f"ratio@{k}" for k in ks)]


def _train_seeds(row: Row) -> str:
    return " ".join(map(str, row.summary.train_seeds)) if row.trained else ""


def _heading(key: str) -> str:
    return (
        "Length"
        if key.startswith("length")
        else key.capitalize() + (" \N{MULTIPLICATION SIGN} 10³" if key.startswith("ratio") else "")
    )


def _cell(row: Row, key: str) -> Cell | None:
    """A row's cell; where it lacks a length at this k, the length at its largest k."""
    own = f"length@{row.summary.ks[-1]}" if key.startswith("length") and key not in row.summary.cells else key
    return row.summary.cells.get(own)


def _text(key: str, cell: Cell | None) -> str:
    """A cell for readers: `.389 ±.044`, `43.8 ±1.6`."""
    if cell is None:
        return ""
    half = (cell.hi - cell.lo) / 2
    if key.startswith("pass"):
        return " ±".join(f"{x:.3f}".removeprefix("0") for x in (cell.mean, half) if not np.isnan(x))
    scale = 1000 if key.startswith("ratio") else 1
    return " ±".join(f"{scale * x:.1f}" for x in (cell.mean, half) if not np.isnan(x))


def _constants(rows: list[Row]) -> str:
    """A sentence with the values that all rows share; a row that differs is named."""
    summary = rows[0].summary
    samples = {row.name: row.summary.n_samples for row in rows}
    odd = [f"{name} {n}" for name, n in samples.items() if n != summary.n_samples]
    trained = [row for row in rows if row.trained]
    seeds = {_train_seeds(row) for row in trained}
    chosen = {row.selection for row in trained}
    text = f"{summary.n_problems} problems, {summary.n_samples} samples"
    text += f" ({', '.join(odd)})" if odd else ""
    text += (
        f" with each of the sampling seeds {', '.join(map(str, summary.sampling_seeds))}; estimator {summary.estimator}"
    )
    if trained and len(seeds) == 1:
        text += f"; training seeds {', '.join(seeds.pop().split())}"
    if trained and len(chosen) == 1:
        text += f"; settings chosen by {chosen.pop()}"
    told = [f"{row.name}: {row.selection}" for row in rows if row.method in CONTROLS]
    idle = [f"**{row.name}: {row.idleness}**" for row in rows if row.idleness]
    return ". ".join([text, *told, *idle]) + "."


def _answers(rows: list[Row]) -> dict[str, list[str]]:
    totals = [sum(row.summary.outcomes.values()) for row in rows]
    columns = {"method": [row.name for row in rows]}
    for outcome in [outcome for outcome in Outcome if any(row.summary.outcomes[outcome] for row in rows)]:
        shares = [row.summary.outcomes[outcome] / total for row, total in zip(rows, totals, strict=True)]
        columns[outcome] = [f"{share:.1%}" for share in shares]
    columns["truncated"] = [f"{row.summary.truncated:.1%}" for row in rows]
    if any(row.summary.format_rate is not None for row in rows):
        rates = [row.summary.format_rate for row in rows]
        columns["format"] = ["" if rate is None else f"{rate:.1%}" for rate in rates]
    differ = {"training seeds": [_train_seeds(row) for row in rows]}
    differ["settings chosen by"] = [row.selection for row in rows]
    for name, texts in differ.items():
        if len({text for text, row in zip(texts, rows, strict=True) if row.trained}) > 1:
            columns[name] = texts
    return columns


def _published(rows: list[Row], published: pd.DataFrame | None, keys: list[str]) -> dict[str, list[str]]:
    """Published cells of the rows that have any, by column; empty without one."""
    if published is None:
        return {}
    shown = [key for key in keys if key in published]
    lines = []
    for row in rows:
        same = (published[["model", "dataset", "method"]] == [row.model, row.dataset, row.method]).all(axis=1)
        if same.any():
            lines.append([row.name, *(_published_text(published[same].iloc[0], key) for key in shown)])
    if not lines or not shown:
        return {}
    return dict(zip(["method", *map(_heading, shown)], map(list, zip(*lines, strict=True)), strict=True))


def _published_text(found: pd.Series, key: str) -> str:
    if key.startswith("ratio"):
        return f"{1000 * found[key]:.3g}"
    return f"{found[key]:g} ± {found[f'{key}_std']:g}"


_HOW_TO_READ = """\
A cell is a mean over training seeds and sampling seeds. Its interval is over problems, and over training seeds where
there are several; with one training seed it says nothing about what another training run would give. **Bold** is the
best of a column together with every row that paired tests (Holm's correction at 5%, see the comparisons) cannot tell
from it; in length and ratio only rows whose accuracy is not below the base's can be bold; where it would be every row,
none is. The tests are about these methods where both of a pair were trained with several seeds, or not at all, else
about these checkpoints.
TIMEOUT and ERROR, shown where they occur, are completions that grading could not judge; they count as not correct.
Every k, the standard deviations and the intervals' bounds are in the CSV file beside this one.
"""
