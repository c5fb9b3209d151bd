"""Judge sampled completions."""

from functools import partial
from pathlib import Path

from iapo_bench.config.grade import GradeJob
from iapo_bench.errors import UserError
from iapo_bench.files import read_parquet, whole_file
from iapo_bench.machine.provenance import checksum
from iapo_bench.machine.resume import kept, resuming, run_identity
from iapo_bench.worlds import read_problems, split_file
from iapo_bench.worlds.grading import is_formatted, make_grader
from iapo_bench.worlds.load import load_world

PART = 4096  # samples judged at once, which survive a kill when they are done


def grade(job: GradeJob, *, samples: Path, data: Path, out: Path) -> None:
    """Judge every sample: one row each with its outcome, to the parquet file `out`."""
    golds = {problem.id: problem.answer for problem in read_problems(split_file(data, job.split))}
    frame = read_parquet(samples, ("problem_id", "text"), "sample first")
    if missing := set(frame["problem_id"]) - set(golds):
        raise UserError(f"{samples}: problem '{min(missing)}' is not in {data}: sample again after preparing data")
    texts, wanted = frame["text"].tolist(), [golds[i] for i in frame["problem_id"]]
    inputs = {"samples": checksum(samples), "problems": checksum(split_file(data, job.split))}
    run = run_identity(job, "iapo_bench.evaluate.grade", packages=("math-verify",), **inputs)
    with (
        resuming(out.with_suffix(".resume"), run) as folder,
        make_grader(load_world(job.world, job.world_seed).grader) as grader,
    ):
        outcomes: list[str] = []
        for start in range(0, len(frame), PART):
            part = slice(start, start + PART)
            judge = partial(grader.grade, texts[part], wanted[part], progress=True)
            outcomes += kept(folder, str(start), judge)
        frame["outcome"] = outcomes
        frame["formatted"] = [is_formatted(text) for text in texts]
        with whole_file(out) as unfinished:
            frame.drop(columns=["token_ids"]).to_parquet(unfinished, index=False)
