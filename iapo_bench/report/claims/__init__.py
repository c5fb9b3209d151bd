"""The ledger of claims: published claims about IAPO, judged on the published numbers and on ours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from iapo_bench.config.section import digest
from iapo_bench.config.tier_file import list_tiers, read_tier
from iapo_bench.files import read_csv
from iapo_bench.report.claims.checks import (
    Finding,
    check_anchor,
    check_growth,
    check_numbers,
    check_time,
    check_units,
)
from iapo_bench.report.claims.ledger import Anchor, Claim, Growth, Time, Units, read_claims
from iapo_bench.report.claims.numbers import Measured, Published
from iapo_bench.report.document import Block, Table, write_document
from iapo_bench.report.rows import Row, caution, read_published, read_rows

COLUMNS = ("claim", "numbers", "model", "dataset", "tier", "verdict", "evidence", "command")
# Verdicts on published and on measured numbers. A measurement on another model never counts as a reproduction.
WORDS = {
    "published": ("supported", "contradicted", "not shown"),
    "same": ("reproduced", "not reproduced", "undecided"),
    "other": ("holds here", "does not hold here", "undecided here"),
    "units": ("comparable", "units differ", ""),
}
NO_NUMBERS = "no numbers"
JUDGE = "snakemake --cores all claims"
# Settings that all comparable rows share, however they were trained.
_ASKED = ("model", "world", "world_seed", "prompt", "evaluate")
_SECOND_HAND = {**dict.fromkeys(("model", "method", "measure", "protocol", "source"), str), "value": float}
_WALLCLOCK = {
    **dict.fromkeys(("model", "dataset", "method"), str),
    **dict.fromkeys(("inference_seconds", "inference_completions"), float),
}


@dataclass(frozen=True)
class Evidence:
    """Evidence for claims: published rows, second-hand numbers, and measurements."""

    published: pd.DataFrame
    second_hand: pd.DataFrame
    measured: Sequence[Row]
    wallclocks: Sequence[pd.DataFrame] = ()
    bench: pd.DataFrame | None = None


def judge(claims: Sequence[Claim], evidence: Evidence) -> pd.DataFrame:
    """One row per claim and set of numbers, the published first, then each tier's; the columns are `COLUMNS`."""
    rows = []
    for claim in claims:
        rows += _on_published(claim, evidence) or [_row(claim, "published", None, "", "published")]
        rows += _on_measured(claim, evidence)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _on_published(claim: Claim, evidence: Evidence) -> list[dict[str, Any]]:
    rows = []
    for model in claim.published:
        there = evidence.published
        own = there[(there["model"] == model) & (there["dataset"] == "gsm8k")]
        found: Finding | None = None
        if isinstance(claim.check, Units):
            found = check_units(claim.check)
        elif own.empty:
            pass
        elif isinstance(claim.check, Anchor):
            anchors = evidence.second_hand[evidence.second_hand["model"] == model]
            found = check_anchor(claim.check, Published(own), anchors)
        else:
            found = check_numbers(claim.check, Published(own))
        words = "units" if isinstance(claim.check, Units) else "published"
        rows.append(_row(claim, "published", found, JUDGE, words, model=model, dataset="gsm8k"))
    return rows


def _on_measured(claim: Claim, evidence: Evidence) -> list[dict[str, Any]]:
    rows = []
    for group in _comparable(evidence.measured):
        model, dataset, tier = group[0].model, group[0].dataset, group[0].tier
        words = "same" if model in claim.published and dataset == "gsm8k" else "other"
        found = check_numbers(claim.check, Measured(group))
        if isinstance(claim.check, Time):
            own = [
                f for f in evidence.wallclocks if set(zip(f["model"], f["dataset"], strict=True)) == {(model, dataset)}
            ]
            found = check_time(claim.check, own[0]) if own else None
        if found is not None:
            found = found[0], caution(tier) + found[1]
            command = f"{_measure(tier, dataset)} && {JUDGE}"
            rows.append(_row(claim, "measured", found, command, words, model=model, dataset=dataset, tier=tier))
    if isinstance(claim.check, Growth) and evidence.bench is not None:
        found = check_growth(claim.check, evidence.bench)
        rows.append(_row(claim, "measured", found, "iapo-bench bench informativeness", "other"))
    return rows


def _comparable(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each model, dataset and tier, apart where they were asked or sampled otherwise, or trained with
    another budget: summaries of earlier calls stay."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        asked = digest({name: told for name, told in row.settings.items() if name in _ASKED})
        groups.setdefault((row.model, row.dataset, row.tier, row.tally.problems, asked), []).append(row)
    for group in groups.values():
        budgets = {row.method: row.settings.get("train", {}).get("completions") for row in group if row.trained}
        for budget in dict.fromkeys(budgets.values()):
            yield [row for row in group if budgets.get(row.method, budget) == budget]


def _measure(tier: str, dataset: str) -> str:
    """The command that produces a tier's measurements."""
    default = tier in list_tiers() and read_tier(tier).world.name == dataset
    world = "" if default else f" world='{{name: {dataset}}}'"
    return f"snakemake --cores all --config tier={tier}{world} -- all ablations"


def _row(claim: Claim, numbers: str, found: Finding | None, command: str, words: str, **labels: str) -> dict[str, Any]:
    holds, text = found if found is not None else (None, "")
    yes, no, unknown = WORDS[words]
    verdict = NO_NUMBERS if found is None else unknown if holds is None else yes if holds else no
    return {
        **dict.fromkeys(COLUMNS, ""),
        **{"claim": claim.id, "numbers": numbers, "verdict": verdict, "evidence": text, "command": command},
        **labels,
    }


def make_claims(
    ledger: Path,
    *,
    published: Path,
    second_hand: Path,
    summaries: Sequence[Path],
    wallclocks: Sequence[Path],
    bench: Path | None,
    out: Path,
) -> None:
    """Write the ledger's verdicts (`out`, CSV; .md, .tex and .html beside it)."""
    claims = read_claims(ledger)
    timed = [claim.check.column for claim in claims if isinstance(claim.check, Growth)]
    evidence = Evidence(
        read_published(published),
        read_csv(second_hand, _SECOND_HAND),
        read_rows(summaries),
        [read_csv(path, _WALLCLOCK) for path in wallclocks],
        read_csv(bench, {"batch": int, "T": int, **dict.fromkeys(timed, float)}) if bench else None,
    )
    table = judge(claims, evidence)
    write_document(out, table, claim_blocks(claims, table))


def claim_blocks(claims: Sequence[Claim], table: pd.DataFrame) -> list[Block]:
    """The ledger for readers: a part for each claim."""
    blocks: list[Block] = ["# What is claimed, and what holds", _HOW_TO_READ]
    for claim in claims:
        rows = table[table["claim"] == claim.id]
        where = [" ".join(filter(None, cells)) for cells in rows[["model", "dataset"]].to_numpy()]
        columns = {
            "numbers": [f"{n}, tier {t}" if t else n for n, t in zip(rows["numbers"], rows["tier"], strict=True)],
            "of": where,
            "verdict": [f"**{verdict}**" for verdict in rows["verdict"]],
            "evidence": rows["evidence"].tolist(),
            "made by": [f"`{command}`" if command else "" for command in rows["command"]],
        }
        blocks += [f"## {claim.sentence}", f"{claim.source}.", Table(columns)]
    return blocks


_HOW_TO_READ = """\
Verdicts on published numbers (`results/published/table1.csv`, means of three sampling runs of one training run) are
recomputed from them: supported, contradicted, or not shown where Welch's test at 5% cannot tell. A training run more
might say otherwise. Measured numbers are paired by problem; those of another model or dataset than the published ones
reproduce nothing, whatever they say. A number at second hand (`results/published/second_hand.csv`) is only ever set
beside a published one, with its source.
"""
