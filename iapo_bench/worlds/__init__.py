"""Worlds: the problems, their prompts, and the grading of answers."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from iapo_bench.errors import UserError, unknown
from iapo_bench.files import read_jsonl, to_json, whole_file

if TYPE_CHECKING:  # grading workers import this package and must start fast
    from transformers import PreTrainedTokenizerBase

    from iapo_bench.config.prompt import PromptConfig
    from iapo_bench.worlds.dialogue import Dialogue

THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE = "<think>", "</think>", "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
POSTFIX = THINK_CLOSE + ANSWER_OPEN
SPLITS = ("train", "validation", "test")
GraderKind = Literal["digits", "integer", "math"]


@dataclass(frozen=True)
class Problem:
    """A problem and its gold answer, both as text; `id` is unique within a dataset."""

    id: str
    question: str
    answer: str


class World(Protocol):
    """A source of problems, with their prompts and the grading of answers."""

    @property
    def name(self) -> str: ...

    @property
    def grader(self) -> GraderKind:
        """The grader of its answers."""
        ...

    def load(self, split: str) -> list[Problem]:
        """The problems of `train`, `validation` or `test`; no problem is in two splits. Raises UserError for bad
        data."""
        ...

    def encode_prompt(self, problem: Problem, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Token ids of the world's default prompt, that of `dialogue` without settings."""
        ...

    def dialogue(self, tokenizer: "PreTrainedTokenizerBase", prompt: "PromptConfig | None" = None) -> "Dialogue":
        """The prompt format and how completions are read; `prompt` overrides parts of the world's defaults."""
        ...

    def perfect_reply(self, problem: Problem) -> str:
        """A correct, well-formed completion."""
        ...


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write problems as JSON lines, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text("".join(to_json(asdict(problem)) + "\n" for problem in problems))


def read_problems(path: Path) -> list[Problem]:
    """Read what `write_problems` wrote. Raises UserError, with the line, for a damaged row or a repeated id."""
    lines: dict[str, int] = {}
    problems = []
    fields = ("id", "question", "answer")
    for number, row in enumerate(read_jsonl(path, fields, hint="prepare the data again"), start=1):
        if odd := [name for name in fields if not isinstance(row[name], str)]:
            raise UserError(f"{path}:{number}: the field '{odd[0]}' is not text: prepare the data again")
        problem = Problem(*(row[name] for name in fields))
        if (first := lines.setdefault(problem.id, number)) != number:
            raise UserError(f"{path}:{number}: duplicate id '{problem.id}', also at line {first}: make ids unique")
        problems.append(problem)
    return problems


def split_file(data: Path, split: str) -> Path:
    """The file of a split in the directory `data`. Raises UserError for an unknown split."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return data / f"{split}.jsonl"
