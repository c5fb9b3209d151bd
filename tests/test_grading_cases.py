"""What people and models write for an answer, by the thousand: a line is a gold, right answers and wrong ones."""

import json
from pathlib import Path

import pytest

from iapo_bench.worlds.grading import Outcome, grade_digits, grade_integer, grade_math

GRADE = {"digits": grade_digits, "integer": grade_integer, "math": grade_math}
CASES = list(map(json.loads, Path(__file__).with_name("grading_cases.jsonl").read_text().splitlines()))


@pytest.mark.parametrize("case", CASES, ids=[f"{case['kind']} {case['gold']}" for case in CASES])
def test_right_answers_pass_and_wrong_ones_do_not(case):
    def passes(answer: str) -> bool:
        text = f"<think> so </think> <answer> {answer} </answer>"
        return GRADE[case["kind"]](text, case["gold"]) is Outcome.CORRECT

    assert [answer for answer in case["right"] if not passes(answer)] == []
    assert [answer for answer in case["wrong"] if passes(answer)] == []
