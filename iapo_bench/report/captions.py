"""Texts that Snakemake's report inserts into its captions: what was measured, and the verdict."""

from pathlib import Path

from iapo_bench.errors import UserError, damaged
from iapo_bench.files import read_csv
from iapo_bench.report.results import TABLE, open_results


def is_whole(made: Path) -> bool:
    """Whether an artefact exists; a table needs its Markdown form too, which older versions did not write."""
    return made.exists() and (made.suffix != ".csv" or made.with_suffix(".md").exists())


def report_texts(out: str) -> dict[str, str]:
    """Texts that the report's captions insert: what was measured (`behind`) and the `verdict`."""
    return {"behind": _behind(Path(out) / TABLE), "verdict": _verdict(Path(out) / "frontier.csv")}


def _behind(path: Path) -> str:
    """What stands behind a finished table, which other settings than the current ones may have made; empty without
    one."""
    try:
        with open_results(path) as results, damaged(results.record, "make the table again"):
            first, told = results.table.iloc[0], list(results.provenance["seeds"].values())
            sampling, trained = (sorted({len(seeds[kind]) for seeds in told}) for kind in ("sampling", "train"))
    except UserError:
        return ""
    return (
        f"{first['model']} on {first['dataset']}: {first['n_problems']} test problems, {first['n_samples']} samples "
        f"each for {sampling[-1]} sampling seeds, {trained[-1]} training seeds."
    )


def _verdict(frontier: Path) -> str:
    """Whether any method beats early stopping of the base, as reStructuredText."""
    try:
        rows = read_csv(frontier, dict.fromkeys(("row", "kind", "verdict"), str))
    except UserError:
        return f"There is no verdict yet: ``snakemake --cores all {frontier}`` makes it."
    methods = rows[rows["kind"] == "method"]
    found = dict(zip(methods["row"], methods["verdict"], strict=True))
    best = [name for name, verdict in found.items() if verdict == "beats early stopping"]
    headline = (
        f"{', '.join(best)} beat early stopping of the base" if best else "No method beats early stopping of the base"
    )
    return f"**{headline}.**\n\n" + "\n".join(f"* {name}: {verdict}" for name, verdict in found.items())
