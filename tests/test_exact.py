"""The released code's grader and format rule."""

import pytest

from iapo_bench.worlds.exact import grade_exact, is_formatted_on_one_line, normalise_answer
from iapo_bench.worlds.grading import Outcome, is_formatted


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("<answer>4</answer>", "4", True),
        ("<answer>4.0</answer>", "4", False),  # exact strings, not numbers
        ("<answer>$1,234</answer>", "1234", True),
        ("<answer>1 4</answer>", "14", True),
        ("<answer>x = 5 meters</answer>", "5", True),
        ("<answer>0.5</answer>", r"\frac{1}{2}", False),
        (r"<answer>\frac12</answer>", r"\frac{1}{2}", True),
        (r"<answer>\sqrt2</answer>", r"\sqrt{2}", True),
        (r"<answer>so \boxed{3} or \boxed{\frac{1}{2}}.</answer>", r"\frac{1}{2}", True),
        (r"<answer>\boxed{7</answer>", "7", False),  # never closed: nothing
        ("<answer>3</answer> no, <answer>4", "4", True),  # the last opening tag, to the end of the text
        ("4", "4", True),  # without tags, the whole text
        ("The answer is 4", "4", False),
        ("<answer>18 eggs</answer>", "18", False),
        ("<answer></answer>", "4", False),
        (r"<answer>\text{Evelyn}</answer>", "Evelyn", True),
    ],
)
def test_exact_strings(text, gold, correct):
    assert grade_exact(text, gold) is (Outcome.CORRECT if correct else Outcome.WRONG)


def test_normalisation_goes_step_by_step():
    # "a " goes wherever it stands, in "area " too; "cm" goes, and what it leaves of its \text{}^2.
    assert normalise_answer(r"the area is 12 square \text{cm}^2") == "theareis12"
    assert normalise_answer("a = $\\frac34$") == r"\frac{3}{4}"
    assert normalise_answer("90^\\circ") == "90"
    assert normalise_answer("-1,000") == "-1,000"  # no digit string, because of its sign


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ("<think>a</think>\n<answer>4</answer>", True),
        ("<think>a</think>\n<answer>4</answer>\n", True),
        ("Well: <think>a</think>\n<answer>4</answer>", True),
        ("<think>a\nb</think>\n<answer>4</answer>", False),
        ("<think>a</think> <answer>4</answer>", False),
        ("<think>a</think><answer>4</answer>", False),
        ("<think>a</think>\n<answer>4\n</answer>", False),
        ("<think>a</think>\n\n<answer>4</answer>", False),
        ("<think>a</think>\n<answer>4</answer> done", False),
        ("<think>a <think> b</think>\n<answer>4</answer>", False),
        ("<think>a </think> b</think>\n<answer>4</answer>", True),
    ],
)
def test_the_format_is_of_one_line(text, formatted):
    assert is_formatted_on_one_line(text) is formatted


def test_thoughts_of_two_lines_are_formatted_here():
    assert is_formatted("<think>a\nb</think>\n<answer>4</answer>")
