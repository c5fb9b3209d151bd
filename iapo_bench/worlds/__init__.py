"""Worlds: where problems come from, how they are put to a model, and how an answer is judged."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from iapo_bench.errors import UserError, unknown
from iapo_bench.files import to_json, whole_file

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
    """A source of problems and the way to put them to a model."""

    @property
    def name(self) -> str: ...

    @property
    def grader(self) -> GraderKind:
        """Which grader judges its answers."""
        ...

    def load(self, split: str) -> list[Problem]:
        """The problems of `train`, `validation` or `test`; no problem is in two. Raises UserError for bad data."""
        ...

    def encode_prompt(self, problem: Problem, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Token ids of the world's own prompt: those of `dialogue` without settings."""
        ...

    def dialogue(self, tokenizer: "PreTrainedTokenizerBase", prompt: "PromptConfig | None" = None) -> "Dialogue":
        """How its questions are put to a model and completions are read; `prompt` changes parts of the world's own."""
        ...

    def perfect_reply(self, problem: Problem) -> str:
        """A completion that is right and well formed."""
        ...


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write problems as JSON lines, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text("".join(to_json(asdict(problem)) + "\n" for problem in problems))


def read_problems(path: Path) -> list[Problem]:
    """Read what `write_problems` wrote. Raises UserError for a missing, empty or damaged file."""
    return [Problem(**row) for row in read_jsonl(path, ("id", "question", "answer"))]


def read_jsonl(path: Path, required: tuple[str, ...]) -> list[dict]:
    """Rows of a JSON-lines file, each with the `required` fields. Raises UserError naming file and line."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    rows = []
    with path.open(encoding="utf-8") as file:
        lines = file.readlines()  # splitlines would also break at separators that JSON allows within a string
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise UserError(f"{path}:{number} is not JSON (a truncated download?): fetch the file again") from None
        missing = [name for name in required if not isinstance(row, dict) or name not in row]
        if missing:
            raise UserError(f"{path}:{number} lacks the field '{missing[0]}'")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty")
    return rows


def split_file(data: Path, split: str) -> Path:
    """The file of a split below `data`. Raises UserError for an unknown one."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return data / f"{split}.jsonl"
