"""The choice of settings on the validation split."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from iapo_bench.config.reading import dump_yaml, read_yaml
from iapo_bench.config.tune import TuneJob
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import read_grades, summarise
from iapo_bench.files import parse_json, read_csv, to_json, whole_file
from iapo_bench.report.document import Block, Table, write_document
from iapo_bench.report.rows import opening


def choose(job: TuneJob, trials: Path, base: Path, out: Path) -> None:
    """Choose each method's settings on validation and write them to `out`, with the evidence (CSV, Markdown, LaTeX,
    HTML) beside it.

    `trials` holds `<method>/trial<i>/validation/grades.parquet` for every trial, `base` the base model's grades. The
    choice is the trial of highest Ratio@k among those whose Pass@k is no more than `tolerance` below the base's, or, if
    there is none, of highest Pass@k.
    """
    floor = _score(base, job.k)["pass"] - job.tolerance
    kept, earlier = _kept(out, job)
    evidence: list[dict[str, Any]] = []
    choices: dict[str, Any] = dict(kept)
    for method, space in job.trials.items():
        scores = [
            _score(trials / method / f"trial{i}" / "validation" / "grades.parquet", job.k) for i in range(len(space))
        ]
        chosen = pick(scores, floor)
        choices[method] = space[chosen]
        for i, (settings, score) in enumerate(zip(space, scores, strict=True)):
            evidence.append(
                {"method": method, "trial": i, "settings": to_json(settings), **score, "chosen": i == chosen}
            )
    k = job.k
    frame = pd.DataFrame(evidence).rename(columns={m: f"{m}@{k}" for m in ("pass", "length", "ratio")})
    if len(earlier):
        if list(earlier) != list(frame):
            raise UserError(f"{out}: {', '.join(kept)} were chosen by another k: tune all methods, or remove the file")
        frame = pd.concat([earlier, frame], ignore_index=True)
    budget = f"{len(next(iter(job.trials.values())))} trials of {job.completions} completions each"
    searched = f"all with seed {job.seed}" + (f"; {', '.join(kept)}: from an earlier search" if kept else "")
    write_document(out.with_suffix(".csv"), frame, tuning_blocks(job, frame, f"{budget} for every method, {searched}"))
    with whole_file(out) as partial:
        partial.write_text(
            f"# Chosen on the validation split: {budget} for every method, {searched};\n"
            f"# highest Ratio@{k} among the trials with Pass@{k} of at least {floor:.4f}, the base's less "
            f"{job.tolerance}.\n# Made by `snakemake --cores all tune`; the evidence is {out.stem}.csv.\n"
            + dump_yaml(choices)
        )


def _kept(out: Path, job: TuneJob) -> tuple[dict[str, Any], pd.DataFrame]:
    """The choices in `out` of methods that this search leaves out, and the evidence for them. Raises UserError if there
    is none."""
    if not out.is_file():
        return {}, pd.DataFrame()
    kept = {name: choice for name, choice in (read_yaml(out)[0] or {}).items() if name not in job.trials}
    if not kept:
        return {}, pd.DataFrame()
    path = out.with_suffix(".csv")
    frame = read_csv(path, {"method": str, "settings": str})
    if lost := sorted(kept.keys() - set(frame["method"])):
        raise UserError(f"{path} has no evidence for {', '.join(lost)} of {out.name}: tune all methods, or remove both")
    return kept, frame[frame["method"].isin(kept)]


def tuning_blocks(job: TuneJob, frame: pd.DataFrame, budget: str) -> list[Block]:
    """The trials for readers, from the rows of `choose`; the choice of each method is bold."""
    columns = {
        "method": frame["method"].tolist(),
        "settings": [
            ", ".join(_settings(parse_json(settings, "the settings of a trial", "tune again"))) or "as the tier says"
            for settings in frame["settings"]
        ],
        f"Pass@{job.k}": [f"{value:.3f}" for value in frame[f"pass@{job.k}"]],
        "Length": [f"{value:.1f}" for value in frame[f"length@{job.k}"]],
        f"Ratio@{job.k} \N{MULTIPLICATION SIGN} 10³": [f"{1000 * value:.1f}" for value in frame[f"ratio@{job.k}"]],
    }
    shown = {
        name: [f"**{text}**" if chosen else text for text, chosen in zip(texts, frame["chosen"], strict=True)]
        for name, texts in columns.items()
    }
    return [
        *opening(job.labels, "the choice of settings on validation"),
        Table(shown, f"{budget}. **Bold**: the choice."),
    ]


def _settings(trial: dict[str, Any]) -> Iterator[str]:
    """The settings that a trial changes, such as `lr 0.0001` and `k 4`, options by their own names."""
    for name, value in trial.items():
        if isinstance(value, dict):
            yield from _settings(value)
        else:
            yield f"{name} {value}"


def pick(scores: Sequence[dict[str, float]], floor: float) -> int:
    """The index of the best trial: highest ratio among those with `pass` of at least `floor`, else highest `pass`."""
    able = [i for i, score in enumerate(scores) if score["pass"] >= floor]
    if able:
        return max(able, key=lambda i: scores[i]["ratio"])
    return max(range(len(scores)), key=lambda i: scores[i]["pass"])


def _score(grades: Path, k: int) -> dict[str, Any]:
    summary = summarise({0: read_grades(grades)}, [k])
    measured = {measure: summary.cells[f"{measure}@{k}"].mean for measure in ("pass", "length", "ratio")}
    return {"accuracy": summary.accuracy, **measured}
