"""Grading: what counts as an answer, what counts as equal, and that a failing judge is never a wrong answer."""

import logging
import os
import time

import pytest

from iapo_bench.errors import UserError
from iapo_bench.worlds.grading import (
    MAX_ANSWER_CHARS,
    IntegerGrader,
    MathGrader,
    Outcome,
    check_gold,
    extract_answer,
    grade_integer,
    grade_math,
    is_formatted,
    make_grader,
)

C, W, U = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE


def tagged(answer: str) -> str:
    return f"<think> some reasoning </think> <answer>{answer}</answer>"


def faulty_judge(text: str, gold: str) -> Outcome:
    """Stands in for math-verify on bad days."""
    if "hang" in text:
        time.sleep(600)
    if "busy" in text:
        sum(range(10**13))  # in C, where a signal handler written in Python never runs
    if "raise" in text:
        raise ArithmeticError("no such number")
    if "exit" in text:
        time.sleep(0.5)  # the pool must first learn which process has the task
        os._exit(3)
    return grade_math(text, gold)


@pytest.fixture(scope="module")
def grader():
    with MathGrader(workers=2, timeout=60) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 4 </answer>", " 4 "),
        ("<answer>3</answer> no: <answer>4</answer>", "4"),
        ("<answer>\n4\n</answer>", "\n4\n"),
        ("<answer></answer>", ""),
        ("<answer>3 <answer>4</answer>", "4"),
        ("<answer>3</answer> <answer>4", "3"),
        ("the answer is 4", None),
        ("<answer>4", None),
        ("", None),
    ],
)
def test_the_last_complete_pair_of_tags_holds_the_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "formatted"),
    [
        ("<think>a</think><answer>1</answer>", True),
        ("\n<think>\na\nb\n</think>\n\n<answer>\n1\n</answer>\n", True),
        ("<think></think> <answer></answer>", True),
        ("so <think>a</think> <answer>1</answer>", False),
        ("<think>a</think> so <answer>1</answer>", False),
        ("<think>a</think> <answer>1</answer>.", False),
        ("<think>a</think> <answer>1</answer> <answer>2</answer>", False),
        ("<think>a <think>b</think> <answer>1</answer>", False),
        ("<think>a</think> b</think> <answer>1</answer>", False),
        ("<answer>1</answer> <think>a</think>", False),
        ("<think>a <answer>1</answer></think>", False),
        ("<answer>1</answer>", False),
        ("", False),
    ],
)
def test_format_is_one_pair_of_each_tag_and_nothing_else(text, formatted):
    assert is_formatted(text) is formatted


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        ("1 4", "14", C),
        (" 7 ", "7", C),
        ("0 7", "7", C),
        ("- 3", "-3", C),
        ("1 4", "41", W),
        ("- 3", "3", W),
        ("", "0", U),
        ("-", "0", U),
        ("1 + 4", "5", U),
        ("seven", "7", U),
        ("9 " * MAX_ANSWER_CHARS * 5, "9", U),  # more digits than int() takes
    ],
)
def test_integers_are_read_digit_by_digit(answer, gold, outcome):
    assert grade_integer(tagged(answer), gold) is outcome


def test_an_integer_needs_its_tags():
    assert grade_integer("1 4", "14") is U


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("4.0", "4"),
        ("1,000", "1000"),
        ("1000", "1,000"),
        ("$18", "18"),
        (r"\$18", "18"),
        ("$1,000.00", "1000"),
        (" $18$ ", "18"),
        ("€18", "18"),
        ("**18**", "18"),
        ("18.", "18"),
        (r"\frac{14}{3}.", r"\frac{14}{3}"),
        (r"The share is $\frac{14}{3}$ of a cup", r"\frac{14}{3}"),
        ("18 eggs", "18"),
        ("18 miles per hour", "18"),
        ("She has 18 eggs left.", "18"),
        ("16 + 2 = 18 dollars", "18"),
        ("x = 5", "5"),
        ("5", "x=5"),
        ("50%", "50"),
        (r"\boxed{18}", "18"),
        (r"\(18\)", "18"),
        (r"\frac{14}{3}", r"\frac{14}{3}"),
        ("14/3", r"\frac{14}{3}"),
        ("28/6", r"\frac{14}{3}"),
        (r"$\dfrac{28}{6}$", r"\frac{14}{3}"),
        ("4.6666667", r"\frac{14}{3}"),
        ("2 sqrt(3)", r"2\sqrt{3}"),
        (".35625", ".35625"),
        ("864", r"864 \mbox{ inches}^2"),
        ("Evelyn", r"\text{Evelyn}"),
        ("C", r"\text{(C)}"),
        (r"\left(3, \frac{\pi}{2}\right)", r"\left( 3, \frac{\pi}{2} \right)"),
    ],
)
def test_equal_mathematics_is_correct(answer, gold):
    assert grade_math(tagged(answer), gold) is C


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("81", "18"),
        ("-18", "18"),
        ("1,000", "1"),
        ("14", r"\frac{14}{3}"),
        ("3", r"\frac{14}{3}"),
        (r"\frac{14}{3}", "3"),
        ("2 sqrt(3)", "2"),
        ("(2,3)", "(3,2)"),
        ("I do not know", "18"),
    ],
)
def test_different_mathematics_is_wrong(answer, gold):
    assert grade_math(tagged(answer), gold) is W


@pytest.mark.parametrize("answer", ["", " \n ", "$", r"\frac{1", "?!", "1" + "+1" * MAX_ANSWER_CHARS])
def test_no_mathematics_is_unparseable(answer):
    assert grade_math(tagged(answer), "18") is U


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("<answer>3</answer> wait <answer>18</answer>", C),
        ("<answer>18</answer> wait <answer>3</answer>", W),
        (r"Half of 36 is \boxed{18}, I think, for 3 reasons", C),
        ("16 and 2 more make 18", C),
        ("18 less 2 makes 16", W),
        ("7 " * 3000 + "so 18", C),
        ("no number at all", U),
        ("", U),
    ],
)
def test_without_tags_the_last_expression_is_the_answer(text, outcome):
    assert grade_math(text, "18") is outcome


def test_grades_keep_their_order_and_their_pairs(grader):
    texts = [tagged(str(n)) for n in (1, 2, 3, 1, 2, 3)] + [tagged("")]
    golds = ["1", "2", "4", "3", "2", "3", "1"]
    assert grader.grade(texts, golds) == [C, C, W, W, C, C, U]
    assert grader.grade([], []) == []


def test_the_bar_shows_only_when_asked_for(grader, capsys):
    grader.grade([tagged("1")], ["1"])
    assert capsys.readouterr().err == ""
    grader.grade([tagged("1")], ["1"], progress=True)
    assert "1/1" in capsys.readouterr().err


def test_a_gold_that_is_no_mathematics_is_an_error_and_no_wrong_answer(grader, caplog):
    with caplog.at_level(logging.WARNING):
        assert grader.grade([tagged("4"), tagged("4")], ["?!", "4"]) == [Outcome.ERROR, C]
    assert "is not mathematics" in caplog.text


def test_a_judge_that_hangs_or_breaks_harms_no_other_answer(caplog):
    texts = [tagged(what) for what in ("hang", "4", "raise", "exit", "4.0", "busy", "5", "12/3")]
    with caplog.at_level(logging.WARNING), MathGrader(workers=2, timeout=3, judge=faulty_judge) as grader:
        start = time.monotonic()
        outcomes = grader.grade(texts, ["4"] * len(texts))
        elapsed = time.monotonic() - start
        again = grader.grade([tagged("4"), tagged("5")], ["4", "4"])
    timeout, error = Outcome.TIMEOUT, Outcome.ERROR
    assert outcomes == [timeout, C, error, error, C, timeout, W, C]
    assert again == [C, W]
    assert elapsed < 60
    assert "ArithmeticError: no such number" in caplog.text
    assert "ProcessExpired" in caplog.text


def test_a_pool_that_cannot_start_is_no_outcome(monkeypatch):
    monkeypatch.setattr("iapo_bench.worlds.grading._warm_up", os.abort)
    with MathGrader(workers=1) as grader, pytest.raises(RuntimeError):
        grader.grade([tagged("4")], ["4"])


def test_a_grader_that_grades_nothing_closes():
    with MathGrader():
        pass


@pytest.mark.parametrize(("kind", "of_a_fraction"), [("integer", U), ("math", C)])
def test_every_kind_of_grader_has_the_same_interface(kind, of_a_fraction):
    with make_grader(kind) as grader:
        assert grader.grade([tagged("8/2")], ["4"]) == [of_a_fraction]
        assert grader.grade([tagged("4"), tagged("5"), tagged("")], ["4", "4", "4"]) == [C, W, U]
        with pytest.raises(ValueError, match="shorter"):
            grader.grade([tagged("4")], [])


def test_an_unknown_kind_of_grader_is_the_users_mistake():
    with pytest.raises(UserError, match="unknown grader 'maths': did you mean 'math'"):
        make_grader("maths")


def test_outcomes_are_their_names():
    assert [str(outcome) for outcome in IntegerGrader().grade([tagged("4")], ["4"])] == ["CORRECT"]
    assert Outcome("TIMEOUT") is Outcome.TIMEOUT


@pytest.mark.parametrize("gold", ["18", "-3", "1.25", r"\frac{14}{3}", r"\text{Evelyn}", r"\$32,\!348", r"90^\circ"])
def test_good_golds_pass(gold):
    check_gold(gold)


@pytest.mark.parametrize("gold", ["", "  ", "?!", r"\frac{1", "$$", "1" + "+1" * MAX_ANSWER_CHARS])
def test_bad_golds_are_refused(gold):
    with pytest.raises(UserError, match="cannot be read as mathematics"):
        check_gold(gold)


def test_a_gold_on_which_the_parser_fails_is_refused(monkeypatch):
    def parse(*_, **__):
        raise RecursionError

    monkeypatch.setattr("math_verify.parse", parse)
    with pytest.raises(UserError, match="cannot be read as mathematics"):
        check_gold("1.5")
