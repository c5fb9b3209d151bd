"""Judge sampled completions."""

from pathlib import Path

import pandas as pd

from iapo_bench.config.grade import GradeJob
from iapo_bench.errors import UserError
from iapo_bench.files import whole_file
from iapo_bench.worlds import read_problems, split_file
from iapo_bench.worlds.grading import extract_answer, is_formatted, make_grader
from iapo_bench.worlds.load import load_world


def grade(job: GradeJob, *, samples: Path, data: Path, out: Path) -> None:
    """Judge every sample: one row each, to the parquet file `out`.

    Rows hold the gold, the extracted answer (null without one), whether the text has the prompt's format, and the
    outcome by the strict rule and by the lenient one.
    """
    golds = {problem.id: problem.answer for problem in read_problems(split_file(data, job.split))}
    if not samples.is_file():
        raise UserError(f"{samples} does not exist: sample first")
    frame = pd.read_parquet(samples)
    if missing := set(frame["problem_id"]) - set(golds):
        raise UserError(f"{samples}: problem '{min(missing)}' is not in {data}: sample again after preparing data")
    with make_grader(load_world(job.world, job.world_seed).grader) as grader:
        texts = frame["text"].tolist()
        wanted = [golds[i] for i in frame["problem_id"]]
        frame["gold"] = wanted
        frame["answer"] = [extract_answer(text) for text in texts]
        frame["formatted"] = [is_formatted(text) for text in texts]
        frame["outcome"] = list(map(str, grader.grade(texts, wanted, progress=True)))
        frame["outcome_lenient"] = list(map(str, grader.grade_leniently(texts, wanted, progress=True)))
    with whole_file(out) as partial:
        frame.drop(columns=["token_ids"]).to_parquet(partial, index=False)
