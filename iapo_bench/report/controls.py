"""Two controls that a method must beat: the base's own samples, shortened without training.

Cut: a completion longer than L tokens is truncated there, unanswered and so wrong. Shortest: the shortest of every n
samples of a problem is kept; all n have to be started, so its length is the wait, not the number of tokens generated.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from iapo_bench.config.report import RowJob
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import Samples, read_grades
from iapo_bench.report.rows import CONTROLS, Row
from iapo_bench.worlds.grading import Outcome

SHORTEST_OF = 4


def make_controls(job: RowJob, grades: Path, out: Path) -> None:
    """Write the summaries `base_cut.json` and `base_shortest.json` to the directory `out`.

    Samples are cut at their median length, or the shortest of every 4 is kept. Ks above the remaining number of samples
    are left out.
    """
    frame = read_grades(grades)
    limit = int(frame["n_tokens"].median())
    made = (
        (cut(frame, limit), f"control: cut after {limit} tokens"),
        (shortest(frame, SHORTEST_OF), f"control: the shortest of {SHORTEST_OF}"),
    )
    for method, (changed, selection) in zip(CONTROLS, made, strict=True):
        samples = Samples.of({0: changed})
        ks = [k for k in job.ks if k <= samples.tokens_TSPN.shape[-1]]
        Row(
            **job.labels.model_dump(),
            method=method,
            profile="",
            selection=selection,
            summary=samples.summary(ks),
            tally=samples.tally(),
        ).write(out / f"{method}.json")


def cut(grades: pd.DataFrame, limit: int) -> pd.DataFrame:
    """The grades with every completion truncated after `limit` tokens: a longer one becomes unparseable."""
    long = grades["n_tokens"] > limit
    changed = {"n_tokens": grades["n_tokens"].clip(upper=limit)}
    for column, value in (("outcome", Outcome.UNPARSEABLE), ("outcome_lenient", Outcome.UNPARSEABLE)):
        if column in grades:
            changed[column] = grades[column].astype(object).mask(long, value.value)
    changed["finish_reason"] = grades["finish_reason"].astype(object).mask(long, "length")
    if "formatted" in grades:
        changed["formatted"] = grades["formatted"] & ~long
    return grades.assign(**changed)


def shortest(grades: pd.DataFrame, n: int) -> pd.DataFrame:
    """The shortest of every `n` consecutive samples of a problem, the first among ties; leftover samples are dropped.

    Raises UserError for fewer than `n` samples a problem.
    """
    kept = (grades["sample"].max() + 1) // n
    if kept == 0:
        raise UserError(f"shortest-of-{n} needs that many samples per problem: raise n_samples")
    frame = grades.assign(group=grades["sample"] // n).query("group < @kept")
    order = frame.sort_values(["n_tokens", "sample"], kind="stable")
    first = order.drop_duplicates(["seed", "problem_id", "group"])
    return first.assign(sample=first["group"]).drop(columns="group").sort_index()


def cut_values(tokens_SPN: np.ndarray, correct_SPN: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean length and share correct of every problem, (P,) each, with completions truncated after `limit` tokens."""
    return np.minimum(tokens_SPN, limit).mean(axis=(0, 2)), (correct_SPN & (tokens_SPN <= limit)).mean(axis=(0, 2))


def shortest_values(tokens_SPN: np.ndarray, correct_SPN: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean length and share correct of every problem, (P,) each, of the shortest of n samples, over all subsets of n.

    The i-th shortest of N (from 0) is the shortest of a random subset with probability C(N-1-i, n-1) / C(N, n).
    """
    N = tokens_SPN.shape[-1]
    order = np.argsort(tokens_SPN, axis=-1, kind="stable")
    chance = np.ones(N)
    for i in range(N):  # C(N-1-i, n-1) / C(N, n), without large numbers
        chance[i] = n / N * np.prod([(N - i - j) / (N - j) for j in range(1, n)]) if i <= N - n else 0.0
    values = [np.take_along_axis(a, order, axis=-1) @ chance for a in (tokens_SPN, correct_SPN)]
    return values[0].mean(axis=0), values[1].mean(axis=0)
