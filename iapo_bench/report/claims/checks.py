"""One check for each kind of claim: whether it holds, and the evidence in words."""

import numpy as np
import pandas as pd

from iapo_bench.report.claims.ledger import Anchor, Best, Change, Check, Growth, NoLoss, Time, Units
from iapo_bench.report.claims.numbers import ALPHA, Difference, Numbers, Published

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


def check_growth(check: Growth, bench: pd.DataFrame) -> Finding | None:
    """Whether time grows with length no faster than the claimed power (+0.2), between the two longest lengths of the
    largest batch: fixed costs flatten the growth at shorter ones. None for a single length."""
    alone = bench[bench["batch"] == bench["batch"].max()].sort_values("T").tail(2)
    if len(alone) < 2:
        return None
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
