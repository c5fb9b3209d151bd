"""User-defined rewards: each is a function in a file of `rewards/`; training uses their weighted sum."""

from collections.abc import Callable, Mapping, Sequence

import torch

from iapo_bench.errors import blamed, unknown
from iapo_bench.plugins import list_rewards, load_function
from iapo_bench.worlds import Problem
from iapo_bench.worlds.grading import Outcome

# Arguments: the problem, the completion's text (as the grader reads it), its token ids (end of sequence included) and
# the grader's outcome. Returns a finite number.
Reward = Callable[[Problem, str, Sequence[int], Outcome], float]

CORRECT = {"correct": 1.0}
LARGEST = torch.finfo(torch.float32).max


def load_reward(name: str) -> Reward:
    """The function `reward` of `rewards/<name>.py`. Raises UserError, listing the known ones, for an unknown name."""
    paths = list_rewards()
    if name not in paths:
        raise unknown("reward", name, paths)
    return load_function(paths[name], "reward")


class Rewards:
    """The rewards of a run. `problems`: the training problems in order. `weights`: by reward name; an unknown name
    raises UserError."""

    def __init__(self, problems: Sequence[Problem], weights: Mapping[str, float] = CORRECT) -> None:
        self.problems = problems
        self.weights = weights
        self._functions = {name: load_reward(name) for name in weights}
        self._paths = list_rewards()

    def pay(
        self,
        problems: Sequence[int],
        texts: Sequence[str],
        token_ids: Sequence[Sequence[int]],
        outcomes: Sequence[Outcome],
    ) -> list[dict[str, float]]:
        """Each completion's rewards by name, before weights. `problems`: indices into the training problems.

        Raises UserError, naming file and line, for a reward that fails or is not finite.
        """
        rows = list(zip(problems, texts, token_ids, outcomes, strict=True))
        return [{name: self._pay(name, *row) for name in self._functions} for row in rows]

    def _pay(self, name: str, problem: int, text: str, token_ids: Sequence[int], outcome: Outcome) -> float:
        function = self._functions[name]
        with blamed(self._paths[name], f"reward {name}", "reward", function):
            value = float(function(self.problems[problem], text, token_ids, outcome))
            if not abs(value) <= LARGEST:
                raise ValueError(f"{value} for {text[:80]!r}, must be finite in float32")
        return value

    def total(self, paid: dict[str, float]) -> float:
        """The weighted sum that a completion is trained on."""
        return sum(weight * paid[name] for name, weight in self.weights.items())
