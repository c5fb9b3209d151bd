"""Every pair of rows, paired by problem: difference, interval, and a test against chance.

Two statements are kept apart. *These checkpoints*: the problems are a sample, the trained weights are fixed. *These
methods*: training seeds are a sample too; with a single training seed of a trained method it is not known.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from iapo_bench.config.report import Labels
from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import ALPHA, Estimate, estimate, holm
from iapo_bench.report.document import Block, Table, ranged, write_document
from iapo_bench.report.rows import Row, caution, opening, read_rows
from iapo_bench.report.style import INK, MANY, STYLE, new_figure, save_figure

_UNITS = {"pass": (100, "points"), "length": (1, "tokens"), "ratio": (1000, "\N{MULTIPLICATION SIGN} 10³")}
STATEMENTS = ("checkpoints", "methods")
NOT_KNOWN, UNDECIDED = "not known", "not told apart"


class Kind(NamedTuple):
    """How a measure is labelled, compared and printed."""

    label: str
    better: str  # adjective for the better of two rows
    sign: int  # 1 where more is better
    digits: str  # format of a value


KINDS = {
    "pass": Kind("Pass", "more accurate", 1, ".3f"),
    "lenient": Kind("Lenient pass", "more accurate", 1, ".3f"),
    "length": Kind("Length", "shorter", -1, ".1f"),
    "ratio": Kind("Ratio", "higher in ratio", 1, "#.3g"),
    "tokens_per_correct": Kind("Tokens per correct answer", "cheaper", -1, ".1f"),
}


def make_comparisons(summaries: Sequence[Path], *, out: Path, figure: Path) -> None:
    """Write the comparisons of all rows, each dataset on its own (`out`, CSV; .md, .tex and .html beside it), and the
    figure of the first dataset."""
    rows = read_rows(summaries)
    by_dataset = [[row for row in rows if row.dataset == name] for name in dict.fromkeys(row.dataset for row in rows)]
    if any(len(group) < 2 for group in by_dataset):
        raise UserError("comparisons need two rows of each dataset: measure another method")
    tables = [compare(group) for group in by_dataset]
    write_document(out, pd.concat(tables), [block for table in tables for block in comparison_blocks(table)])
    save_figure(comparisons_figure(tables[0]), figure)


def measures(rows: Sequence[Row]) -> list[str]:
    """The measures compared: Pass@k at the smallest and the two largest ks that all rows have, length, ratio at the
    largest k, and tokens per correct answer. Raises UserError when the rows share no k."""
    common = sorted(set.intersection(*(set(row.summary.ks) for row in rows)))
    if not common:
        raise UserError("no k was measured for every method: measure them with the same ks")
    ks = sorted({common[0], *common[-2:]})
    return [*(f"pass@{k}" for k in ks), "length", f"ratio@{common[-1]}", "tokens_per_correct"]


def compare(rows: Sequence[Row]) -> pd.DataFrame:
    """A row for every pair and measure; `difference` is b minus a.

    For each statement: the bounds of the 95% interval, the p-value of "no difference", the same with Holm's correction
    over the pairs of a measure, and a verdict in words. `detectable` is the true difference that the uncorrected test
    about these checkpoints finds with 80% power, `methods_detectable` that of the test about these methods. Raises
    UserError for rows that answered different problems.
    """
    if len({(row.model, row.dataset, row.tier, row.tally.problems) for row in rows}) > 1:
        raise UserError("the rows differ in model, dataset, tier or problems: compare each group separately")
    lines: list[dict[str, Any]] = []
    for measure in measures(rows):
        values = [row.tally.values(measure) for row in rows]
        of_measure: list[dict[str, Any]] = []
        for (i, a), (j, b) in itertools.combinations(enumerate(rows), 2):
            fixed = estimate(values[j], values[i], seeds=False)
            once = any(row.trained and len(row.tally.train_seeds) < 2 for row in (a, b))
            drawn = None if once else estimate(values[j], values[i], seeds=True)
            line: dict[str, Any] = {"model": a.model, "dataset": a.dataset, "tier": a.tier, "measure": measure}
            line |= {"a": a.name, "b": b.name, "a_value": values[i].mean(), "b_value": values[j].mean()}
            line |= {"difference": fixed.value, "detectable": fixed.detectable}
            for statement, found in zip(STATEMENTS, (fixed, drawn), strict=True):
                line |= _columns(statement, found)
            line |= {"n_problems": len(a.tally.problems), "n_samples": a.tally.n_samples}
            line |= {f"train_seeds_{side}": _seeds(row) for side, row in (("a", a), ("b", b))}
            line["methods_detectable"] = drawn.detectable if drawn else np.nan
            of_measure.append(line)
        for statement in STATEMENTS:
            corrected = holm([line[f"{statement}_p"] for line in of_measure])
            for line, p in zip(of_measure, corrected, strict=True):
                line[f"{statement}_p_holm"] = p
                line[f"{statement}_verdict"] = verdict(measure, line["a"], line["b"], line["difference"], p)
        lines += of_measure
    return pd.DataFrame(lines)


def verdict(measure: str, a: str, b: str, difference: float, p: float) -> str:
    """The verdict of a corrected p-value on rows `a` and `b`, in words; `difference` is b minus a."""
    if np.isnan(p):
        return NOT_KNOWN
    if p >= ALPHA:
        return UNDECIDED
    kind = KINDS[measure.partition("@")[0]]
    return f"{b if kind.sign * difference > 0 else a} is {kind.better}"


def undecided_with(table: pd.DataFrame, measure: str, name: str) -> set[str]:
    """The rows that `name` cannot be told apart from in `measure`: by the statement about methods where that is known,
    else by the one about checkpoints."""
    pairs = table[(table["measure"] == measure) & ((table["a"] == name) | (table["b"] == name))]
    p = pairs["methods_p_holm"].fillna(pairs["checkpoints_p_holm"])
    return set(pairs["a"].where(pairs["a"] != name, pairs["b"])[~(p < ALPHA)])


def worse_than(table: pd.DataFrame, measure: str, name: str) -> set[str]:
    """The rows that are worse than `name` in `measure`, decided as in `undecided_with`."""
    pairs = table[(table["measure"] == measure) & ((table["a"] == name) | (table["b"] == name))]
    sign = KINDS[measure.partition("@")[0]].sign * np.where(pairs["a"] == name, 1, -1)
    p = pairs["methods_p_holm"].fillna(pairs["checkpoints_p_holm"])
    return set(pairs["a"].where(pairs["a"] != name, pairs["b"])[(p < ALPHA) & (sign * pairs["difference"] < 0)])


def label(measure: str) -> str:
    """The printed name of a measure: `Pass@1`, `Tokens per correct answer`."""
    name, at, k = measure.partition("@")
    return KINDS[name].label + at + k


def number(measure: str, value: float, *, signed: bool = False) -> str:
    """A value of a measure as tables print it, with its sign if `signed` (a difference)."""
    if np.isnan(value):
        return NOT_KNOWN
    text = f"{value:{'+' if signed else ''}{KINDS[measure.partition('@')[0]].digits}}"
    return text.replace("-", "\N{MINUS SIGN}") if signed else text


def comparison_blocks(table: pd.DataFrame) -> list[Block]:
    """The comparisons for readers: a part for each measure."""
    shown = Labels(**table.iloc[0][["tier", "model", "dataset"]])
    blocks: list[Block] = [*opening(shown, "every pair, paired by problem"), _HOW_TO_READ]
    for measure, pairs in table.groupby("measure", sort=False):
        measure = str(measure)
        columns = {
            "b against a": [f"{b} against {a}" for a, b in zip(pairs["a"], pairs["b"], strict=True)],
            "difference": [_interval_text(measure, pair) for _, pair in pairs.iterrows()],
            "p (Holm)": [p_text(p) for p in pairs["checkpoints_p_holm"]],
            "these checkpoints": pairs["checkpoints_verdict"].tolist(),
            "these methods": pairs["methods_verdict"].tolist(),
        }
        blocks += [f"## {label(measure)}", Table(columns), detectable_sentence(table, measure)]
    return blocks


def detectable_sentence(table: pd.DataFrame, measure: str) -> str:
    """The smallest difference that the comparisons of a measure could have detected, in words."""
    smallest = table.loc[table["measure"] == measure, "detectable"].dropna()
    if smallest.empty:
        return f"No difference in {label(measure)} could have been detected: too few problems, or correct answers."
    text = f"Smallest true difference in {label(measure)} that a pair's own test would find four times in five, for "
    text += f"the median pair: {_spread(measure, smallest)} of these checkpoints"
    methods = table.loc[table["measure"] == measure, "methods_detectable"].dropna()
    return f"{text}, {_spread(measure, methods)} of these methods." if len(methods) else f"{text}."


def _spread(measure: str, values: pd.Series) -> str:
    low, middle, high = (number(measure, value) for value in values.quantile([0, 0.5, 1]))
    return f"{middle} ({low} to {high})"


def comparisons_figure(table: pd.DataFrame) -> Figure:
    """A square for every ordered pair, row minus column, for Pass@1 (or the smallest k), length and ratio.

    Blue where the row is better, vermilion where it is worse, white with a point where they cannot be told apart.
    """
    names = list(dict.fromkeys([*table["a"], *table["b"]]))
    measured = list(dict.fromkeys(table["measure"]))
    shown = [measured[0], *(m for m in measured if m.startswith(("length", "ratio")))]
    with mpl.rc_context(STYLE):
        first = table.iloc[0]
        title = (
            f"{caution(first['tier'])}{first['model']} on {first['dataset']}, {first['n_problems']} problems: row less "
            f"column; blue: the row is better, vermilion{', dash' if len(names) > MANY else ''}: worse, a point: not "
            "told apart (these checkpoints)"
        )
        figure, axes = new_figure(len(shown), title, height=1.2 + 0.3 * min(len(names), 8))
        for ax, measure in zip(axes, shown, strict=True):
            _draw_matrix(ax, table[table["measure"] == measure], measure, names)
            if ax is not axes[0]:
                ax.tick_params(labelleft=False)
    return figure


def _draw_matrix(ax: Any, pairs: pd.DataFrame, measure: str, names: list[str]) -> None:
    values, decided = np.full((len(names), len(names)), np.nan), np.zeros((len(names), len(names)), bool)
    for _, pair in pairs.iterrows():
        i, j = names.index(pair["a"]), names.index(pair["b"])
        values[i, j], values[j, i] = -pair["difference"], pair["difference"]
        decided[i, j] = decided[j, i] = pair["checkpoints_p_holm"] < ALPHA
    sign = KINDS[measure.partition("@")[0]].sign
    reach = max(float(np.nanmax(np.abs(values), initial=0)), 1e-9)
    ax.imshow(np.where(decided, sign * values, np.nan), cmap="RdBu", norm=TwoSlopeNorm(0, -reach, reach), alpha=0.85)
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        colour = "white" if decided[i, j] and abs(value) > 0.6 * reach else INK
        if not decided[i, j]:
            ax.plot(j, i, ".", color=INK, markersize=1.5)
        elif len(names) <= MANY:
            ax.text(j, i, _short(measure, value), ha="center", va="center", fontsize=7, color=colour)
        elif sign * value < 0:
            ax.plot(j, i, "_", color=colour, markersize=3)
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.set_title(f"{label(measure)} ({_UNITS[measure.partition('@')[0]][1]})")
    ax.grid(visible=False)
    ax.tick_params(length=0)


def _short(measure: str, value: float) -> str:
    scale, _ = _UNITS[measure.partition("@")[0]]
    return f"{scale * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _columns(statement: str, found: Estimate | None) -> dict[str, float]:
    lo, hi = found.interval if found else (np.nan, np.nan)
    return {f"{statement}_lo": lo, f"{statement}_hi": hi, f"{statement}_p": found.p if found else np.nan}


def _seeds(row: Row) -> str:
    return " ".join(map(str, row.tally.train_seeds)) if row.trained else ""


def _interval_text(measure: str, pair: pd.Series) -> str:
    value, lo, hi = (pair[name] for name in ("difference", "checkpoints_lo", "checkpoints_hi"))
    return ranged(value, lo, hi, form=f"+{KINDS[measure.partition('@')[0]].digits}") or NOT_KNOWN


def p_text(p: float) -> str:
    """A p-value as tables print it."""
    return NOT_KNOWN if np.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


_HOW_TO_READ = """\
A difference is b less a over the same problems, with a 95% interval; p is corrected for the number of pairs of a
measure (Holm). *These checkpoints*: another draw of problems would say the same of these weights. *These methods*:
other training seeds would too; "not known" where a method was trained with one seed only. The intervals of that
statement are in the CSV file beside this one.
"""
