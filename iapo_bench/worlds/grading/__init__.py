"""Grading completions: the answer of a text, and whether it equals the gold.

The strict rule is the default everywhere: the answer is in its tags, after the reasoning, and an integer answer leaves
nothing to compute. The lenient rule, for comparison, is in `lenient.py`, which only the grading stage imports. A
failing grader must not look like a failing model, so an outcome distinguishes a wrong answer, a missing answer, a
comparison that exceeded its time or memory, and a fault of the grader itself.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from iapo_bench.errors import UserError, unknown
from iapo_bench.worlds import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, GraderKind, Problem, read_problems
from iapo_bench.worlds.grading.equality import same, same_text
from iapo_bench.worlds.grading.literals import read_literal, tidy
from iapo_bench.worlds.grading.processes import Judge, Judges, Limits, Outcome
from iapo_bench.worlds.grading.reading import Unreadable, is_stated

__all__ = [
    "MAX_ANSWER_CHARS",
    "RULES",
    "Grader",
    "Limits",
    "Outcome",
    "Rule",
    "check_gold",
    "extract_answer",
    "grade_digits",
    "grade_integer",
    "grade_math",
    "is_formatted",
    "is_rounded",
    "last_tagged",
    "make_grader",
    "read_gradable",
]

_FORMAT = re.compile(rf"\s*{THINK_OPEN}.*{THINK_CLOSE}\s*{ANSWER_OPEN}.*{ANSWER_CLOSE}\s*", re.DOTALL)

# The longest gold of any dataset here has 53 characters; beyond this, reading costs time and proves nothing.
MAX_ANSWER_CHARS = 1000
# Beyond this, float64 cannot represent every integer.
_EXACT_IN_FLOAT64 = 2**53

_ANSWER = re.compile(f"{ANSWER_OPEN}((?:(?!{ANSWER_OPEN}).)*?){ANSWER_CLOSE}", re.DOTALL)


def last_tagged(text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>`, newlines included; None without one."""
    answers = _ANSWER.findall(text)
    return answers[-1] if answers else None


def extract_answer(text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>` after the reasoning, newlines included; None without one.

    An answer within `<think>`, closed or not, does not count.
    """
    return last_tagged(text.rpartition(THINK_CLOSE)[2].partition(THINK_OPEN)[0])


def is_formatted(text: str) -> bool:
    """Whether the text is `<think>...</think> <answer>...</answer>`, each tag once, and else only whitespace."""
    once = all(text.count(tag) == 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE))
    return once and _FORMAT.fullmatch(text) is not None


def grade_digits(text: str, gold: str) -> Outcome:
    """Compare integers whose digits may be separate words: `1 4` is 14, `- 3` is -3. An answer needs its tags."""
    answer = "".join((extract_answer(text) or "").split())
    if len(answer) > MAX_ANSWER_CHARS or not re.fullmatch("-?[0-9]+", answer):
        return Outcome.UNPARSEABLE
    return Outcome.CORRECT if int(answer) == int(gold) else Outcome.WRONG


def grade_integer(text: str, gold: str) -> Outcome:
    r"""Compare an answer that must be one literal, with nothing to compute, with an integer gold.

    `18`, `\boxed{18}`, `$1,234.00`, `x = 18` and `18 eggs` are literals; `9*2` and `17 + 1 = 18` are not, and WRONG.
    """
    answer = _readable(text)
    if answer is None:
        return Outcome.UNPARSEABLE
    return Outcome.CORRECT if read_literal(answer) == int(gold) else Outcome.WRONG


def grade_math(text: str, gold: str) -> Outcome:
    r"""Compare an answer with the gold as mathematics, each read as a whole: `28/6` is `\frac{14}{3}`.

    Raises ValueError for a gold that is not mathematics. May never end: call it where time and memory are limited.
    """
    quick = _quick_math(text, gold)
    if quick is not None:
        return quick
    try:
        equal = same(tidy(extract_answer(text) or ""), tidy(gold))
    except Unreadable:
        raise ValueError(f"the gold {gold!r} is not mathematics") from None
    return Outcome.CORRECT if equal else Outcome.WRONG


def check_gold(gold: str, kind: GraderKind) -> None:
    """Raise UserError unless the grader can read the gold and would find it correct in a completion."""
    if not isinstance(gold, str) or len(gold) > MAX_ANSWER_CHARS:
        raise UserError(f"the gold answer {str(gold)[:80]!r} is not text, or is too long: correct or remove it")
    if kind != "math":
        if not re.fullmatch("-?[0-9]+", gold):
            raise UserError(f"the gold answer '{gold[:80]}' is not an integer: correct or remove it")
        return
    completion = f"{ANSWER_OPEN} {gold} {ANSWER_CLOSE}"
    text = tidy(gold)
    if not is_stated(text) or not same(text, text) or grade_math(completion, gold) is not Outcome.CORRECT:
        raise UserError(f"the gold answer '{gold[:80]}' cannot be read as mathematics: correct or remove it")


def read_gradable(file: Path, kind: GraderKind) -> list[Problem]:
    """Problems that `write_problems` wrote. Raises UserError, with the line, for a damaged row and for a gold that must
    be an integer and is not; `prepare` has already checked math golds, which takes seconds."""
    problems = read_problems(file)
    for line, problem in enumerate(problems if kind != "math" else (), start=1):
        try:
            check_gold(problem.answer, kind)
        except UserError as error:
            raise UserError(f"{file}:{line}: {error}") from None
    return problems


def is_rounded(gold: str) -> bool:
    """Whether a gold is an integer that float64 may have rounded: too large to be exact, and equal to its own
    float64."""
    if not re.fullmatch("-?[0-9]{1,300}", gold):
        return False
    value = int(gold)
    return abs(value) > _EXACT_IN_FLOAT64 and int(float(value)) == value


@dataclass(frozen=True)
class Rule:
    """How to judge: `quick` runs in this process and returns None if it cannot tell; `thorough` runs in one that can be
    killed.

    `shorten` cuts a text to the part that both read, so that equal answers are judged once.
    """

    quick: Callable[[str, str], Outcome | None]
    thorough: Judge | None
    shorten: Callable[[str], str]


class Grader:
    """Judges completions in batches, inside a `with` block; processes start when needed."""

    def __init__(self, rule: Rule, *, workers: int | None = None, limits: Limits | None = None) -> None:
        self._rule = rule
        self._judges = Judges(workers=workers, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._judges.close()

    def grade(self, texts: Sequence[str], golds: Sequence[str], *, progress: bool = False) -> list[Outcome]:
        """One outcome for each text, in order. Raises ValueError when the lengths differ."""
        rule = self._rule
        pairs = [(rule.shorten(text), gold) for text, gold in zip(texts, golds, strict=True)]
        outcomes = {pair: rule.quick(*pair) for pair in dict.fromkeys(pairs)}
        left = [pair for pair, outcome in outcomes.items() if outcome is None]
        if rule.thorough is not None:
            outcomes.update(zip(left, self._judges.apply(rule.thorough, left, progress=progress), strict=True))
        return [outcomes[pair] or Outcome.ERROR for pair in pairs]


def make_grader(kind: GraderKind, *, workers: int | None = None, limits: Limits | None = None) -> Grader:
    """The strict grader of a world: `digits` (the micro world), `integer` (golds are integers) or `math`.

    Raises UserError for any other kind.
    """
    if kind not in RULES:
        raise unknown("grader", kind, RULES)
    return Grader(RULES[kind], workers=workers, limits=limits)


def _quick_math(text: str, gold: str) -> Outcome | None:
    """The outcome if it can be told without algebra, else None."""
    answer = _readable(text)
    if answer is None:
        return Outcome.UNPARSEABLE
    equal = same_text(answer, tidy(gold))
    return None if equal is None else Outcome.CORRECT if equal else Outcome.WRONG


def _readable(text: str) -> str | None:
    """The tidied answer of a text; None if there is none or it cannot be read."""
    answer = extract_answer(text)
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    answer = tidy(answer)
    braces = re.sub(r"\\[{}]", "", answer)
    whole = braces.count("{") == braces.count("}")
    return answer if whole and any(map(str.isalnum, answer)) else None


def _answer_only(text: str) -> str:
    answer = extract_answer(text)
    return "" if answer is None else f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


RULES: dict[str, Rule] = {
    "digits": Rule(grade_digits, None, _answer_only),
    "integer": Rule(grade_integer, None, _answer_only),
    "math": Rule(_quick_math, grade_math, _answer_only),
}
