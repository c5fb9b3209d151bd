"""The lenient rule, kept beside the strict one: math-verify finds an answer anywhere near the end of a text.

It forgives missing tags and unfinished arithmetic, so it also counts answers that were never given.
"""

import re
from typing import Any

from iapo_bench.worlds import ANSWER_CLOSE, ANSWER_OPEN, GraderKind
from iapo_bench.worlds.grading import MAX_ANSWER_CHARS, RULES, Grader, Rule, last_tagged
from iapo_bench.worlds.grading.processes import Limits, Outcome

# A text without answer tags is read from its end, this far back.
MAX_UNTAGGED_CHARS = 4000

_DELIMITED = re.compile(r"\\boxed|\\\(|\\\[|(?<!\\)\$[^$]+(?<!\\)\$")
_CURRENCY = re.compile(r"\\?[$€£]")
_WORD = re.compile(r"(?<![A-Za-z])(?!sqrt)[A-Za-z]{3,}")
_SPACED_ROOT = re.compile(r"\s+(\\?sqrt)")


def make_lenient_grader(kind: GraderKind, *, workers: int | None = None, limits: Limits | None = None) -> Grader:
    """The lenient grader of a world; digits have the strict rule alone."""
    rule = RULES[kind] if kind == "digits" else Rule(quick_lenient, grade_leniently, shorten)
    return Grader(rule, workers=workers, limits=limits)


def shorten(text: str) -> str:
    """The part of a text that the lenient rule reads."""
    answer = last_tagged(text)
    return text[-MAX_UNTAGGED_CHARS:] if answer is None else f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


def quick_lenient(text: str, gold: str) -> Outcome | None:
    """The outcome of `grade_leniently` if both sides are plain integers in tags, else None."""
    answer = (last_tagged(text) or "").strip()
    if not (re.fullmatch("-?[0-9]{1,50}", answer) and re.fullmatch("-?[0-9]{1,50}", gold)):
        return None
    return Outcome.CORRECT if int(answer) == int(gold) else Outcome.WRONG


def grade_leniently(text: str, gold: str) -> Outcome:
    r"""Compare a text's answer with the gold as math-verify does: `4.0` is 4, `9*2` is 18.

    The answer is the content of the last answer tags or, without tags, the last mathematical expression near the end of
    the text. An answer of more than `MAX_ANSWER_CHARS` characters is UNPARSEABLE. Raises ValueError for a gold that is
    not mathematics. May never end: call it where time and memory are limited.
    """
    from math_verify import verify

    answer = last_tagged(text)
    try:
        if answer is None:
            found = _parse(text[-MAX_UNTAGGED_CHARS:])
        else:
            found = _parse_answer(answer) if len(answer) <= MAX_ANSWER_CHARS else []
    except (MemoryError, ImportError):
        raise
    except Exception:  # the parser may raise anything
        found = []
    if not found:
        return Outcome.UNPARSEABLE
    if not (wanted := _parse_answer(gold)):
        raise ValueError(f"the gold {gold!r} is not mathematics")
    try:
        equal = verify(wanted, found, timeout_seconds=None, raise_on_error=True)
    except (MemoryError, ImportError):
        raise
    except Exception:  # only the answer is new to the algebra: golds were checked
        equal = False
    return Outcome.CORRECT if equal else Outcome.WRONG


def _parse_answer(answer: str) -> list[Any]:
    """The sympy expressions in a text that is an answer and nothing more."""
    if _DELIMITED.search(answer):
        return _parse(answer)
    # math-verify reads `2 sqrt(3)`, with that space, as 2.
    answer = _SPACED_ROOT.sub(r"\1", _CURRENCY.sub("", answer).strip("*` \n").rstrip("."))
    # Without LaTeX, letters in a row are words ("18 eggs"), which a LaTeX parser would take for products of variables.
    if "\\" not in answer and _WORD.search(answer):
        return _parse(answer) or _parse(f"$\\text{{{answer}}}$")
    return _parse(f"${answer}$")


def _parse(text: str) -> list[Any]:
    """The sympy expressions of the last answer in a text; empty when there is none.

    math-verify adds the raw string, which it also returns alone when it cannot parse: strings are left out.
    """
    from math_verify import parse

    found = parse(text, parsing_timeout=None, raise_on_error=True)
    return [expression for expression in found if not isinstance(expression, str)]
