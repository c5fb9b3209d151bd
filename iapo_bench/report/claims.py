"""The ledger of claims: published claims about IAPO, judged on the published numbers and on ours.

Published numbers are means and population standard deviations over three sampling runs of one training run: Welch's
test judges their differences. Measured differences are paired by problem. Second-hand numbers are kept apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import t as student
from scipy.stats import ttest_ind_from_stats

from iapo_bench.config.reading import read_yaml
from iapo_bench.config.section import digest
from iapo_bench.config.tier_file import list_tiers, read_tier
from iapo_bench.errors import UserError, damaged
from iapo_bench.files import read_csv
from iapo_bench.report.document import Block, Table, write_document
from iapo_bench.report.rows import CONTROLS, Row, caution, change, read_rows

RUNS = 3  # sampling runs in a published mean
ALPHA = 0.05
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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Best(_Strict):
    kind: Literal["best"]
    measure: str
    method: str
    against: list[str]


class Change(_Strict):
    kind: Literal["change"]
    measure: str
    method: str
    against: list[str]
    direction: Literal["up", "down"]
    by: float | None = None
    tolerance: float = 0.0


class NoLoss(_Strict):
    kind: Literal["no_loss"]
    measure: str
    method: str
    against: str


class Time(_Strict):
    kind: Literal["time"]
    method: str
    against: str
    by: float
    tolerance: float


class Growth(_Strict):
    kind: Literal["growth"]
    column: str
    power: float


class Quantity(_Strict):
    value: float
    unit: str


class Units(_Strict):
    kind: Literal["units"]
    values: list[Quantity]


class Anchor(_Strict):
    kind: Literal["anchor"]
    measure: str
    method: str
    anchor: str


Check = Annotated[Best | Change | NoLoss | Time | Growth | Units | Anchor, Field(discriminator="kind")]


class Claim(_Strict):
    """A claim's sentence, its source, its check, and the models on whose published rows it is checked."""

    id: str
    sentence: str
    source: str
    check: Check
    published: list[str] = []


class Ledger(_Strict):
    claims: list[Claim]


@dataclass(frozen=True)
class Difference:
    """a - b of two values: the difference, its 95% interval and the two-sided p-value of no difference."""

    a: float
    b: float
    value: float
    lo: float
    hi: float
    p: float


class Numbers(Protocol):
    """Rows of one model and dataset that can be compared."""

    def has(self, *methods: str) -> bool: ...

    def measures(self, measure: str) -> bool: ...

    def value(self, method: str, measure: str) -> float: ...

    def difference(self, a: str, b: str, measure: str) -> Difference: ...


class Published:
    """The published rows of one model."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self._rows = rows.set_index("method")

    def has(self, *methods: str) -> bool:
        return set(methods) <= set(self._rows.index)

    def measures(self, measure: str) -> bool:
        return measure in self._rows

    def value(self, method: str, measure: str) -> float:
        return float(self._rows.loc[method, measure])  # type: ignore[arg-type]

    def difference(self, a: str, b: str, measure: str) -> Difference:
        stats = [(self.value(name, measure), self._std(name, measure)) for name in (a, b)]
        (mean_a, std_a), (mean_b, std_b) = stats
        p = float(ttest_ind_from_stats(mean_a, std_a, RUNS, mean_b, std_b, RUNS, equal_var=False).pvalue)
        variances = np.array([std_a, std_b]) ** 2 / RUNS
        df = variances.sum() ** 2 / (variances**2 / (RUNS - 1)).sum()
        half = float(student.isf(ALPHA / 2, df) * np.sqrt(variances.sum()))
        value = mean_a - mean_b
        return Difference(mean_a, mean_b, value, value - half, value + half, p)

    def _std(self, method: str, measure: str) -> float:
        """The sample standard deviation; a ratio's, which is not published, is propagated from Pass@k and Length@k."""
        sample = np.sqrt(RUNS / (RUNS - 1))
        name, _, k = measure.partition("@")
        if name != "ratio":
            return float(self._rows.loc[method, f"{measure}_std"] * sample)
        passed, length = (self._std(method, m) / self.value(method, m) for m in (f"pass@{k}", f"length@{k}"))
        return float(self.value(method, measure) * np.hypot(passed, length))


class Measured:
    """The rows that a tier measured, except the base's controls, which have fewer samples and occur in no claim.

    Length@k is the mean over all samples, the same for every k.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row.method: row for row in rows if row.method not in CONTROLS}

    def has(self, *methods: str) -> bool:
        return set(methods) <= set(self.rows)

    def measures(self, measure: str) -> bool:
        return all(int(measure.partition("@")[2]) <= row.tally.n_samples for row in self.rows.values())

    def value(self, method: str, measure: str) -> float:
        return float(self.rows[method].tally.values(_counted(measure)).mean())

    def difference(self, a: str, b: str, measure: str) -> Difference:
        first, second = (self.rows[name] for name in (a, b))
        seeds = all(not row.trained or len(row.tally.train_seeds) > 1 for row in (first, second))
        found = change(first, second, _counted(measure), seeds=seeds)
        lo, hi = found.interval
        return Difference(self.value(a, measure), self.value(b, measure), found.value, lo, hi, found.p)


def _counted(measure: str) -> str:
    return "length" if measure.startswith("length") else measure


# Settings that all comparable rows share, however they were trained.
_ASKED = ("model", "world", "world_seed", "prompt", "evaluate")
# Whether a claim holds (None: undecided) and why, in words.
Finding = tuple[bool | None, str]


def check_best(check: Best, numbers: Numbers) -> Finding:
    """True if the method beats each of `against` with p < 0.05, False if the best of them beats it so, else None."""
    sign = -1 if check.measure.startswith("length") else 1
    found = {name: numbers.difference(check.method, name, check.measure) for name in check.against}
    nearest = min(found, key=lambda name: sign * found[name].value)
    ahead = all(sign * difference.value > 0 for difference in found.values())
    decided = all(difference.p < ALPHA for difference in found.values())
    beaten = sign * found[nearest].value < 0 and found[nearest].p < ALPHA
    return (True if ahead and decided else False if beaten else None), _told(check.method, nearest, found[nearest])


def check_change(check: Change, numbers: Numbers) -> Finding:
    """True if the change from each of `against` is significant, in the claimed direction and of the claimed size, if
    any; False where it is significant the other way or its 95% interval excludes the size; None if undecided."""
    sign = 1 if check.direction == "up" else -1
    holds: list[bool | None] = []
    texts = []
    for other in check.against:
        found = numbers.difference(check.method, other, check.measure)
        lo, relative, hi = (bound / found.b for bound in (found.lo, found.value, found.hi))
        by = relative if check.by is None else check.by
        if not lo - check.tolerance <= by <= hi + check.tolerance:
            holds.append(False)
        elif not found.p < ALPHA or abs(relative - by) > check.tolerance:
            holds.append(None)
        else:
            holds.append(sign * found.value > 0)
        texts.append(f"{_told(check.method, other, found)}, {relative:+.1%}".replace("-", "\N{MINUS SIGN}"))
    holds_all = False if False in holds else None if None in holds else True
    return holds_all, "; ".join(texts)


def check_no_loss(check: NoLoss, numbers: Numbers) -> Finding:
    """True if the 95% interval of the difference lies at or above 0, False if it lies below, else None."""
    found = numbers.difference(check.method, check.against, check.measure)
    holds = True if found.lo >= 0 else False if found.hi < 0 else None
    return holds, _told(check.method, check.against, found)


def _told(a: str, b: str, found: Difference) -> str:
    interval = f"{found.value:+.3g} [{found.lo:+.3g}, {found.hi:+.3g}]"
    return f"{a} {found.a:.4g}, {b} {found.b:.4g}: {interval}, p = {found.p:.2g}".replace("-", "\N{MINUS SIGN}")


def check_numbers(check: Check, numbers: Numbers) -> Finding | None:
    """The finding of a check on comparable rows; None where a row or the measure is missing."""
    if isinstance(check, Best) and numbers.has(check.method, *check.against) and numbers.measures(check.measure):
        return check_best(check, numbers)
    if isinstance(check, Change) and numbers.has(check.method, *check.against) and numbers.measures(check.measure):
        return check_change(check, numbers)
    if isinstance(check, NoLoss) and numbers.has(check.method, check.against) and numbers.measures(check.measure):
        return check_no_loss(check, numbers)
    return None


def check_anchor(check: Anchor, numbers: Published, anchors: pd.DataFrame) -> Finding | None:
    """Whether the published cell reaches a second-hand number for the same row; None without such a number."""
    row = anchors[(anchors["method"] == check.method) & (anchors["measure"] == check.anchor)]
    if row.empty:
        return None
    elsewhere, value = row.iloc[0], numbers.value(check.method, check.measure)
    text = f"{check.method}'s {check.measure} is {value:.4g}, its {check.anchor} elsewhere {elsewhere['value']:.4g} "
    return bool(value >= elsewhere["value"]), f"{text}({elsewhere['protocol']}; {elsewhere['source']})"


def check_units(check: Units) -> Finding:
    """Whether all numbers have the same unit."""
    text = " against ".join(f"{quantity.value:g} {quantity.unit}" for quantity in check.values)
    return len({quantity.unit for quantity in check.values}) == 1, text


def check_growth(check: Growth, bench: pd.DataFrame) -> Finding:
    """Whether time grows with length no faster than the claimed power (+0.2), between the two longest lengths of the
    largest batch: fixed costs flatten the growth at shorter ones."""
    alone = bench[bench["batch"] == bench["batch"].max()].sort_values("T").tail(2)
    powers = np.diff(np.log(alone[check.column])) / np.diff(np.log(alone["T"]))
    text = f"{check.column} grows with length to the power {powers[0]:.2f} from {alone['T'].iloc[0]} tokens to "
    return bool(powers[0] <= check.power + 0.2), f"{text}{alone['T'].iloc[1]}"


def check_time(check: Time, wallclock: pd.DataFrame) -> Finding | None:
    """Whether the relative change in sampling seconds per completion, means over runs, is at most the claimed one; None
    where a row is missing."""
    seconds = wallclock.assign(per=wallclock["inference_seconds"] / wallclock["inference_completions"])
    means = seconds.groupby("method")["per"].mean()
    if not {check.method, check.against} <= set(means.index):
        return None
    change = float(means[check.method] / means[check.against] - 1)
    holds = change <= check.by + check.tolerance
    text = f"{check.method} {1000 * means[check.method]:.3g} ms a completion, {check.against} "
    return holds, f"{text}{1000 * means[check.against]:.3g} ms: {change:+.1%}".replace("-", "\N{MINUS SIGN}")


def read_claims(path: Path) -> list[Claim]:
    """The claims of a ledger file. Raises UserError for a malformed file and for an id that occurs twice."""
    try:
        ledger = Ledger(**read_yaml(path)[0])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}") from None
    ids = [claim.id for claim in ledger.claims]
    if twice := {i for i in ids if ids.count(i) > 1}:
        raise UserError(f"{path}: duplicate claim '{min(twice)}': keep one")
    return ledger.claims


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
        own = evidence.published[evidence.published["model"] == model]
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
    evidence = Evidence(
        _read_published(published),
        read_csv(second_hand, ("model",)),
        read_rows(summaries),
        [read_csv(path, ("model", "dataset", "inference_seconds", "inference_completions")) for path in wallclocks],
        read_csv(bench) if bench else None,
    )
    table = judge(claims, evidence)
    write_document(out, table, claim_blocks(claims, table))


def _read_published(path: Path) -> pd.DataFrame:
    """Published cells, one row per model and method. Raises UserError for a duplicate row and a non-numeric cell."""
    frame = read_csv(path, ("model", "method"))
    with damaged(path, "a row for each model and method, with numbers"):
        if frame.duplicated(["model", "method"]).any():
            raise ValueError("a method is repeated for the same model")
        return frame.astype({column: float for column in frame if "@" in str(column)})


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
