"""From grades to what people read: summaries, the table, wall-clock figures, and the choice of hyperparameters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from iapo_bench.config import TierConfig, TuneConfig, search_space
from iapo_bench.errors import UserError
from iapo_bench.figures import accuracy_length, save_figure, sensitivity_maps, training_curves, wallclock_bars
from iapo_bench.files import to_json, whole_file, write_json
from iapo_bench.metrics import read_grades, summarise
from iapo_bench.provenance import write_provenance
from iapo_bench.tables import BASE, Row, read_rows, split_run, wallclock_row, write_table, write_wallclock

_INTERVAL = (("", "mean"), ("_lo", "lo"), ("_hi", "hi"))


def measure(tier: TierConfig, method: str, grades: dict[int, Path], out: Path) -> None:
    """Write one method's summary; `grades` holds its grades by training seed."""
    summary = summarise({seed: read_grades(path) for seed, path in grades.items()}, tier.evaluate.ks)
    trained = method != BASE
    varied = f" of {tier.parent(method)}, varied" if method in tier.ablations else ""
    row = Row(
        model=tier.model.name,
        dataset=tier.world.name,
        method=method,
        tier=tier.tier,
        profile=tier.method(method).profile if trained else "",
        selection=tier.selection + varied if trained else "",
        summary=summary,
    )
    write_json(out, row.to_dict())


def make_table(tier: TierConfig, summaries: Sequence[Path], *, published: Path | None, out: Path, figure: Path) -> None:
    """Write the table (`out`, and Markdown beside it), its figure, and where its cells come from."""
    rows = read_rows(summaries)
    write_table(rows, out, out.with_suffix(".md"), published)
    save_figure(accuracy_length(rows), figure)
    write_provenance(
        out.with_suffix(".provenance.json"),
        config=tier.model_dump(mode="json"),
        inputs=list(summaries),
        seeds={"data": tier.seed, "train": tier.train.seeds, "sampling": tier.evaluate.seeds},
        extra={
            "outcomes": {row.name: row.summary.outcomes for row in rows},
            "truncated": {row.name: row.summary.truncated for row in rows},
        },
    )


def make_wallclock(tier: TierConfig, runs: dict[str, Path], *, out: Path, figure: Path) -> None:
    """Write seconds by phase for each run, METHOD/SEED or "base": a directory with `test/timing.json` and, but for the
    base, `train.jsonl`."""
    rows = [
        wallclock_row(
            None if name == BASE else folder / "train.jsonl",
            folder / "test" / "timing.json",
            run=name,
            dataset=tier.world.name,
            model=tier.model.name,
        )
        for name, folder in runs.items()
    ]
    write_wallclock(rows, out)
    save_figure(wallclock_bars(rows), figure)


def make_curves(runs: dict[str, Path], figure: Path) -> None:
    """Draw accuracy and length of the training completions of each run, named METHOD/SEED; a method's look alike."""
    logs: dict[str, list[Path]] = {}
    for name, folder in runs.items():
        logs.setdefault(split_run(name)[0], []).append(folder / "train.jsonl")
    save_figure(training_curves(logs), figure)


def choose(tier: TierConfig, trials: Path, base: Path, out: Path) -> None:
    """Choose each method's settings on validation and write them to `out`, with the evidence as CSV beside it.

    `trials` holds `<method>/trial<i>/validation/grades.parquet` for every trial, `base` the base model's grades. The
    choice is the trial of highest Ratio@k among those whose Pass@k is no more than `tolerance` below the base's, or, if
    there is none, of highest Pass@k. Raises UserError when methods have unequal numbers of trials.
    """
    if tier.tune is None:
        raise UserError(f"tier {tier.tier} has no 'tune' section")
    spaces = {method: search_space(method) for method in tier.methods}
    if len({len(space) for space in spaces.values()}) != 1:
        sizes = ", ".join(f"{method} {len(space)}" for method, space in spaces.items())
        raise UserError(f"every method must have the same number of trials, not {sizes}")
    floor = _score(base, tier.tune)["pass"] - tier.tune.tolerance
    evidence, choices = [], {}
    for method, space in spaces.items():
        scores = [
            _score(trials / method / f"trial{i}" / "validation" / "grades.parquet", tier.tune)
            for i in range(len(space))
        ]
        chosen = pick(scores, floor)
        choices[method] = space[chosen]
        for i, (settings, score) in enumerate(zip(space, scores, strict=True)):
            evidence.append(
                {"method": method, "trial": i, "settings": to_json(settings), **score, "chosen": i == chosen}
            )
    k = tier.tune.k
    frame = pd.DataFrame(evidence).rename(columns={m: f"{m}@{k}" for m in ("pass", "length", "ratio")})
    budget = f"{len(next(iter(spaces.values())))} trials of {tier.train.completions} completions each"
    with whole_file(out.with_suffix(".csv")) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g")
    with whole_file(out) as partial:
        partial.write_text(
            f"# Chosen on the validation split: {budget} for every method, all with seed {tier.tune.seed};\n"
            f"# highest Ratio@{k} among the trials with Pass@{k} of at least {floor:.4f}, the base's less "
            f"{tier.tune.tolerance}.\n# Made by `snakemake --cores all tune`; the evidence is {out.stem}.csv.\n"
            + yaml.safe_dump(choices, sort_keys=False)
        )


def make_sensitivity(tier: TierConfig, base: Path, grades: Sequence[Path], *, out: Path, figure: Path) -> None:
    """Write what came out at each point of the tier's grid, `grades` in its order, with intervals, and heat maps."""
    if tier.tune is None or tier.sensitivity is None:
        raise UserError(f"tier {tier.tier} has no 'sensitivity' section, or no 'tune' section to measure it by")
    points = tier.sensitivity.points()
    if len(grades) != len(points):
        raise UserError(f"the grid has {len(points)} points: {len(grades)} files of grades do not fit")
    k = tier.tune.k
    ks = sorted({1, k})
    measures = [f"{measure}@{i}" for measure, i in (("pass", 1), ("pass", k), ("length", k), ("ratio", k))]
    rows = []
    for name, point, path in [
        (BASE, {}, base),
        *zip([tier.sensitivity.method] * len(points), points, grades, strict=True),
    ]:
        summary = summarise({0: read_grades(path)}, ks)
        cells = {measure: summary.cells[measure] for measure in measures}
        rows.append(
            {"method": name, **point}
            | {f"{m}{end}": getattr(cell, part) for m, cell in cells.items() for end, part in _INTERVAL}
            | {"n_problems": summary.n_problems, "n_samples": summary.n_samples}
        )
    frame = pd.DataFrame(rows)
    drawing = sensitivity_maps(
        frame, list(tier.sensitivity.grid), measures, title=f"{tier.model.name}, validation split"
    )
    with whole_file(out) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g")
    save_figure(drawing, figure)


def pick(scores: Sequence[dict[str, float]], floor: float) -> int:
    """The index of the best trial: highest ratio among those with `pass` of at least `floor`, else highest `pass`."""
    able = [i for i, score in enumerate(scores) if score["pass"] >= floor]
    if able:
        return max(able, key=lambda i: scores[i]["ratio"])
    return max(range(len(scores)), key=lambda i: scores[i]["pass"])


def _score(grades: Path, config: TuneConfig) -> dict[str, Any]:
    summary = summarise({0: read_grades(grades)}, [config.k], bootstrap=1)
    measured = {measure: summary.cells[f"{measure}@{config.k}"].mean for measure in ("pass", "length", "ratio")}
    return {"accuracy": summary.accuracy, **measured}
