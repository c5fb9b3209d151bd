r"""Grading as in the code released with the IAPO paper: exact strings after normalisation, one-line format.

Answers are normalised as in appendix D of Lewkowycz et al. 2022 (arXiv 2206.14858), except that `ft` stays. Values are
not compared: 4.0 is not 4, and `\frac{1}{2}` is not 0.5.
"""

import re
from collections.abc import Sequence

from iapo_bench.worlds import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from iapo_bench.worlds.grading import Outcome

_REPLACED = [("an ", ""), ("a ", ""), (".$", "$"), (r"\$", ""), (r"\ ", ""), (" ", ""), ("mbox", "text")]
_REPLACED += [(r",\text{and}", ","), (r"\text{and}", ","), (r"\text{m}", r"\text{}")]
_WORDS = r"square ways integers dollars mph inches hours km units \ldots sue points feet minutes digits cents degrees"
_WORDS += r" cm gm pounds meters meals edges students childrentickets multiples \text{s} \text{.}"
_REMOVED = _WORDS.split()
_REMOVED += ["\\text{\ns}", r"\text{}^2", r"\text{}^3", "\\text{\n}", r"\text{}", r"\mathrm{th}"]
_REMOVED += [r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', r"\dots"]
_UNWRAPPED = [(r".*?\$(.*?)\$.*", r"$\1$"), (r"\\text\{(.*?)\}", r"\1"), (r"\\textbf\{(.*?)\}", r"\1")]
_UNWRAPPED += [(r"\\overline\{(.*?)\}", r"\1"), (r"\\boxed\{(.*)\}", r"\1")]
_UNWRAPPED += [(r"frac([^{])(.)", r"frac{\1}{\2}"), (r"sqrt([^{])", r"sqrt{\1}")]  # \frac12 and \sqrt2

_WITHIN = rf"(?:(?!{THINK_OPEN}|{ANSWER_OPEN})[^\n])*"
_ONE_LINE = re.compile(
    rf"{_WITHIN}{THINK_OPEN}{_WITHIN}{THINK_CLOSE}\n{ANSWER_OPEN}{_WITHIN}{ANSWER_CLOSE}\n?",
)


def is_formatted_on_one_line(text: str) -> bool:
    """Whether the reasoning is on one line and the answer on the next, each within its tags.

    Any other newline but a final one, or none between the two, breaks the format; text before `<think>` on its line
    does not.
    """
    return _ONE_LINE.fullmatch(text) is not None


def grade_exact(text: str, gold: str) -> Outcome:
    """CORRECT if answer and gold are the same string once normalised, else WRONG; never UNPARSEABLE.

    The answer runs from the last `<answer>` to `</answer>` or the end of the text; without a tag it is the whole text.
    If it holds `\\boxed{...}`, the content of the last one counts.
    """
    answer = text.split(ANSWER_OPEN)[-1].split(ANSWER_CLOSE)[0].strip()
    return Outcome.CORRECT if normalise_answer(_last_boxed(answer)) == normalise_answer(gold) else Outcome.WRONG


def judge_exactly(texts: Sequence[str], golds: Sequence[str]) -> list[Outcome]:
    """`grade_exact` of each text, in order. Raises ValueError when the lengths differ."""
    return [grade_exact(text, gold) for text, gold in zip(texts, golds, strict=True)]


def normalise_answer(answer: str) -> str:
    """The normal form of an answer: what follows its last `=`, without units, spaces and LaTeX markup."""
    answer = answer.split("=")[-1]
    for before, after in _REPLACED:
        answer = answer.replace(before, after)
    for removed in _REMOVED:
        answer = answer.replace(removed, "")
    for pattern, kept in _UNWRAPPED:
        answer = re.sub(pattern, kept, answer)
    answer = answer.replace("$", "")
    digits = answer.replace(",", "")
    return (digits if digits.isdigit() else answer).strip()


def _last_boxed(answer: str) -> str:
    """The content of the last `\\boxed{...}`, braces balanced; empty if it is not closed; the answer if there is
    none."""
    _, box, rest = answer.rpartition(r"\boxed{")
    if not box:
        return answer
    depth = 1
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:i]
    return ""
