"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): 6,973 problems to train on, 500 to validate, the official 1,319 to test.

Validation: the official training rows of lowest hash. The published splits are the official ones.
"""

import re
from typing import ClassVar

from iapo_bench.errors import UserError
from iapo_bench.worlds import Problem
from iapo_bench.worlds.text import Row, Table, TextWorld

VALIDATION = 500

# Calculator annotations of GSM8K's authors: `48/2 = <<48/2=24>>24`.
_ANNOTATION = re.compile("<<[^<>]*>>")


def _read(row: dict) -> Row:
    solution, marker, gold = row["answer"].rpartition("####")
    if not marker:
        raise UserError("no '####' before the gold answer")
    return row["question"], gold.strip().replace(",", ""), _ANNOTATION.sub("", solution).strip()


class GSM8K(TextWorld):
    """Word problems of grade-school arithmetic; the gold is an integer."""

    name = "gsm8k"
    integer_golds = True
    tables: ClassVar[dict[str, Table]] = {
        split: Table(
            file=f"gsm8k_{split}.jsonl",
            hub=("openai/gsm8k", "main"),
            revision="740312add88f781978c0658806c59bc2815b9866",
            hub_split=split,
            fields=("question", "answer"),
            read=_read,
            known=known,
        )
        for split, known in (
            ("train", (7473, "a6ece01eff0a74e671b35a2060d5e9c9")),
            ("test", (1319, "a97ef380ba9caddbfb81335e1a4f724b")),
        )
    }

    def _honest(self, split: str) -> list[Problem]:
        if split == "test":
            return self._read_table("test")
        problems = self._read_table("train")
        held_out = {problem.id for problem in sorted(problems, key=lambda problem: problem.id)[:VALIDATION]}
        return [problem for problem in problems if (problem.id in held_out) == (split == "validation")]

    def _published(self, split: str) -> list[Problem]:
        return self._read_table("train" if split == "train" else "test")
