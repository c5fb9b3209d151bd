"""Grading: where an answer stands, what its outcome is, and that no text breaks or stalls the grader."""

import logging
import os
import sys
import time

import pytest

from iapo_bench.errors import UserError
from iapo_bench.worlds.grading import (
    MAX_ANSWER_CHARS,
    Limits,
    Outcome,
    check_gold,
    extract_answer,
    grade_digits,
    grade_integer,
    grade_math,
    is_formatted,
    is_rounded,
    make_grader,
)
from iapo_bench.worlds.grading.lenient import grade_leniently, make_lenient_grader
from iapo_bench.worlds.grading.processes import Judges

C, W, U, T, E = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.TIMEOUT, Outcome.ERROR


def tagged(answer: str) -> str:
    return f"<think> some reasoning </think> <answer>{answer}</answer>"


def faulty_judge(text: str, gold: str) -> Outcome:
    """Stands in for algebra on bad days."""
    if "sleep" in text:
        time.sleep(600)
    if "busy" in text:
        sum(range(10**13))  # in C, where a signal handler written in Python never runs
    if "large" in text:
        return W if bytearray(2**33) else C
    if "abort" in text:
        os.abort()  # what GMP does without memory
    if "raise" in text:
        raise ArithmeticError("no such number")
    if "exit" in text:
        time.sleep(0.5)  # the pool must first learn which process has the task
        os._exit(3)
    return grade_integer(text, gold)


@pytest.fixture(scope="module")
def math():
    with make_grader("math", workers=2) as grader:
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
        ("<think>a</think> <answer>4</answer> so", "4"),
        ("a</think> <answer>4</answer>", "4"),
        ("<think> maybe <answer>3</answer> </think> <answer>4</answer>", "4"),
        ("<think>a</think><think>b</think><answer>4</answer>", "4"),
        ("<think> maybe <answer>4</answer> or", None),
        ("<think> maybe <answer>4</answer> </think>", None),
        ("<think>a</think> <think> <answer>4</answer>", None),
        ("<think>a</think>4", None),
        ("<think>a</think>\n4", None),
        (r"<think> I'd say \boxed{4}", None),
        ("the answer is 4", None),
        ("<answer>4", None),
        ("", None),
    ],
)
def test_the_last_complete_pair_of_tags_after_the_reasoning_holds_the_answer(text, answer):
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
def test_the_micro_worlds_integers_are_read_digit_by_digit(answer, gold, outcome):
    assert grade_digits(tagged(answer), gold) is outcome


@pytest.mark.parametrize("grade", [grade_digits, grade_integer, grade_math])
@pytest.mark.parametrize(
    "text",
    ["4", "<think> 2 + 2 = 4", r"<think> I'd say \boxed{4}", "<think>a</think>4", "<think> <answer>4</answer>", ""],
)
def test_an_answer_that_was_not_given_is_unparseable(grade, text):
    assert grade(text, "4") is U


@pytest.mark.parametrize("grade", [grade_integer, grade_math])
@pytest.mark.parametrize("answer", ["", " \n ", "$", "$$", r"\frac{1", "}1{{", "?!", "1" + "+1" * MAX_ANSWER_CHARS])
def test_an_answer_of_nothing_is_unparseable(grade, answer):
    assert grade(tagged(answer), "18") is U


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("<answer>3</answer> wait <answer>18</answer>", C),
        ("<answer>18</answer> wait <answer>3</answer>", W),
        (r"Half of 36 is \boxed{18}, I think, for 3 reasons", C),
        ("16 and 2 more make 18", C),
        ("<think> 16 + 2 = 18", C),
        (tagged("9*2"), C),
        ("18 less 2 makes 16", W),
        ("7 " * 3000 + "so 18", C),
        ("no number at all", U),
        ("", U),
    ],
)
def test_the_lenient_rule_forgives_missing_tags_and_unfinished_arithmetic(text, outcome):
    assert grade_leniently(text, "18") is outcome


@pytest.mark.parametrize(
    ("kind", "strict", "lenient"),
    [("digits", [U, C, U], [U, C, U]), ("integer", [W, C, U], [C, C, C]), ("math", [C, C, U], [C, C, C])],
)
def test_every_kind_of_grader_has_both_rules(kind, strict, lenient):
    texts, golds = [tagged("8/2"), tagged("4"), "<think> 2+2 is 4"], ["4"] * 3
    for make, outcomes in ((make_grader, strict), (make_lenient_grader, lenient)):
        with make(kind, workers=1) as grader:
            assert grader.grade(texts, golds) == outcomes
            assert grader.grade([], []) == []
            with pytest.raises(ValueError, match="shorter"):
                grader.grade([tagged("4")], [])


def test_an_unknown_kind_of_grader_is_the_users_mistake():
    with pytest.raises(UserError, match="unknown grader 'maths': did you mean 'math'"):
        make_grader("maths")


def test_grades_keep_their_order_and_their_pairs(math):
    texts = [tagged(str(n)) for n in (1, 2, 3, 1, 2, 3)] + [tagged(""), tagged(r"\frac{6}{2}"), tagged("6/3")]
    golds = ["1", "2", "4", "3", "2", "3", "1", "3", r"\sqrt{4}"]
    assert math.grade(texts, golds) == [C, C, W, W, C, C, U, C, C]


def test_the_bar_shows_only_when_asked_for(math, capsys):
    math.grade([tagged(r"\sqrt{4}")], ["2"])
    assert capsys.readouterr().err == ""
    math.grade([tagged(r"\sqrt{4}")], ["2"], progress=True)
    assert "1/1" in capsys.readouterr().err


def test_a_gold_that_is_no_mathematics_is_an_error_and_no_wrong_answer(math, caplog):
    with caplog.at_level(logging.WARNING):
        assert math.grade([tagged("4"), tagged("4")], ["?!", "4"]) == [E, C]
    assert "is not mathematics" in caplog.text


def test_a_judge_that_stalls_or_breaks_harms_no_other_answer(caplog):
    words = ("sleep", "4", "raise", "exit", "4.0", "busy", "5", "large", "abort", "x = 4")
    judges = Judges(workers=2, limits=Limits(seconds=1, wall_seconds=4))
    pairs = [(tagged(word), "4") for word in words]
    with caplog.at_level(logging.WARNING):
        start = time.monotonic()
        outcomes = judges.apply(faulty_judge, pairs)
        elapsed = time.monotonic() - start
        again = judges.apply(faulty_judge, [(tagged("4"), "4"), (tagged("5"), "4")])
    judges.close()
    assert dict(zip(words, outcomes, strict=True)) == {
        **{"sleep": T, "busy": T, "large": T, "abort": T},
        **{"raise": E, "exit": E, "4": C, "4.0": C, "x = 4": C, "5": W},
    }
    assert again == [C, W]
    assert elapsed < 90
    assert "ArithmeticError: no such number" in caplog.text
    assert "ProcessExpired" in caplog.text


def test_a_batch_ends_when_its_time_is_over_and_short_answers_come_first():
    limits = Limits(wall_seconds=60, batch_seconds=4, batch_seconds_per_answer=0)
    judges = Judges(workers=1, limits=limits)
    while judges.apply(faulty_judge, [(tagged("4"), "4")]) != [C]:
        pass  # the process starts, which takes its time on a busy machine
    start = time.monotonic()
    outcomes = judges.apply(faulty_judge, [(tagged(f"sleep {i}"), "4") for i in range(5)] + [(tagged("4"), "4")])
    assert outcomes == [T] * 5 + [C]
    assert time.monotonic() - start < 30
    judges.close()


HOSTILE = {
    "a tower": "9^{9^{9^{9^{9}}}}",
    "factorials": "((((9!)!)!)!)!",
    "an exponent": "1e999999999",
    "a large power": "(x+1)^{99999}",
    "brackets": "(" * 300 + "x" + ")" * 300,
    "braces": "{" * 300 + "x" + "}" * 300,
    "fractions": r"\frac{1}{" * 60 + "x" + "}" * 60,
    "roots": r"\sqrt{" * 80 + "x" + "}" * 80,
    "unbalanced brackets": "(" * 900,
    "a long number": "1" * 900,
    "letters": "a" * 900,
    "spaced letters": "a " * 400,
    "words for a tail": "18 " + "a" * 900 + "!",
    "words for a lead": "a, " * 300 + "18!",
    "commas": "1," * 400 + "1",
    "groups": "1,111" * 150,
    "plus or minus": r"\pm" * 300 + "1",
    "a sum": r"\sum_{k=1}^{10^{10}} k^k",
    "an integral": r"\int_0^\infty e^{-x^2} \sin(x^3) dx",
    "a binomial": r"\binom{10^{9}}{10^{8}}",
    "dollars": "$" * 900 + "1",
    "boxes": r"\boxed{" * 100 + "1" + "}" * 100,
    "texts": r"\text{a}" * 120,
    "equals": "x=" * 400 + "1",
    "an empty fraction": r"\frac{}{}",
    "a division by zero": r"\frac{1}{0}",
    "tags": "<answer>" * 100,
    "null": "\x00",
    "surrogates": "\ud800",
    "marks": "\u0301" * 900,
}


@pytest.mark.parametrize(
    ("kind", "make"), [("integer", make_grader), ("math", make_grader), ("math", make_lenient_grader)]
)
def test_hostile_answers_cost_little_and_are_never_an_error(kind, make, caplog):
    texts, golds = (
        [tagged(answer) for answer in HOSTILE.values()],
        ["424242" if kind == "integer" else "x+1"] * len(HOSTILE),
    )
    limits = Limits(seconds=1, wall_seconds=10)
    with make(kind, workers=2, limits=limits) as grader, caplog.at_level(logging.WARNING):
        outcomes = grader.grade(texts, golds)
        assert grader.grade([tagged("18")], ["18"]) == [C]
    assert {name: found for name, found in zip(HOSTILE, outcomes, strict=True) if found in (C, E)} == {}
    assert caplog.text == ""


def test_a_pool_that_cannot_start_is_no_outcome(monkeypatch):
    monkeypatch.setattr("iapo_bench.worlds.grading.processes._limit_worker", os.abort)
    with make_grader("math", workers=1) as grader, pytest.raises(RuntimeError):
        grader.grade([tagged(r"\sqrt{4}")], ["2"])


@pytest.mark.parametrize("module", ["sympy", "latex2sympy2_extended.latex2sympy2"])
def test_a_library_that_cannot_be_imported_is_no_wrong_answer(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError):
        grade_math(tagged(r"\frac{7}{x+91}"), r"\frac{1}{x+91}")


def test_a_worker_says_nothing_of_time_limits_that_are_off(capfd):
    with make_grader("math", workers=1) as grader:
        assert grader.grade([tagged(r"\sqrt{4}")], ["2"]) == [C]
    assert capfd.readouterr().err == ""


def test_outcomes_are_their_names():
    assert [str(outcome) for outcome in make_grader("integer").grade([tagged("4")], ["4"])] == ["CORRECT"]
    assert Outcome("TIMEOUT") is Outcome.TIMEOUT


@pytest.mark.parametrize("gold", ["18", "-3", "1.25", r"\frac{14}{3}", r"\text{Evelyn}", r"\$32,\!348", r"90^\circ"])
def test_good_golds_pass(gold):
    check_gold(gold, "math")


@pytest.mark.parametrize(
    "gold",
    [
        "",
        "  ",
        "?!",
        r"\frac{1",
        "$$",
        "1" + "+1" * MAX_ANSWER_CHARS,
        "1+",
        "None",
        "null",
        "true",
        "NaN",
        "[1]",
        "</answer>",
    ],
)
@pytest.mark.parametrize(
    ("kind", "complaint"), [("math", "cannot be read as mathematics"), ("integer", "is not an integer")]
)
def test_bad_golds_are_refused(gold, kind, complaint):
    with pytest.raises(UserError, match=f"{complaint}|is not text, or is too long"):
        check_gold(gold, kind)


@pytest.mark.parametrize("gold", [None, True, 1.5, 18, [1], float("nan")])
def test_a_gold_that_is_no_text_is_refused(gold):
    with pytest.raises(UserError, match="is not text, or is too long"):
        check_gold(gold, "math")


@pytest.mark.parametrize("gold", ["1.5", "1/2", "1e3", "1,000", "x"])
def test_a_gold_of_a_dataset_of_integers_is_one(gold):
    with pytest.raises(UserError, match="is not an integer"):
        check_gold(gold, "integer")


@pytest.mark.parametrize(
    ("gold", "rounded"),
    [
        ("105263157894736848", True),
        ("20000000000000000000000", True),
        ("22099999999999998951424", True),
        ("105263157894736842", False),
        ("19999999999999999999999", False),
        ("9007199254740992", False),
        ("-3", False),
    ],
)
def test_an_integer_that_float64_has_rounded_is_told(gold, rounded):
    assert is_rounded(gold) is rounded
