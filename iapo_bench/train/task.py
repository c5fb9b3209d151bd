"""What a method is trained on: encoded problems, and how their completions are judged."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from iapo_bench.rollout import Completion
from iapo_bench.signals.informativeness import EVERY_PREFIX, AnswerReading
from iapo_bench.train.rewards import Rewards
from iapo_bench.worlds.dialogue import completion_texts
from iapo_bench.worlds.grading import Outcome, is_formatted


@dataclass(frozen=True)
class Validation:
    """Encoded validation problems, measured during training with the world's own grader; never trained on."""

    prompts: list[list[int]]
    golds: list[str]
    grade: Callable[[list[str], list[str]], list[Outcome]]


@dataclass(frozen=True)
class Task:
    """Encoded training problems and how to judge their completions.

    `prefill`: the start of the completion that the prompts already contain, such as `<think>`.
    """

    prompts: list[list[int]]
    golds: list[str]
    grade: Callable[[list[str], list[str]], list[Outcome]]
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    postfix_ids: list[int]
    formatted: Callable[[str], bool] = is_formatted
    reading: AnswerReading = EVERY_PREFIX
    prefill: str = ""
    rewards: Rewards | None = None  # by default +1 for a correct completion, -1 for any other
    validation: Validation | None = None

    def texts(self, completions: list[Completion]) -> list[str]:
        """The text of each completion, as it is graded."""
        token_ids = [completion.token_ids for completion in completions]
        return completion_texts(token_ids, self.tokenizer, stop_ids=self.eos_ids, prefill=self.prefill)
