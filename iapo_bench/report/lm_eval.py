"""The table of lm-eval's scores: a row for each run, task and metric."""

from pathlib import Path

import pandas as pd
from pydantic import BaseModel

from iapo_bench.config.report import Labels
from iapo_bench.errors import damaged
from iapo_bench.files import read_json
from iapo_bench.report.document import Block, Table, write_document
from iapo_bench.report.rows import opening, run_names, split_run

COLUMNS = ("method", "train_seed", "task", "metric", "value", "stderr", "n", "backend", "versions")


class _Score(BaseModel):
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


class _Scores(BaseModel):
    """The fields of `scores.json` that the table shows; others are ignored."""

    backend: str
    versions: str
    scores: list[_Score]


def make_lm_eval_table(labels: Labels, runs: dict[str, Path], out: Path) -> None:
    """Join the scores of runs (METHOD/SEED, or `base`: directories with `lm_eval/scores.json`) into one table (`out`,
    CSV; .md, .tex and .html beside it).

    `value` and its standard error are in the metric's own unit, accuracies from 0 to 1; `n` counts problems. The base
    has no training seed. Raises UserError for missing or malformed scores.
    """
    rows = []
    for name, folder in runs.items():
        path = folder / "lm_eval" / "scores.json"
        method, seed = split_run(name)
        with damaged(path, f"run `iapo-bench lm-eval` on {method}"):
            content = _Scores.model_validate(read_json(path))
        made = {"method": method, "train_seed": seed, "backend": content.backend, "versions": content.versions}
        rows += [made | score.model_dump() for score in content.scores]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    write_document(out, frame, lm_eval_blocks(labels, frame))


def lm_eval_blocks(labels: Labels, frame: pd.DataFrame) -> list[Block]:
    """The scores for readers: a row for each run, a column for each task and metric."""
    frame = frame.assign(run=run_names(frame), what=frame["task"] + ", " + frame["metric"])
    runs, columns = list(dict.fromkeys(frame["run"])), {}
    for what, scores in frame.groupby("what", sort=False):
        of_run = scores.set_index("run")
        texts = [_score(of_run.loc[run]) if run in of_run.index else "" for run in runs]
        columns[f"{what} (n = {scores['n'].max():.0f})"] = texts
    made = frame[["backend", "versions"]].drop_duplicates().to_numpy()
    return [
        *opening(labels, "the same checkpoints by lm-eval"),
        Table({"run": runs, **columns}, "Greedy completions, judged by lm-eval: mean ± standard error over problems."),
        "Made by " + "; ".join(f"backend {backend}, {versions}" for backend, versions in made) + ".",
    ]


def _score(score: pd.Series) -> str:
    error = "" if pd.isna(score["stderr"]) else f" ±{score['stderr']:.3f}"
    return f"{score['value']:.3f}{error}"
