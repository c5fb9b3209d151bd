"""Terminal output of a workflow run: estimated duration, a line for each job, then the table and its files."""

import logging
import time
from pathlib import Path
from typing import Any

import click

from iapo_bench.errors import UserError
from iapo_bench.files import read_csv, read_text
from iapo_bench.staleness import note_ran
from iapo_bench.workflow import Workflow

_SETTINGS = "/settings/"  # files whose changes are told where they are written
_QUIET = ("job_info", "job_started", "job_finished", "progress", "group_info", "resources_info")


class _OneLine(logging.Filter):
    """Prints one line for each finished job instead of Snakemake's paragraphs; errors pass unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self._begun: dict[int, tuple[str, float]] = {}
        self._ended: list[int] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether Snakemake's own message is shown."""
        event = getattr(record, "event", None)
        if event is None:
            # The timestamp above a paragraph, and what the scheduler says before each job.
            return not record.getMessage().startswith(("[", "Select jobs"))
        kind, told = str(getattr(event, "value", event)), vars(record)
        if kind == "job_info":
            self._begun[told["jobid"]] = _named(told["rule_name"], told.get("wildcards")), time.monotonic()
        elif kind == "job_finished":
            self._ended.append(told["job_id"])
        elif kind == "progress":
            for done, job in enumerate(self._ended, told["done"] - len(self._ended) + 1):
                what, begun = self._begun.get(job, ("a job", time.monotonic()))
                click.echo(f"{done} of {told['total']}  rule {what}, {duration(time.monotonic() - begun)}", err=True)
            self._ended.clear()
        return kind not in _QUIET


def start(workflow: Any, flow: Workflow) -> None:
    """Print what the run will make and how long it takes; from here on, print one line per job."""
    from snakemake.logging import logger  # type: ignore[import-untyped]

    jobs = list(workflow.dag.needrun_jobs())
    tier, limits = flow.tier, workflow.resource_settings
    at_once = limits.cores or limits.nodes or 1  # on a cluster jobs are limited, not cores
    click.echo(
        f"iapo-bench: {tier.model.name} on {tier.world.name}, {len(flow.methods)} methods x {len(flow.seeds)} "
        f"training seeds, {len(jobs)} jobs; {estimate(jobs, flow.work, at_once)}; logs: {flow.work}/logs",
        err=True,
    )
    for job in jobs:
        if changed := _changed(workflow.dag.reason(job)):
            click.echo(f"stale: {_named(job.rule.name, job.wildcards_dict)}, since {changed}", err=True)
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_OneLine())


def _named(rule: str, wildcards: dict[str, Any] | None) -> str:
    return f"{rule}: {'/'.join(map(str, (wildcards or {}).values()))}".removesuffix(": ")


def _changed(reason: Any) -> str:
    """What changed for a finished job that its settings file does not hold: its rule, or a file that no job of this run
    makes; empty if nothing did."""
    kinds = {
        "its rule has another command": reason.code_changed,
        "its rule has other arguments": reason.params_changed,
        "its rule has another environment": reason.software_stack_changed,
    }
    paths = [] if reason.missing_output else map(str, reason.updated_input)
    newer = sorted(path for path in paths if _SETTINGS not in path)
    told = [*(kind for kind, is_so in kinds.items() if is_so), *(f"{path} is newer" for path in newer[:1])]
    return " and ".join(told) + (f", like {len(newer) - 1} more" if newer[1:] else "")


def note(workflow: Any) -> None:
    """Record which code finished artefacts ran with: their commands do not get the file that says it."""
    for job in workflow.dag.finished_jobs:
        if code := job.input.get("code"):
            note_ran(Path(code))


def estimate(jobs: list[Any], work: str, cores: int) -> str:
    """About how long jobs take on `cores`, from earlier runs here of the same job or of others of its rule."""
    seconds, unknown = [], 0
    for job in (job for job in jobs if job.benchmark):
        past = [Path(job.benchmark)] if Path(job.benchmark).is_file() else []
        past = past or sorted((Path(work) / "benchmarks" / job.rule.name).rglob("*.tsv"))
        took = [once for path in past if (once := _benchmark(path)) is not None]
        if took:
            seconds.append((sum(took) / len(took), min(job.threads, cores)))
        else:
            unknown += 1
    if not seconds:
        return "first run here, so how long is not known: `iapo-bench plan` estimates it"
    total = max(sum(took * threads for took, threads in seconds) / cores, max(took for took, _ in seconds))
    return f"about {duration(total)}" + (f", and {unknown} jobs of kinds that never ran here" if unknown else "")


def _benchmark(path: Path) -> float | None:
    """The seconds in a benchmark file of Snakemake; None if a kill left the file unfinished."""
    try:
        return float(read_csv(path, {"s": float}, sep="\t")["s"].iloc[0])
    except (UserError, IndexError):
        return None


def end(workflow: Any, out: str) -> None:
    """Print the table if this run made it, and name the files for people that this run made."""
    from snakemake.io import is_flagged  # type: ignore[import-untyped]

    note(workflow)
    made = [str(path) for job in workflow.dag.finished_jobs for path in job.output if is_flagged(path, "report")]
    for table in [path for path in made if path == f"{out}/table1.md"]:
        click.echo(f"\n{read_text(Path(table))}", err=True)
    click.echo("\n".join(made), err=True)


def duration(seconds: float) -> str:
    """Seconds as a readable text: "45 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
