"""Worlds of real text: GSM8K, MATH-500 and DAPO-Math-17k, from a local directory or from the Hugging Face hub.

Every split is fixed: it depends on the problems' text alone, neither on a seed nor on the order of rows. Problems that
differ only in whitespace count once, with the first gold. Near repeats may still fall on both sides: `prepare` takes
them out of training. Sizes before that:

| name    | train | validation | test | how                                                                           |
|---------|-------|------------|------|-------------------------------------------------------------------------------|
| gsm8k   |  6973 |        500 | 1319 | the official test set; validation: the official training rows of lowest hash  |
| math500 |   255 |         49 |  196 | by hash, about 50 : 10 : 40                                                   |
| dapo    | 16173 |        496 |  519 | by hash, about 94 : 3 : 3; integers, about a fifth in Chinese                 |

Those are the `honest` splits. The `published` ones, for comparison only, are those of the IAPO authors' code
(`get_dataset`): GSM8K's own; 80 : 20 by a shuffle with seed 42 of MATH-500 and of the first 7,000 rows of
DAPO-Math-17k, of whose test part 50 are used. Their choices were made on the test problems, so there validation is the
test split.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import PreTrainedTokenizerBase

from iapo_bench.config import ExampleConfig, PromptConfig
from iapo_bench.errors import UserError, unknown
from iapo_bench.worlds import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    SPLITS,
    THINK_CLOSE,
    THINK_OPEN,
    GraderKind,
    Problem,
    read_jsonl,
)
from iapo_bench.worlds.dialogue import Dialogue, chat_dialogue
from iapo_bench.worlds.grading import check_gold

GSM8K_VALIDATION = 500

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
_Row = tuple[str, str, str]

# `48/2 = <<48/2=24>>24`: what GSM8K's authors let a calculator read.
_ANNOTATION = re.compile("<<[^<>]*>>")


def _read_gsm8k(row: dict) -> _Row:
    solution, marker, gold = row["answer"].rpartition("####")
    if not marker:
        raise UserError("no '####' before the gold answer")
    gold = gold.strip().replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?", gold):
        raise UserError(f"the gold answer '{gold}' is not a number")
    return row["question"], gold, _ANNOTATION.sub("", solution).strip()


def _read_math500(row: dict) -> _Row:
    return row["problem"], row["answer"], row.get("solution", "").strip()


def _read_dapo(row: dict) -> _Row:
    if "prompt" not in row:
        return row["problem"], str(row["answer"]), ""
    # On the hub the problem stands between two paragraphs of instruction.
    content = row["prompt"][0]["content"]
    return content.partition("\n\n")[2].rpartition("\n\n")[0], row["reward_model"]["ground_truth"], ""


@dataclass(frozen=True)
class _Table:
    """One table of a dataset: the file it is in, its place and revision on the hub, and how to read a row."""

    file: str
    hub: tuple[str, ...]
    revision: str
    hub_split: str
    fields: tuple[str, ...]
    read: Callable[[dict], _Row]


_TABLES = {
    "gsm8k": {
        split: _Table(
            f"gsm8k_{split}.jsonl",
            ("openai/gsm8k", "main"),
            "740312add88f781978c0658806c59bc2815b9866",
            split,
            ("question", "answer"),
            _read_gsm8k,
        )
        for split in ("train", "test")
    },
    "math500": {
        "all": _Table(
            "math500.jsonl",
            ("HuggingFaceH4/MATH-500",),
            "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            "test",
            ("problem", "answer"),
            _read_math500,
        )
    },
    "dapo": {
        # The hub repeats the same 17,917 rows a hundred times.
        "all": _Table(
            "dapo_math_17k.jsonl",
            ("BytedTsinghua-SIA/DAPO-Math-17k",),
            "65877096c24ffa7abc4e4fa5edb95cf3413a5674",
            "train[:17917]",
            ("problem", "answer"),
            _read_dapo,
        )
    },
}

# Shares of test and validation where the dataset has no official split; the rest is for training.
_SHARES = {"math500": (0.4, 0.1), "dapo": (0.03, 0.03)}

# What the published splits take of those: rows in all, share for training, most test problems.
_PUBLISHED = {"math500": (None, 0.8, None), "dapo": (7000, 0.8, 50)}
_PUBLISHED_SEED = 42


@dataclass(frozen=True)
class TextWorld:
    """A real dataset: `gsm8k`, `math500` or `dapo`.

    `data_dir` holds its JSON lines (gsm8k_train.jsonl and gsm8k_test.jsonl, math500.jsonl, dapo_math_17k.jsonl);
    without it they come from the hub. Raises UserError for an unknown dataset.
    """

    name: str
    data_dir: Path | None = None
    splits: Literal["honest", "published"] = "honest"

    grader: ClassVar[GraderKind] = "math"

    def __post_init__(self) -> None:
        if self.name not in _TABLES:
            raise unknown("dataset", self.name, _TABLES)

    def load(self, split: str) -> list[Problem]:
        """The problems of a split, golds checked. Raises UserError for data that are missing, damaged or too few."""
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        if self.splits == "published":
            problems = self._load_published(split)
        elif self.name == "gsm8k":
            problems = self._load_gsm8k(split)
        else:
            test, validation = _SHARES[self.name]
            problems = []
            for problem in self._read_table("all"):
                place = int(_digest(problem.question), 16) / 16**64
                carved = "test" if place < test else "validation" if place < test + validation else "train"
                if carved == split:
                    problems.append(problem)
        if not problems:
            raise UserError(f"{self.name}: too few rows, the {split} split is empty: fetch the whole dataset")
        return problems

    def encode_prompt(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the chat prompt. Raises UserError for a template that cannot carry it."""
        return self.dialogue(tokenizer).encode(problem.question)

    def dialogue(self, tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig | None = None) -> Dialogue:
        """The chat that asks for a solution: instructions, a worked example as an earlier turn, the problem; `prompt`
        changes parts of it. Raises UserError for a template that cannot carry it."""
        prompt = prompt or PromptConfig()
        system = _INSTRUCTION if self.name == "math500" else _INSTRUCTION + _INTEGER
        own = {"system": system, "example": _EXAMPLE}
        return chat_dialogue(
            prompt.model_copy(update={key: text for key, text in own.items() if getattr(prompt, key) is None}),
            tokenizer,
        )

    def perfect_reply(self, problem: Problem) -> str:
        """A completion that is right and well formed."""
        return f"{THINK_OPEN} Let us see. {THINK_CLOSE} {ANSWER_OPEN} {problem.answer} {ANSWER_CLOSE}"

    def write_traces(self, problems: list[Problem]) -> list[str]:
        """A completion for each of the problems: the dataset's own worked solution in the prompt's format.

        The test problems of GSM8K have none: their table is not read. Raises UserError where there is no solution.
        """
        solved = self._read_solved("train" if self.name == "gsm8k" else "all")
        solutions = {problem.id: solution for problem, solution in solved}
        traces = []
        for problem in problems:
            if not (solution := solutions.get(problem.id)):
                raise UserError(
                    f"{self.name} has no worked solution of problem '{problem.id}': set model.warm_start to null"
                )
            traces.append(f"{THINK_OPEN} {solution} {THINK_CLOSE} {ANSWER_OPEN} {problem.answer} {ANSWER_CLOSE}")
        return traces

    def benchmark(self) -> list[Problem]:
        """The problems that others evaluate on and no training may see: all of MATH-500, else the test split."""
        return self._read_table("all") if self.name == "math500" else self.load("test")

    def _load_published(self, split: str) -> list[Problem]:
        if self.name == "gsm8k":
            return self._read_table("train" if split == "train" else "test")
        rows, share, most = _PUBLISHED[self.name]
        problems = self._read_table("all")[:rows]
        random.Random(_PUBLISHED_SEED).shuffle(problems)
        cut = int(share * len(problems))
        return problems[:cut] if split == "train" else problems[cut:][:most]

    def _load_gsm8k(self, split: str) -> list[Problem]:
        if split == "test":
            return self._read_table("test")
        problems = self._read_table("train")
        held_out = {problem.id for problem in sorted(problems, key=lambda problem: problem.id)[:GSM8K_VALIDATION]}
        return [problem for problem in problems if (problem.id in held_out) == (split == "validation")]

    def _read_table(self, name: str) -> list[Problem]:
        """The problems of a table in the order of its rows, without repeats."""
        return [problem for problem, _ in self._read_solved(name)]

    def _read_solved(self, name: str) -> list[tuple[Problem, str]]:
        """The same, each with its worked solution, empty if there is none."""
        solved: dict[str, tuple[Problem, str]] = {}
        table = _TABLES[self.name][name]
        place, rows = self._fetch_rows(table)
        for number, row in enumerate(rows, start=1):
            try:
                question, gold, solution = table.read(row)
                if not question.strip():
                    raise UserError("the problem is empty")
                problem = Problem(f"{self.name}-{_digest(question)[:12]}", question, gold)
                if problem.id not in solved:
                    check_gold(gold)
                    solved[problem.id] = problem, solution
            except UserError as error:
                raise UserError(f"{place}:{number}: {error}") from None
            except (AttributeError, LookupError, TypeError):
                raise UserError(f"{place}:{number} is not a row of {self.name}: fetch the data again") from None
        return list(solved.values())

    def _fetch_rows(self, table: _Table) -> tuple[str, Iterable[Any]]:
        """Where the rows come from, for messages, and the rows."""
        files = " and ".join(table.file for table in _TABLES[self.name].values())
        if self.data_dir is not None:
            path = self.data_dir / table.file
            if not path.is_file():
                raise UserError(f"{path} does not exist: put {files} there, or leave data_dir out to use the hub")
            return str(path), read_jsonl(path, table.fields)

        from datasets import load_dataset

        try:
            return table.hub[0], load_dataset(*table.hub, split=table.hub_split, revision=table.revision)
        except Exception as error:  # of half a dozen libraries
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"cannot get {table.hub[0]} from the hub ({reason}): set data_dir to a directory with {files}"
            ) from error


def _digest(question: str) -> str:
    """SHA-256 of a problem, in hex; whitespace does not count."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()
