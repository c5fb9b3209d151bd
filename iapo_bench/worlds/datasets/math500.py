"""MATH-500 (Lightman et al. 2023, arXiv 2305.20050): 255 problems to train on, 49 to validate, 196 to test, by hash.

Published: 80 : 20.
"""

from typing import ClassVar

from iapo_bench.worlds import Problem
from iapo_bench.worlds.text import Row, Table, TextWorld


def _read(row: dict) -> Row:
    return row["problem"], row["answer"], row.get("solution", "").strip()


class Math500(TextWorld):
    """Competition mathematics; the gold is LaTeX."""

    name = "math500"
    tables: ClassVar[dict[str, Table]] = {
        "all": Table(
            file="math500.jsonl",
            hub=("HuggingFaceH4/MATH-500",),
            revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            hub_split="test",
            fields=("problem", "answer"),
            read=_read,
            known=(500, "9f6a00aa5ae0b7a0c4f91d706d6fb106"),
        )
    }
    shares = (0.4, 0.1)
    published = (None, 0.8, None)

    def benchmark(self) -> list[Problem]:
        """All 500: others evaluate on them all."""
        return self._read_table("all")
