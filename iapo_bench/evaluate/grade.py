"""Judge sampled completions."""

from pathlib import Path

import pandas as pd

from iapo_bench.config.grade import GradeJob
from iapo_bench.errors import UserError
from iapo_bench.files import whole_file
from iapo_bench.worlds import read_problems, split_file
from iapo_bench.worlds.grading import is_formatted, make_grader
from iapo_bench.worlds.load import load_world


def grade(job: GradeJob, *, samples: Path, data: Path, out: Path) -> None:
    """Judge every sample: one row each with its outcome, to the parquet file `out`."""
    golds = {problem.id: problem.answer for problem in read_problems(split_file(data, job.split))}
    if not samples.is_file():
        raise UserError(f"{samples} does not exist: sample first")
    frame = pd.read_parquet(samples)
    if missing := set(frame["problem_id"]) - set(golds):
        raise UserError(f"{samples}: problem '{min(missing)}' is not in {data}: sample again after preparing data")
    with make_grader(load_world(job.world, job.world_seed).grader) as grader:
        outcomes = grader.grade(frame["text"].tolist(), [golds[i] for i in frame["problem_id"]], progress=True)
    frame["outcome"] = [outcome.value for outcome in outcomes]
    frame["formatted"] = [is_formatted(text) for text in frame["text"]]
    with whole_file(out) as partial:
        frame.drop(columns=["token_ids"]).to_parquet(partial, index=False)
