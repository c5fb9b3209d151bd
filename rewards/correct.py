"""The task's own reward: +1 for a correct completion, -1 for any other."""

from collections.abc import Sequence

from iapo_bench.worlds import Problem
from iapo_bench.worlds.grading import Outcome


def reward(problem: Problem, text: str, token_ids: Sequence[int], outcome: Outcome) -> float:
    return 1.0 if outcome is Outcome.CORRECT else -1.0
