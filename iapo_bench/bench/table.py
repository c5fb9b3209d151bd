"""Time of a table: the seconds of every rule, as Snakemake measured them during the run."""

from pathlib import Path
from typing import Any

import pandas as pd

from iapo_bench.errors import UserError
from iapo_bench.files import read_csv


def bench_table(work: Path) -> list[dict[str, Any]]:
    """Seconds by rule, the longest first, from `work/benchmarks`. Raises UserError when the workflow has not run."""
    folder = work / "benchmarks"
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        rule = path.relative_to(folder).parts[0].removesuffix(".tsv")
        measured = read_csv(path, {"s": float}, "remove it", sep="\t")
        rows.append({"rule": rule, "seconds": measured["s"].sum()})
    if not rows:
        raise UserError(f"{folder} holds no measurements: run the workflow first")
    table = pd.DataFrame(rows).groupby("rule")["seconds"].agg(jobs="count", seconds="sum", longest="max").reset_index()
    table = table.sort_values("seconds", ascending=False)
    table["share"] = table["seconds"] / table["seconds"].sum()
    return [{str(key): value for key, value in row.items()} for row in table.round(3).to_dict("records")]
