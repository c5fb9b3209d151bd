"""The problems of every split, checked, without training problems that another split also holds."""

from pathlib import Path

import click

from iapo_bench.config.section import digest, identity
from iapo_bench.config.world import PrepareJob
from iapo_bench.files import whole_directory
from iapo_bench.machine.provenance import write_provenance
from iapo_bench.worlds import SPLITS, Problem, write_problems
from iapo_bench.worlds.load import load_held_out, load_published, load_world, local_files
from iapo_bench.worlds.overlap import separate
from iapo_bench.worlds.text import ChatWorld


def prepare(job: PrepareJob, out: Path) -> None:
    """Write the problems of every split to `out/<split>.jsonl`, their golds checked.

    Training problems that also occur in validation, test or a held-out benchmark are left out (with the published
    splits only counted), and so are problems whose golds float64 has rounded; `provenance.json` says how many. Raises
    UserError for missing or damaged data.
    """
    honest = job.world.splits == "honest"
    world = load_published(job.world, job.seed)
    splits, overlap, repeats = _split(job)
    if repeats:
        fate = "removed from training" if honest else "left in training, as published"
        click.echo(
            f"warning: {repeats} training problems are also validation, test or held-out problems: {fate}", err=True
        )
    left_out = world.left_out() if isinstance(world, ChatWorld) else []
    if left_out:
        click.echo(f"warning: {len(left_out)} problems are left out: float64 has rounded their golds", err=True)
    if job.world.file:
        counts = ", ".join(f"{len(problems)} {split}" for split, problems in splits.items())
        click.echo(f"{job.world.file}: problems: {counts}; answers: {world.grader}", err=True)
    with whole_directory(out) as partial:
        for split, problems in splits.items():
            write_problems(partial / f"{split}.jsonl", problems)
        write_provenance(
            partial / "provenance.json",
            config=identity(job),
            inputs=local_files(job.world),
            seeds={"seed": job.seed},
            extra={
                "problems": {split: len(problems) for split, problems in splits.items()},
                "overlap": overlap,
                "removed_from_train": repeats if honest else 0,
                "left_out": left_out,
            },
        )


def split_digests(job: PrepareJob) -> dict[str, dict[str, str]]:
    """Digests of every split's questions, golds and worked solutions, which show what a change of the data affects."""
    splits, _, _ = _split(job)
    world = load_world(job.world, job.seed)
    solutions = world.solutions() if isinstance(world, ChatWorld) else {}
    return {
        split: {
            "questions": digest([(problem.id, problem.question) for problem in problems]),
            "golds": digest([problem.answer for problem in problems]),
            "solutions": digest([solutions.get(problem.id) for problem in problems]),
        }
        for split, problems in splits.items()
    }


def _split(job: PrepareJob) -> tuple[dict[str, list[Problem]], dict[str, dict[str, int]], int]:
    """Problems by split, overlap counts by pair, and the number of training problems that overlap."""
    world = load_world(job.world, job.seed)
    return separate(
        {split: world.load(split) for split in SPLITS},
        load_held_out(job.world),
        remove=job.world.splits == "honest",
    )
