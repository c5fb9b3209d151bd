"""Origin of a cell of the table: files, settings, versions, machines, and some of its samples."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iapo_bench.config.reading import read_yaml
from iapo_bench.config.report import BASE
from iapo_bench.errors import UserError, damaged, unknown
from iapo_bench.machine.provenance import checksum
from iapo_bench.report.results import Results, open_results
from iapo_bench.report.steps import read_json

WIDTH = 110


def explain(table: Path, *, row: str, column: str, against: str | None, problems: int, samples: int) -> str:
    """The origin of a cell as text. `against`: the row whose samples are shown beside, by default the base.

    Raises UserError for an unknown row or column.
    """
    with open_results(table) as results:
        line = results.row(row)
        known = [name for name in results.table.columns if {f"{name}_lo", f"{name}_hi"} <= {*results.table}]
        if column not in known:
            raise UserError(f"{results.file}: {unknown('column', column, known)}")
        if np.isnan(line[column]):
            measured = f"with {line['n_samples']} samples a problem"
            raise UserError(f"{results.file}: {row} has no {column}, which was not measured {measured}")
        other = against or (BASE if row != BASE else next((m for m in results.table["method"] if m != row), row))
        results.row(other)
        parts = [
            _cell(line, column),
            *(_run(results, name, folder) for name, folder in results.runs(row).items()),
            _table_provenance(results, row),
            *_samples(results, row, other, problems, samples),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(line: pd.Series, column: str) -> str:
    seeds = f", training seeds {line['train_seeds']}" if line["train_seeds"] else ""
    spread = f", standard deviation over runs {line[f'{column}_std']:.6g}" if f"{column}_std" in line else ""
    lo, hi = line[f"{column}_lo"], line[f"{column}_hi"]
    chosen = line["selection"] or "nobody: nothing was trained"
    return (
        f"{line['method']}, {column}: {line[column]:.6g} [{lo:.6g}, {hi:.6g}]{spread}\n"
        f"{line['model']} on {line['dataset']}, tier {line['tier']}: {line['n_problems']} problems x "
        f"{line['n_samples']} samples{seeds}; settings chosen by {chosen}"
    )


def _run(results: Results, name: str, folder: Path) -> str:
    """A run's files, the code and settings of its jobs, and how its model was made."""
    files = [folder / "test" / "grades.parquet", folder / "test" / "samples.parquet", folder / "train.jsonl"]
    lines = [f"Run {name}:", *(f"  {path}" for path in files if path.is_file())]
    for path in sorted((folder / "model").glob("*.safetensors")):
        lines.append(f"  {path} (SHA-256 {checksum(path)})")
    run = folder.relative_to(results.work).as_posix().replace("/", "-")
    ran = results.work / "settings" / "ran"
    for path in sorted([*ran.glob(f"*--{run}.yaml"), *ran.glob(f"*--{run}--*.yaml")]):
        lines.append(f"  {path}, code digest {read_yaml(path)[0].get('identity', {}).get('code', 'not recorded')}")
    made = [folder / "provenance.json", folder / "model" / "provenance.json", results.work / "base" / "provenance.json"]
    found = next((path for path in made if path.is_file()), None)
    if found is None:
        return "\n".join([*lines, "  no provenance is recorded of its model"])
    with damaged(found, "make it again"):
        lines += [f"  {found}", *(f"    {key}: {value}" for key, value in _facts(read_json(found)))]
    return "\n".join(lines)


def _facts(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    code = content.get("code", {})
    if code.get("git"):
        yield "revision", f"{code['git']}{' with local changes' if code.get('dirty') else ''}"
    for key in ("code_digest", "config_hash", "weights", "fetched_weights", "base_weights"):
        if content.get(key):
            yield key.replace("_", " "), _short(content[key])
    for key in ("config", "seeds", "packages"):
        if content.get(key):
            yield {"config": "settings", "packages": "versions"}.get(key, key), _short(content[key])
    for key in ("python", "hardware", "instruction_set", "memory_gib", "threads", "processes"):
        if content.get(key) is not None:
            yield key.replace("_", " "), str(content[key])
    for path, digest in content.get("inputs", {}).items():
        yield "read", f"{path} (SHA-256 {digest})"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table_provenance(results: Results, row: str) -> str:
    content = results.provenance
    inputs = {path: digest for path, digest in content.get("inputs", {}).items() if Path(path).stem == row}
    config = content.get("config", {})
    content = {**content, "inputs": inputs, "config": config.get(row, config)}
    lines = [f"  {key}: {value}" for key, value in _facts(content)]
    for path, digest in inputs.items():
        now = results.work / "summaries" / path.rpartition("summaries/")[2]
        if now.is_file() and checksum(now) != digest:
            lines.append(f"  stale: {now} is another file by now: make the table again")
    return "\n".join(["The table:", *lines])


def _samples(results: Results, row: str, other: str, problems: int, samples: int) -> Iterator[str]:
    """Samples of two rows, from their first runs, on the problems where they differ most."""
    runs = {name: next(iter(results.runs(name).values())) for name in (row, other)}
    if runs[row] == runs[other]:
        yield f"{row} and {other} are made of the same samples: those of {runs[row]}"
        return
    for name, run in runs.items():
        if not (path := run / "test" / "grades.parquet").is_file():
            yield f"No samples of {name}: {path} does not exist; a bundle that is a folder leaves them out"
            return
    frames = {name: results.grades(run) for name, run in runs.items()}
    order = most_different(*frames.values())
    yield f"Problems on which {row} and {other} differ most ({problems} of {len(order)}; first runs):"
    for problem in order.index[:problems]:
        yield "\n".join(_problem(frames, str(problem), order.loc[problem], samples))


def most_different(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Shares of correct samples by problem, columns `a` and `b`, largest difference first.

    Raises UserError for grades of different problems.
    """
    shares = pd.DataFrame({key: _shares(frame) for key, frame in (("a", a), ("b", b))})
    golds = [frame.groupby("problem_id")["gold"].first().fillna("") for frame in (a, b) if "gold" in frame]
    if shares.isna().any(axis=None) or not all(gold.equals(golds[0]) for gold in golds):
        raise UserError("the two rows have samples of different problems: sample the same problems")
    order = np.argsort(-(shares["a"] - shares["b"]).abs().to_numpy(), kind="stable")
    return shares.iloc[order]


def _shares(frame: pd.DataFrame) -> pd.Series:
    return (frame["outcome"] == "CORRECT").groupby(frame["problem_id"].astype(str), sort=False).mean()


def _problem(frames: dict[str, pd.DataFrame], problem: str, shares: pd.Series, samples: int) -> Iterator[str]:
    mine = {name: frame[frame["problem_id"] == problem].iloc[:samples] for name, frame in frames.items()}
    first = next(iter(mine.values())).iloc[0]
    yield f"{problem}, gold {plain(str(first.get('gold', 'not recorded')))}"
    if isinstance(first.get("question"), str):
        yield textwrap.fill(plain(first["question"]), WIDTH, initial_indent="  ", subsequent_indent="  ")
    for (name, rows), share in zip(mine.items(), shares, strict=True):
        yield f"  {name}: {share:.0%} of its samples are correct"
        for _, sample in rows.iterrows():
            yield f"    {describe(sample)}"
            yield textwrap.fill(plain(sample["text"]), WIDTH, initial_indent="      ", subsequent_indent="      ")


def describe(sample: pd.Series) -> str:
    """Outcome, extracted answer and length of a sample, in a line."""
    answer = sample.get("answer", sample.get("extracted"))
    said = f", answer {plain(str(answer))}" if isinstance(answer, str) else ""
    return f"seed {sample['seed']}, sample {sample['sample']}: {sample['outcome']}{said}, {sample['n_tokens']} tokens"


def plain(text: str) -> str:
    """Text that can be printed: control characters, which could command a terminal, are shown as symbols."""
    return "".join(
        c if c.isprintable() or c == "\n" else chr(0x2400 + ord(c)) if ord(c) < 32 else "\ufffd" for c in text
    )
