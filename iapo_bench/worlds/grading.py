"""Judging completions: what answer a text gives, and whether it equals the gold.

A grader that fails must not look like a model that fails, so an outcome tells a wrong answer from an unreadable one,
from one that took too long to compare, and from a fault of the grader itself.
"""

import enum
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, Self

from pebble import ProcessPool

from iapo_bench.errors import UserError, unknown
from iapo_bench.progress import progress as progress_bar
from iapo_bench.worlds import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, GraderKind

logger = logging.getLogger(__name__)
# math-verify warns whenever its own timeouts are off, as they are here: the pool's replace them.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# The longest gold of any dataset here has 53 characters; beyond this, parsing costs time and proves nothing.
MAX_ANSWER_CHARS = 1000
# A text without answer tags is read from its end, this far back.
MAX_UNTAGGED_CHARS = 4000

_ANSWER = re.compile(f"{ANSWER_OPEN}((?:(?!{ANSWER_OPEN}).)*?){ANSWER_CLOSE}", re.DOTALL)
_FORMAT = re.compile(rf"\s*{THINK_OPEN}.*{THINK_CLOSE}\s*{ANSWER_OPEN}.*{ANSWER_CLOSE}\s*", re.DOTALL)
_DELIMITED = re.compile(r"\\boxed|\\\(|\\\[|(?<!\\)\$[^$]+(?<!\\)\$")
_CURRENCY = re.compile(r"\\?[$€£]")
_WORD = re.compile(r"(?<![A-Za-z])(?!sqrt)[A-Za-z]{3,}")
_SPACED_ROOT = re.compile(r"\s+(\\?sqrt)")


class Outcome(enum.StrEnum):
    """What became of a completion. Only CORRECT is a success; TIMEOUT and ERROR should be reported beside a result."""

    CORRECT = "CORRECT"
    WRONG = "WRONG"
    UNPARSEABLE = "UNPARSEABLE"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"


Judge = Callable[[str, str], Outcome]


class Grader(Protocol):
    """Judges completions in batches, inside a `with` block."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def grade(self, texts: Sequence[str], golds: Sequence[str], *, progress: bool = False) -> list[Outcome]:
        """One outcome for each text, in order. Raises ValueError when the lengths differ."""
        ...


def extract_answer(text: str) -> str | None:
    """What stands in the last complete `<answer>...</answer>`, newlines included; None without one."""
    answers = _ANSWER.findall(text)
    return answers[-1] if answers else None


def is_formatted(text: str) -> bool:
    """Whether the text is `<think>...</think> <answer>...</answer>`, each tag once, and else only whitespace."""
    once = all(text.count(tag) == 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE))
    return once and _FORMAT.fullmatch(text) is not None


def grade_integer(text: str, gold: str) -> Outcome:
    """Compare integers whose digits may be separate words: `1 4` is 14, `- 3` is -3. An answer needs its tags."""
    answer = "".join((extract_answer(text) or "").split())
    if len(answer) > MAX_ANSWER_CHARS or not re.fullmatch("-?[0-9]+", answer):
        return Outcome.UNPARSEABLE
    return Outcome.CORRECT if int(answer) == int(gold) else Outcome.WRONG


def grade_math(text: str, gold: str) -> Outcome:
    r"""Compare a text's answer with the gold as mathematics (math-verify): `4.0` is 4, `28/6` is `\frac{14}{3}`.

    The answer is what stands in the answer tags, or without them the last mathematical expression near the end of the
    text. An answer of more than `MAX_ANSWER_CHARS` characters is UNPARSEABLE. Can run for ever or raise: `MathGrader`
    calls it in a process that it can kill.
    """
    from math_verify import verify

    answer = extract_answer(text)
    if answer is None:
        found = _parse(text[-MAX_UNTAGGED_CHARS:])
    else:
        found = _parse_answer(answer) if len(answer) <= MAX_ANSWER_CHARS else []
    if not found:
        return Outcome.UNPARSEABLE
    if not (wanted := _parse_answer(gold)):
        raise ValueError(f"the gold {gold!r} is not mathematics")
    equal = verify(wanted, found, timeout_seconds=None, raise_on_error=True)
    return Outcome.CORRECT if equal else Outcome.WRONG


def check_gold(answer: str) -> None:
    """Raises UserError unless the gold answer can be read as mathematics."""
    if re.fullmatch("-?[0-9]+", answer):
        return
    try:
        readable = len(answer) <= MAX_ANSWER_CHARS and bool(_parse_answer(answer))
    except Exception:  # whatever the parser trips over
        readable = False
    if not readable:
        raise UserError(f"the gold answer '{answer[:80]}' cannot be read as mathematics: correct or remove it")


class IntegerGrader:
    """`grade_integer` on batches, in this process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def grade(self, texts: Sequence[str], golds: Sequence[str], *, progress: bool = False) -> list[Outcome]:
        """One outcome for each text, in order. Instant, so `progress` shows nothing."""
        return [grade_integer(text, gold) for text, gold in zip(texts, golds, strict=True)]


class MathGrader:
    """A judge, `grade_math` by default, on batches in `workers` processes (default: the cores, at most 8).

    A judgement that takes more than `timeout` seconds is TIMEOUT and its process is killed; one that raises or takes
    its process down is ERROR and logged. Either way the others go on. Equal pairs of answer and gold are judged once.
    `judge` must be importable by name. When no worker can start, grading raises BrokenProcessPool; a script that grades
    needs `if __name__ == "__main__":`, as with all of multiprocessing.
    """

    def __init__(self, *, workers: int | None = None, timeout: float = 10.0, judge: Judge = grade_math) -> None:
        # Processes forked from one that holds torch's threads can deadlock; the fork server holds none, and since it
        # has imported everything, replacing a killed worker is cheap.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["math_verify", __name__])
        workers = workers or min(8, len(os.sched_getaffinity(0)))
        self._pool = ProcessPool(max_workers=workers, context=context, initializer=_warm_up)
        self._judge = judge
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.stop()
        self._pool.join()

    def grade(self, texts: Sequence[str], golds: Sequence[str], *, progress: bool = False) -> list[Outcome]:
        """One outcome for each text, in order; `progress` shows a bar."""
        pairs = [(_shorten(text), gold) for text, gold in zip(texts, golds, strict=True)]
        futures = {
            pair: self._pool.schedule(self._judge, args=pair, timeout=self._timeout) for pair in dict.fromkeys(pairs)
        }
        outcomes = {}
        for (text, gold), future in progress_bar(futures.items(), desc="grading", unit="answer", disable=not progress):
            try:
                while not wait([future], timeout=1.0).done:
                    # A pool that breaks can forget tasks that still queue.
                    if not self._pool.active:
                        raise BrokenProcessPool("the grading processes do not start")
                outcomes[text, gold] = future.result()
            except TimeoutError:
                outcomes[text, gold] = Outcome.TIMEOUT
            except BrokenProcessPool:
                raise
            except Exception as error:
                logger.warning("cannot grade %r against %r: %s: %s", text, gold, type(error).__name__, error)
                outcomes[text, gold] = Outcome.ERROR
        return [outcomes[pair] for pair in pairs]


def make_grader(kind: GraderKind) -> Grader:
    """The grader of a world: `integer` or `math`. Raises UserError for any other kind."""
    if kind == "integer":
        return IntegerGrader()
    if kind == "math":
        return MathGrader()
    raise unknown("grader", kind, ("integer", "math"))


def _warm_up() -> None:
    """Import in a new worker what the first judgement would otherwise import on its own time."""
    import math_verify  # noqa: F401


def _shorten(text: str) -> str:
    """The part of a text that a judge reads."""
    answer = extract_answer(text)
    return text[-MAX_UNTAGGED_CHARS:] if answer is None else f"{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


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
