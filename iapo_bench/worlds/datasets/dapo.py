"""DAPO-Math-17k (Yu et al. 2025, arXiv 2503.14476): 16,169 problems to train on, 496 to validate, 518 to test, by hash.

Published: 80 : 20 of the first 7,000 rows, with at most 50 test problems. About a fifth is in Chinese.
Five more are left out: their golds went through float64.
"""

from typing import ClassVar

from iapo_bench.worlds.text import Row, Table, TextWorld


def _read(row: dict) -> Row:
    if "prompt" not in row:
        gold = row["answer"]
        return row["problem"], str(gold) if type(gold) is int else gold, ""
    # On the hub the problem is enclosed in two paragraphs of instruction.
    content = row["prompt"][0]["content"]
    return content.partition("\n\n")[2].rpartition("\n\n")[0], row["reward_model"]["ground_truth"], ""


class DAPO17k(TextWorld):
    """Competition mathematics rewritten so that the gold is an integer."""

    name = "dapo"
    integer_golds = True
    tables: ClassVar[dict[str, Table]] = {
        # The hub repeats the same 17,917 rows a hundred times.
        "all": Table(
            file="dapo_math_17k.jsonl",
            hub=("BytedTsinghua-SIA/DAPO-Math-17k",),
            revision="65877096c24ffa7abc4e4fa5edb95cf3413a5674",
            hub_split="train[:17917]",
            fields=("problem", "answer"),
            read=_read,
            known=(17188, "7e3fde85ba9fcd1fbdbcfb4b62022ed2"),
        )
    }
    shares = (0.03, 0.03)
    published = (7000, 0.8, 50)
