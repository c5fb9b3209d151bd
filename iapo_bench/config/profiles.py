"""Training settings of a profile. The method's own options under a profile are in the method's class, as
`released`; `iapo_bench.report.departures` lists both parts, switch by switch.
"""

from typing import Any, Literal

Profile = Literal["paper", "released"]

_RELEASED = {
    "updates_per_rollout": 1,
    "lr_schedule": "linear",
    "grader": "exact",
    "format_rule": "one_line",
}
# By profile; None leaves a setting to the tier.
TRAIN_OF_PROFILE: dict[str, dict[str, Any]] = {"paper": dict.fromkeys(_RELEASED), "released": _RELEASED}
