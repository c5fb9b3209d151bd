"""Judge sampled completions."""

from functools import partial
from pathlib import Path

from iapo_bench.config.grade import GradeJob
from iapo_bench.errors import UserError
from iapo_bench.files import read_parquet, whole_file
from iapo_bench.machine.provenance import checksum
from iapo_bench.machine.resume import kept, resuming, run_identity
from iapo_bench.worlds import split_file
from iapo_bench.worlds.grading import extract_answer, is_formatted, make_grader, read_gradable
from iapo_bench.worlds.grading.lenient import make_lenient_grader
from iapo_bench.worlds.load import load_world, source_files

PART = 4096  # samples per part; finished parts survive a kill


def grade(job: GradeJob, *, samples: Path, data: Path, out: Path) -> None:
    """Judge every sample and write one row each to the parquet file `out`.

    Rows hold the gold, the extracted answer (null without one), whether the text has the prompt's format, and the
    outcome by the strict rule and by the lenient one. Raises UserError for samples of problems that `data` does not
    hold.
    """
    kind = load_world(job.world, job.world_seed).grader
    golds = {problem.id: problem.answer for problem in read_gradable(split_file(data, job.split), kind)}
    frame = read_parquet(samples, {"problem_id": str, "text": str}, "sample first")
    if missing := set(frame["problem_id"]) - set(golds):
        raise UserError(f"{samples}: problem '{min(missing)}' is not in {data}: sample again after preparing data")
    texts, wanted = frame["text"].tolist(), [golds[i] for i in frame["problem_id"]]
    inputs = {"samples": checksum(samples), "problems": checksum(split_file(data, job.split))}
    dataset = source_files(job.world)[:1]
    run = run_identity(job, "iapo_bench.evaluate.grade", dataset, packages=("math-verify",), inputs=inputs)
    with resuming(out.with_suffix(".resume"), run) as folder:
        outcomes: dict[str, list[str]] = {}
        for name, make in (("outcome", make_grader), ("outcome_lenient", make_lenient_grader)):
            outcomes[name] = []
            with make(kind) as grader:
                for start in range(0, len(texts), PART):
                    part = slice(start, start + PART)
                    judge = partial(grader.grade, texts[part], wanted[part], progress=True)
                    outcomes[name] += kept(folder, f"{name}-{start}", judge)
        frame["gold"] = wanted
        frame["answer"] = [extract_answer(text) for text in texts]
        frame["formatted"] = [is_formatted(text) for text in texts]
        frame = frame.assign(**outcomes)
        with whole_file(out) as unfinished:
            frame.drop(columns=["token_ids"], errors="ignore").to_parquet(unfinished, index=False)
