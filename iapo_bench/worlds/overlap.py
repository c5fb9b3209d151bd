"""Problems that occur in two splits: found by their text, counted, and removed from training.

Two problems are the same in one of three ways, each broader than the one before:

* exact: equal up to white space;
* normalised: equal in their words, numbers and symbols, whatever their case, punctuation and LaTeX spacing;
* prefix: the one begins with the other, normalised, and adds to it ("... Express your answer as m + n."); at least
  PREFIX_WORDS words, since short problems begin alike by chance.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from iapo_bench.errors import UserError
from iapo_bench.worlds import Problem

PREFIX_WORDS = 10

_WORD = re.compile(r"\\[a-zA-Z]+|[^\W\d_]+|\d+(?:[.,]\d+)*|[^\w\s]")
_SPACING = re.compile(r"\\[,;:!> ]")
_IGNORED = frozenset("$.,;:?{}'\"`~()[]_&\\\u3002\u3001\u201c\u201d\u2018\u2019") | {
    r"\left",
    r"\right",
    r"\displaystyle",
    r"\text",
    r"\mathrm",
    r"\quad",
}
_ALIASES = {r"\dfrac": r"\frac", r"\tfrac": r"\frac"}


@dataclass(frozen=True)
class Overlap:
    """Ids of the problems of one split that another split also holds, by their narrowest match."""

    exact: tuple[str, ...] = ()
    normalised: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()

    @property
    def ids(self) -> set[str]:
        """Ids of all matches."""
        return {*self.exact, *self.normalised, *self.prefix}

    def counts(self) -> dict[str, int]:
        """Number of matches of each kind."""
        return {field.name: len(getattr(self, field.name)) for field in fields(self)}


def normalise(question: str) -> str:
    """The words, numbers and symbols of a problem, separated by single spaces.

    Operators stay (`7 - 8` is not `7 + 8`), brackets do not: `(a + b) c` and `a + b c` count as the same, which errs on
    the side of removing a problem.
    """
    text = _SPACING.sub(" ", unicodedata.normalize("NFKC", question))
    words = [word if word.startswith("\\") else word.casefold() for word in _WORD.findall(text)]
    return " ".join(_ALIASES.get(word, word) for word in words if word not in _IGNORED)


def find_overlap(problems: Iterable[Problem], others: Iterable[Problem]) -> Overlap:
    """Which of `problems` are also among `others`."""
    others = list(others)
    exact = {_exact(problem.question) for problem in others}
    normal = sorted({normalise(problem.question) + " " for problem in others})
    known = set(normal)
    found: dict[str, list[str]] = {field.name: [] for field in fields(Overlap)}
    for problem in problems:
        text = normalise(problem.question) + " "
        if _exact(problem.question) in exact:
            found["exact"].append(problem.id)
        elif text in known:
            found["normalised"].append(problem.id)
        elif _is_prefix_of_one(text, normal) or _has_prefix(text, known):
            found["prefix"].append(problem.id)
    return Overlap(**{kind: tuple(ids) for kind, ids in found.items()})


def separate(
    splits: Mapping[str, Sequence[Problem]], held_out: Mapping[str, Sequence[Problem]], *, remove: bool = True
) -> tuple[dict[str, list[Problem]], dict[str, dict[str, int]], int]:
    """The splits without training problems that validation, test or a set of `held_out` (by name) also holds.

    Returns the splits, the counts of every pair ("train in test", ...) before the removal, and how many training
    problems were removed (with `remove=False`: would have been). Raises UserError if none is left.
    """
    found = {
        "train in validation": find_overlap(splits["train"], splits["validation"]),
        "train in test": find_overlap(splits["train"], splits["test"]),
        "validation in test": find_overlap(splits["validation"], splits["test"]),
        **{f"train in {name}": find_overlap(splits["train"], problems) for name, problems in held_out.items()},
    }
    bad = set().union(*(overlap.ids for pair, overlap in found.items() if pair.startswith("train")))
    clean = [problem for problem in splits["train"] if not remove or problem.id not in bad]
    if not clean:
        raise UserError("every training problem is also a validation or test problem: fetch the data again")
    counts = {pair: overlap.counts() for pair, overlap in found.items()}
    return {**{name: list(part) for name, part in splits.items()}, "train": clean}, counts, len(bad)


def _exact(question: str) -> str:
    return " ".join(question.split())


def _is_prefix_of_one(text: str, ordered: list[str]) -> bool:
    """Whether one of the sorted texts begins with `text`: the next one in the order does, if any."""
    place = bisect_right(ordered, text)
    return text.count(" ") >= PREFIX_WORDS and place < len(ordered) and ordered[place].startswith(text)


def _has_prefix(text: str, known: set[str]) -> bool:
    """Whether `text` begins with one of the texts."""
    ends = [place + 1 for place, character in enumerate(text) if character == " "]
    return any(text[:end] in known for end in ends[PREFIX_WORDS - 1 :])
