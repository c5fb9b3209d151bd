"""Training cost, outcomes and efficiency scores of each row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iapo_bench.config.report import BASE, CostsJob
from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import estimate
from iapo_bench.report.document import Block, Table, ranged, write_document
from iapo_bench.report.rows import Row, opening, read_rows, split_run
from iapo_bench.report.steps import read_steps
from iapo_bench.report.wallclock import PHASES
from iapo_bench.worlds.grading import Outcome

# AES weights of the relative length saved, accuracy gained and accuracy lost.
AES_WEIGHTS = (1.0, 3.0, 5.0)


def make_costs(job: CostsJob, summaries: Sequence[Path], runs: dict[str, Path], *, out: Path) -> None:
    """Write the cost and the outcomes of each row (`out`, CSV; .md, .tex and .html beside it).

    `runs`: the trained rows' run directories, which hold `train.jsonl`, by METHOD/SEED.
    """
    logs: dict[str, list[Path]] = {}
    for name, folder in runs.items():
        logs.setdefault(split_run(name)[0], []).append(folder / "train.jsonl")
    rows = read_rows(summaries)
    frame = cost_frame(job, rows, logs)
    write_document(out, frame, cost_blocks(rows, frame))


def cost_frame(job: CostsJob, rows: Sequence[Row], logs: dict[str, list[Path]]) -> pd.DataFrame:
    """One row for each row of the table. Costs are sums over training seeds, plus, for tuned rows, the trials of the
    search, each with the budget of a run."""
    base = next((row for row in rows if row.method == BASE), None)
    return pd.DataFrame(
        [{"method": row.name, **_answers(row, base), **_training(job, row, logs.get(row.method, []))} for row in rows]
    )


def _answers(row: Row, base: Row | None) -> dict[str, Any]:
    summary, tally, k = row.summary, row.tally, max(row.summary.ks)
    length, accuracy = tally.values("length").mean(), tally.values("pass@1").mean()
    spent = estimate(tally.values("tokens_per_correct"), seeds=True)
    against = (base.tally.values("length").mean(), base.tally.values("pass@1").mean()) if base else (np.nan, np.nan)
    return {
        "format_rate": summary.format_rate,
        "truncated": summary.truncated,
        "unparseable": summary.outcomes[Outcome.UNPARSEABLE] / sum(summary.outcomes.values()),
        "pass@1": accuracy,
        "lenient@1": tally.values("lenient@1").mean(),
        f"pass@{k}": tally.values(f"pass@{k}").mean(),
        f"lenient@{k}": tally.values(f"lenient@{k}").mean(),
        "length": length,
        "tokens_per_correct": spent.value,
        "tokens_per_correct_lo": spent.interval[0],
        "tokens_per_correct_hi": spent.interval[1],
        "aes": aes(accuracy, length, *reversed(against)) if row is not base else 0.0,
        "ockscore": ockscore(accuracy, length),
    }


def aes(accuracy: float, length: float, base_accuracy: float, base_length: float) -> float:
    """O1-Pruner's Accuracy-Efficiency Score (arXiv:2501.12570): the share of the base's length that is saved, plus
    three times the relative gain in accuracy or minus five times the relative loss. NaN for a base that solves nothing.
    """
    if not base_accuracy > 0:
        return float("nan")
    saved, gained = 1 - length / base_length, accuracy / base_accuracy - 1
    a, b, g = AES_WEIGHTS
    return a * saved + (b if gained >= 0 else g) * gained


def ockscore(accuracy: float, length: float) -> float:
    """OckBench's score: accuracy in points, minus 10 log10(tokens / 10^4 + 1)."""
    return 100 * accuracy - 10 * float(np.log10(length / 1e4 + 1))


def _training(job: CostsJob, row: Row, logs: list[Path]) -> dict[str, Any]:
    if not row.trained:
        return {}
    if len(logs) != len(row.summary.train_seeds):
        raise UserError(
            f"{row.name} has {len(row.summary.train_seeds)} training seeds but {len(logs)} --run: give one per seed"
        )
    steps = pd.concat([read_steps(path, _COUNTED, _LATER) for path in logs])
    completions, tokens = int(steps["completions"].sum()), int(steps["tokens"].sum())
    trials = job.trials.get(row.parent or row.method, 0)
    tuned = completions + trials * job.completions
    return {
        "updates": _total(steps, "updates"),
        "updates_moved": _total(steps, "updates_moved"),
        "tokens_trained": _total(steps, "tokens_trained"),
        "completions": completions,
        "tokens": tokens,
        "seconds": float(steps[list(_SECONDS)].to_numpy().sum()),
        "trials": trials,
        "completions_with_tuning": tuned,
        "tokens_with_tuning": round(tokens * tuned / completions),
    }


_SECONDS = tuple(f"seconds_{phase}" for phase in PHASES)
_COUNTED = ("completions", "tokens", *_SECONDS)
_LATER = ("updates", "updates_moved", "tokens_trained")


def _total(steps: pd.DataFrame, column: str) -> float:
    """The sum of a column; NaN for logs of an older version, which lack it."""
    return float(steps[column].sum()) if column in steps else float("nan")


def cost_blocks(rows: Sequence[Row], frame: pd.DataFrame) -> list[Block]:
    """The costs for readers: outcomes, efficiency scores, cost of training."""
    first, k = rows[0], max(rows[0].summary.ks)
    names = frame["method"].tolist()
    lenient = frame["lenient@1"].notna().any()
    answers = {
        "method": names,
        "format": _texts(frame["format_rate"], "{:.1%}"),
        "truncated": _texts(frame["truncated"], "{:.1%}"),
        "unparseable": _texts(frame["unparseable"], "{:.1%}"),
        "Pass@1": _texts(frame["pass@1"], "{:.3f}"),
        **({"lenient": _texts(frame["lenient@1"], "{:.3f}")} if lenient else {}),
        f"Pass@{k}": _texts(frame[f"pass@{k}"], "{:.3f}"),
        **({f"lenient@{k}": _texts(frame[f"lenient@{k}"], "{:.3f}")} if lenient else {}),
    }
    scores = {
        "method": names,
        "tokens per correct answer": [
            ranged(*ends, form=".1f") or "no correct answer"
            for ends in frame[["tokens_per_correct", "tokens_per_correct_lo", "tokens_per_correct_hi"]].to_numpy()
        ],
        "AES": _texts(frame["aes"], "{:+.3f}"),
        "OckScore": _texts(frame["ockscore"], "{:.2f}"),
    }
    blocks: list[Block] = [
        *opening(first, "what each row cost and how it answered"),
        Table(answers, "How rows answered. Lenient: correct by the grader that forgives the format."),
        Table(scores, _SCORES),
    ]
    trained = frame[frame["completions"].notna()] if "completions" in frame else frame.iloc[:0]
    if trained.empty:
        return blocks
    training = {
        "method": trained["method"].tolist(),
        "updates that moved weights": [
            f"{line['updates_moved']:.0f} of {line['updates']:.0f}" if line["updates"] >= 0 else ""
            for _, line in trained.iterrows()
        ],
        "tokens trained on": _texts(trained["tokens_trained"], "{:,.0f}"),
        "generated": _texts(trained["tokens"], "{:,.0f}"),
        "with tuning": _texts(trained["tokens_with_tuning"], "{:,.0f}"),
        "seconds": _texts(trained["seconds"], "{:,.0f}"),
    }
    return [*blocks, Table(training, _TRAINING)]


def _texts(values: pd.Series, form: str) -> list[str]:
    return ["" if pd.isna(value) else form.format(value).replace("-", "\N{MINUS SIGN}") for value in values]


_SCORES = (
    "Efficiency scores. Tokens per correct answer: all tokens over correct completions, with its 95% interval. AES: "
    "share of the base's length saved, plus 3 times the relative gain or less 5 times the relative loss in Pass@1 "
    "(O1-Pruner, arXiv:2501.12570). OckScore: points of Pass@1 less 10 log10(tokens / 10,000 + 1) (OckBench)."
)
_TRAINING = (
    "What training took, summed over training seeds, in completion tokens; with tuning: and with the trials of the "
    "search on validation, had their completions been as long. Groups that a method dropped are generated and not "
    "trained on."
)
