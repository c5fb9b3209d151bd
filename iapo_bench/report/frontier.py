"""Does any method beat early stopping of the base? Accuracy against length, beside the untrained base's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from iapo_bench.config.report import BASE
from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import ALPHA, estimate, holm
from iapo_bench.evaluate.metrics import Samples, read_grades
from iapo_bench.report.accuracy_length import Cross, bar, draw_crosses, label_crosses
from iapo_bench.report.comparisons import NOT_KNOWN
from iapo_bench.report.controls import cut_values, shortest_values
from iapo_bench.report.document import Block, Table, ranged, write_document
from iapo_bench.report.rows import Row, caution, opening, parents, read_rows
from iapo_bench.report.style import GREY, MANY, STYLE, method_styles, new_figure, save_figure

CUTS = 40  # points of the curve


def make_frontier(summaries: Sequence[Path], base: Path, *, out: Path, figure: Path) -> None:
    """Write the controls at every cut and every number of samples, each method against them (`out`, CSV; .md, .tex and
    .html beside it), and the figure. `base` holds the base's grades."""
    rows = [row for row in read_rows(summaries) if row.trained or row.method == BASE]
    samples = Samples.of({0: read_grades(base)})
    if any(row.tally.problems != samples.problems for row in rows):
        raise UserError(f"{base} and the summaries have different problems: sample the same problems")
    if not any(row.trained for row in rows):
        raise UserError("early stopping has no method to be compared with: give a method's summary too")
    counted = [row.tally.counts["correct"] for row in rows if row.method == BASE]
    if not all(np.array_equal(counts_TSP, samples.flags["correct"].sum(axis=-1)) for counts_TSP in counted):
        raise UserError(f"{base} does not hold the grades that the base's summary counts: measure again")
    curve, values = controls(samples)
    table = against_controls(rows, curve, values)
    frame = pd.concat([curve, table], ignore_index=True)
    write_document(out, frame, frontier_blocks(rows, table))
    save_figure(frontier_figure(rows, curve), figure)


def controls(samples: Samples) -> tuple[pd.DataFrame, dict[tuple[str, int], np.ndarray]]:
    """The base cut after L tokens, and the shortest of n of its samples: one row for each L and n, and accuracy by
    problem, (P,), by (kind, L or n)."""
    tokens_SPN, correct_SPN = samples.tokens_TSPN[0], samples.flags["correct"][0]
    limits = np.unique(np.quantile(tokens_SPN, np.linspace(0, 1, CUTS), method="higher")).astype(int)
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= tokens_SPN.shape[-1]]
    found = {("cut", int(limit)): cut_values(tokens_SPN, correct_SPN, int(limit)) for limit in limits}
    found |= {("shortest", n): shortest_values(tokens_SPN, correct_SPN, n) for n in sizes}
    lines = []
    for (kind, parameter), (length_P, correct_P) in found.items():
        lo, hi = estimate(correct_P[None], seeds=False).interval
        lines.append(
            {"row": f"base, {_named(kind, parameter)}", "kind": kind, "parameter": parameter}
            | {"length": length_P.mean(), "pass@1": correct_P.mean(), "pass@1_lo": max(lo, 0), "pass@1_hi": min(hi, 1)}
        )
    return pd.DataFrame(lines), {key: correct_P for key, (_, correct_P) in found.items()}


def against_controls(
    rows: Sequence[Row], curve: pd.DataFrame, values: dict[tuple[str, int], np.ndarray]
) -> pd.DataFrame:
    """Each trained row against the most accurate control that is no longer than it: Pass@1 minus the control's, paired.

    The statement is about methods where each of them has several training seeds, else about these checkpoints; p-values
    have Holm's correction.
    """
    trained, several = [row for row in rows if row.trained], _several(rows)
    lines: list[dict[str, Any]] = []
    for row in trained:
        length, passes_TP = row.tally.values("length").mean(), row.tally.values("pass@1")
        lo, hi = estimate(passes_TP, seeds=True).interval
        line: dict[str, Any] = {"row": row.name, "kind": "method", "length": length, "pass@1": passes_TP.mean()}
        line |= {"pass@1_lo": max(lo, 0), "pass@1_hi": min(hi, 1)}
        able = curve[curve["length"] <= length]
        if not able.empty:
            best = able.loc[able["pass@1"].idxmax()]
            found = estimate(passes_TP, values[best["kind"], int(best["parameter"])][None], seeds=several)
            line |= {"control": best["row"], "control_length": best["length"], "control_pass@1": best["pass@1"]}
            line |= {"difference": found.value, "difference_lo": found.interval[0], "difference_hi": found.interval[1]}
            line["p"] = found.p
        lines.append({"p": np.nan} | line)
    for line, p in zip(lines, holm([line["p"] for line in lines]), strict=True):
        better = "beats early stopping" if line.get("difference", 0) > 0 else "is beaten by early stopping"
        line["p_holm"] = p
        line["verdict"] = NOT_KNOWN if np.isnan(p) else better if p < ALPHA else "not told apart from early stopping"
    return pd.DataFrame(lines)


def frontier_blocks(rows: Sequence[Row], table: pd.DataFrame) -> list[Block]:
    """The verdicts for readers."""
    columns = {
        "method": [f"{line['row']}" for _, line in table.iterrows()],
        "Pass@1": [f"{line['pass@1']:.3f}" for _, line in table.iterrows()],
        "Length": [f"{line['length']:.1f}" for _, line in table.iterrows()],
        "best control, no longer": [_control(line) for _, line in table.iterrows()],
        "difference": [_difference(line) for _, line in table.iterrows()],
        "verdict": table["verdict"].tolist(),
    }
    caption = "Difference in Pass@1, paired by problem, with its 95% interval; p corrected by Holm, 5%."
    if not _several(rows):
        caption += " About these checkpoints alone: with one training seed, other training runs may differ."
    return [
        *opening(rows[0], "methods against early stopping of the base"),
        Table(columns, caption),
        "Controls are made of the base's own samples. Cut: a completion of more than L tokens stops there, unanswered "
        "and so wrong. Shortest: of n samples the shortest is taken; all n have to be started, so its length is what a "
        "reader waits for and not what is generated. It is chosen on the same samples, which flatters it a little.",
    ]


def _several(rows: Sequence[Row]) -> bool:
    """Whether each trained row has several training seeds."""
    return all(len(row.tally.train_seeds) > 1 for row in rows if row.trained)


def frontier_figure(rows: Sequence[Row], curve: pd.DataFrame) -> Figure:
    """Pass@1 against length: methods with 95% intervals, and the two controls as curves."""
    styles = method_styles((row.name for row in rows), parents(rows))
    first = rows[0]
    with mpl.rc_context(STYLE):
        title = f"{caution(first.tier)}{first.model} on {first.dataset}: can early stopping of the base do it?"
        many = len(rows) > MANY
        figure, (ax,) = new_figure(1, title, height=3.4 if many else 2.6, wide=many)
        for kind, dashes, marker in (("cut", "-", ""), ("shortest", (0, (4, 2)), ".")):
            line = curve[curve["kind"] == kind].sort_values("length")
            ax.plot(line["length"], line["pass@1"], color=GREY, linestyle=dashes, marker=marker, linewidth=1)
        shortest = curve[curve["kind"] == "shortest"].iloc[-1]
        ax.annotate(
            f"shortest of {shortest['parameter']:.0f} to 1",
            (shortest["length"], shortest["pass@1"]),
            xytext=(-2, -5),
            va="top",
            textcoords="offset points",
            fontsize=7,
            color=GREY,
        )
        cut = curve[curve["kind"] == "cut"]
        place = cut.iloc[(cut["pass@1"] - cut["pass@1"].max() / 2).abs().argmin()]
        ax.annotate(
            "cut after L",
            (place["length"], place["pass@1"]),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=GREY,
        )
        crosses = {row.name: Cross(*(_bar(row, measure) for measure in ("length", "pass@1"))) for row in rows}
        draw_crosses(ax, crosses, styles)
        ax.set_xlabel("Length (tokens)")
        ax.set_ylabel("Pass@1")
        # Leave out cuts far shorter than any method, which would squeeze the rest.
        ends = [shortest["length"], *(end for cross in crosses.values() for end in cross.x)]
        spread = max(float(np.ptp(ends)), 1.0)
        ax.set_xlim(min(ends) - 0.35 * spread, max(ends) + 0.05 * spread)
        ax.set_ylim(0, 1.15 * max(0.01, *(cross.y[2] for cross in crosses.values())))
        figure.canvas.draw()
        label_crosses(ax, crosses, styles)
    return figure


def _bar(row: Row, measure: str) -> tuple[float, float, float]:
    found = estimate(row.tally.values(measure), seeds=True)
    return bar(found.value, *found.interval)


def _named(kind: str, parameter: int) -> str:
    return f"cut after {parameter} tokens" if kind == "cut" else f"the shortest of {parameter}"


def _control(line: pd.Series) -> str:
    if not isinstance(line.get("control"), str):
        return "none is that short"
    return (
        f"{line['control'].removeprefix('base, ')}: {line['control_pass@1']:.3f}, {line['control_length']:.1f} tokens"
    )


def _difference(line: pd.Series) -> str:
    if not isinstance(line.get("control"), str):
        return ""
    return ranged(line["difference"], line["difference_lo"], line["difference_hi"], form="+.3f")
