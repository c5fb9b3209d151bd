"""What the text datasets, from a local directory or from the Hugging Face hub, have in common.

The `honest` splits are fixed: they depend on the problems' text alone, not on a seed or the order of rows. Problems
that differ only in whitespace count once, with the first gold. Problems whose integer golds float64 has rounded are
left out. Near duplicates may still fall into two splits: `prepare` removes them from training.

The `published` splits, for comparison only, are those of the IAPO authors' code (`get_dataset`): the official ones, or
a shuffle with seed 42. Settings there were chosen on the test problems, so the validation split is the test split.
"""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from iapo_bench.config.prompt import ExampleConfig, PromptConfig
from iapo_bench.config.world import WorldConfig
from iapo_bench.errors import UserError, first_line, unknown
from iapo_bench.files import read_jsonl
from iapo_bench.worlds import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    SPLITS,
    THINK_CLOSE,
    THINK_OPEN,
    GraderKind,
    Problem,
)
from iapo_bench.worlds.dialogue import Dialogue, chat_dialogue
from iapo_bench.worlds.grading import check_gold, is_rounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INSTRUCTION = """\
Solve the problem that the user gives you. Reason first, then answer, in exactly this form:
<think> your reasoning </think> <answer> the final answer </answer>
Write nothing before, between or after the two parts."""
_INTEGER = " The answer must be a single integer."
_EXAMPLE = ExampleConfig(
    question="What is 2+2?",
    reply="<think> Two and two more make four: 2 + 2 = 4. </think> <answer> 4 </answer>",
)


# A question, its gold answer, and a worked solution, empty if there is none.
Row = tuple[str, str, str]


class ChatWorld:
    """Text problems for a chat model: the prompt, the grader and the worked solutions."""

    name: str
    # Whether every gold is an integer; otherwise golds are mathematics.
    integer_golds: bool = False

    @property
    def grader(self) -> GraderKind:
        """`integer` if every gold is an integer, else `math`."""
        return "integer" if self.integer_golds else "math"

    def load(self, split: str) -> list[Problem]:
        """The problems of a split, golds checked. Raises UserError for data that are missing, damaged or too few."""
        raise NotImplementedError

    def solutions(self) -> dict[str, str]:
        """The worked solutions of training problems by problem id, empty text for none."""
        raise NotImplementedError

    def left_out(self) -> list[str]:
        """Id and gold of each problem in the data that no split holds."""
        return []

    def recognise(self) -> None:
        """Raise UserError if the problems differ from the published dataset of this name."""

    def encode_prompt(self, problem: Problem, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Token ids of the chat prompt. Raises UserError for a template that cannot render it."""
        return self.dialogue(tokenizer).encode(problem.question)

    def dialogue(self, tokenizer: "PreTrainedTokenizerBase", prompt: PromptConfig | None = None) -> Dialogue:
        """The chat that asks for a solution: instructions, a worked example as an earlier turn, the problem; `prompt`
        overrides parts of it. Raises UserError for a template that cannot render it."""
        prompt = prompt or PromptConfig()
        own = {"system": _INSTRUCTION + _INTEGER if self.grader == "integer" else _INSTRUCTION, "example": _EXAMPLE}
        return chat_dialogue(
            prompt.model_copy(update={key: text for key, text in own.items() if getattr(prompt, key) is None}),
            tokenizer,
        )

    def perfect_reply(self, problem: Problem) -> str:
        """A correct, well-formed completion."""
        return f"{THINK_OPEN} Let us see. {THINK_CLOSE} {ANSWER_OPEN} {problem.answer} {ANSWER_CLOSE}"

    def write_traces(self, problems: list[Problem]) -> list[str]:
        """One completion per problem: the dataset's own worked solution in the prompt's format.

        Raises UserError for a problem without a solution.
        """
        solutions = self.solutions()
        traces = []
        for problem in problems:
            if not (solution := solutions.get(problem.id)):
                raise UserError(f"{self.name} has no worked solution of problem '{problem.id}': set model.sft to null")
            traces.append(f"{THINK_OPEN} {solution} {THINK_CLOSE} {ANSWER_OPEN} {problem.answer} {ANSWER_CLOSE}")
        return traces


@dataclass(frozen=True)
class Table:
    """One table of a dataset: its local file, its place and revision on the hub, and how to read a row.

    `known`: number and `digest_problems` of the published problems, if no others may pass under the dataset's name.
    """

    file: str
    hub: tuple[str, ...]
    revision: str
    hub_split: str
    fields: tuple[str, ...]
    read: Callable[[dict], Row]
    known: tuple[int, str] | None = None


PUBLISHED_SEED = 42


@dataclass(frozen=True)
class TextWorld(ChatWorld):
    """A published dataset. A subclass defines its tables and, without an official test set, its shares.

    `data_dir` holds the tables as JSON lines; without it they come from the hub.
    """

    data_dir: Path | None = None
    splits: Literal["honest", "published"] = "honest"

    tables: ClassVar[dict[str, Table]]
    # Shares of test and validation; the rest is for training.
    shares: ClassVar[tuple[float, float]] = (0.0, 0.0)
    # The published splits: number of rows used, share for training, most test problems.
    published: ClassVar[tuple[int | None, float, int | None]] = (None, 1.0, None)

    @classmethod
    def open(cls, config: WorldConfig, seed: int) -> "TextWorld":
        """The dataset that a configuration names; `seed` is not used. Raises UserError for any option."""
        for option in config.options:
            raise unknown(f"option of {cls.name}", option, ())
        return cls(Path(config.data_dir) if config.data_dir else None, config.splits)

    def load(self, split: str) -> list[Problem]:
        """The problems of a split, golds checked. Raises UserError for data that are missing, damaged or too few."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        problems = self._published(split) if self.splits == "published" else self._honest(split)
        problems = [problem for problem in problems if not self._is_spoiled(problem)]
        if not problems:
            raise UserError(f"{self.name}: too few rows, the {split} split is empty: fetch the whole dataset")
        return problems

    def solutions(self) -> dict[str, str]:
        """The worked solutions of the training table, or of the only table; a test table is not read."""
        solved = self._read_solved("train" if "train" in self.tables else "all")
        return {problem.id: solution for problem, solution in solved}

    def benchmark(self) -> list[Problem]:
        """The problems that others evaluate on, which no training may see."""
        return self.load("test")

    def left_out(self) -> list[str]:
        """Id and gold of each problem left out because float64 has rounded its gold."""
        problems = [problem for name in self.tables for problem in self._read_table(name)]
        return [f"{problem.id}: {problem.answer}" for problem in problems if self._is_spoiled(problem)]

    def recognise(self) -> None:
        """Raise UserError unless the tables hold the published problems and golds."""
        for name, table in self.tables.items():
            if table.known is None:
                continue
            problems = self._read_table(name)
            count, digest = table.known
            if len(problems) != count:
                held = f"{len(problems)} problems where it has {count}"
            elif digest_problems(problems) != digest:
                held = "some problems or answers are others"
            else:
                continue
            place = self.data_dir / table.file if self.data_dir else table.hub[0]
            raise UserError(
                f"{place} does not hold the published {self.name} ({held}): fetch it again, or take problems of your "
                "own with world: {file: FILE}, see docs/your-dataset.md"
            )

    def _is_spoiled(self, problem: Problem) -> bool:
        return self.integer_golds and is_rounded(problem.answer)

    def _honest(self, split: str) -> list[Problem]:
        test, validation = self.shares
        problems = []
        for problem in self._read_table("all"):
            place = int(digest_question(problem.question), 16) / 16**64
            carved = "test" if place < test else "validation" if place < test + validation else "train"
            if carved == split:
                problems.append(problem)
        return problems

    def _published(self, split: str) -> list[Problem]:
        rows, share, most = self.published
        problems = self._read_table("all")[:rows]
        random.Random(PUBLISHED_SEED).shuffle(problems)
        cut = int(share * len(problems))
        return problems[:cut] if split == "train" else problems[cut:][:most]

    def _read_table(self, name: str) -> list[Problem]:
        """The problems of a table in the order of its rows, without repeats."""
        return [problem for problem, _ in self._read_solved(name)]

    def _read_solved(self, name: str) -> list[tuple[Problem, str]]:
        """As `_read_table`, each problem with its worked solution, empty if there is none."""
        solved: dict[str, tuple[Problem, str]] = {}
        table = self.tables[name]
        place, rows = self._fetch_rows(table)
        for number, row in enumerate(rows, start=1):
            try:
                question, gold, solution = table.read(row)
                if not question.strip():
                    raise UserError("the problem is empty")
                problem = Problem(f"{self.name}-{digest_question(question)[:12]}", question, gold)
                if problem.id not in solved:
                    check_gold(gold, self.grader)
                    solved[problem.id] = problem, solution
            except UserError as error:
                raise UserError(f"{place}:{number}: {error}") from None
            except (AttributeError, LookupError, TypeError, ValueError):
                raise UserError(f"{place}:{number} is not a row of {self.name}: fetch the data again") from None
        return list(solved.values())

    def _fetch_rows(self, table: Table) -> tuple[str, Iterable[Any]]:
        """The source of the rows, for messages, and the rows."""
        files = " and ".join(table.file for table in self.tables.values())
        if self.data_dir is not None:
            path = self.data_dir / table.file
            if not path.is_file():
                raise UserError(f"{path} does not exist: put {files} there, or leave data_dir out to use the hub")
            return str(path), read_jsonl(path, table.fields)

        from datasets import load_dataset

        try:
            return table.hub[0], load_dataset(*table.hub, split=table.hub_split, revision=table.revision)
        except Exception as error:  # from any of half a dozen libraries
            reason = first_line(error)
            raise UserError(
                f"cannot get {table.hub[0]} from the hub ({reason}): set data_dir to a directory with {files}"
            ) from error


def digest_question(question: str) -> str:
    """SHA-256 of a problem, in hex; whitespace does not count."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()


def digest_problems(problems: Iterable[Problem]) -> str:
    """A digest of questions and golds, independent of file format, order and whitespace."""
    lines = sorted(f"{digest_question(problem.question)} {problem.answer.strip()}" for problem in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
