r"""Parsing an answer by its shape. Every character must be accounted for, so no part is ignored.

Scalars are left in LaTeX, in the spelling that math-verify's parser reads, after a check that every symbol is known.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from iapo_bench.worlds.grading.literals import MEASURED, NUMBER, is_harmless, read_number
from iapo_bench.worlds.grading.units import FACTORS, split_unit, unit_name

# The parser's time doubles with each level of brackets.
MAX_DEPTH = 20


class Unreadable(ValueError):
    """The text is not an answer of a known shape."""


@dataclass(frozen=True)
class Answer:
    """An answer's shape: its `kind`, a `label` that distinguishes answers of one kind (brackets, a name, a unit), its
    parts.

    Kinds: `scalar` (its LaTeX; label: its unit), `words`, `based` (digits; label: the base), `dots`, `tuple` (label:
    both brackets), `set` and `union` (in any order), `matrix` (label: its number of columns), `named` (a value; label:
    its name), `equation` (two sides), `chain` (sides that should all be equal), `rounded` (an answer; label: a decimal
    that is said to be near it).
    """

    kind: str
    label: str
    parts: tuple[Any, ...] = ()


# Commands that may appear without a backslash, and all commands that a scalar may hold.
_FUNCTIONS = (
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
    *("ln", "log"),
)
_PLAIN_COMMANDS = (*_FUNCTIONS, "sqrt", "exp", "pi", "theta")
_COMMANDS = frozenset(
    {
        *(*_PLAIN_COMMANDS, "frac", "cdot", "times", "div", "binom", "infty", "alpha", "beta", "gamma", "delta"),
        *("epsilon", "lambda", "mu", "phi", "omega", "rho", "sigma", "tau"),
    }
)
_SCALAR = re.compile(r"(?:[0-9A-Za-z+*/^_(){}!. \[\]-]|\\[A-Za-z]+)+")
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'?(?:(?:\^\{?-1\}?)? ?\([A-Za-z](?:,[A-Za-z])*\))?"
    r"|\\text ?\{[A-Za-z ]+\}|\\(?:angle|overline|triangle|vec|overrightarrow) ?\{?[A-Za-z]+\}?"
)
_TERM = r"(?:(?:\\(?!frac|sqrt))?[A-Za-z]++ ?)+(?:_\{?\w+\}?)?(?:\([^()]*\))? ?"
# Quantities, besides a name, whose value an answer may give: `f(2)`, `\sin \theta`, `a + b`, `(x, y)`.
_QUANTITY = re.compile(rf"{_TERM}(?:[+-] ?{_TERM})*|\((?: ?\\?[A-Za-z]+ ?,?)+\)|{MEASURED}")
_LEAD = re.compile(
    r"(?:(?:[A-Za-z][A-Za-z ,']*)?\b(?:is|are|be|equals|by|option|choice|answer)\b:?|[A-Za-z ]+:"
    r"|(?:the )?(?:point|interval|set|pair|line|vector|matrix)(?= )"
    r"|(?:so|thus|hence|therefore),?(?= )) ?(?=\S)(?!$)",
    re.IGNORECASE,
)
_OPEN, _CLOSE = "([{", ")]}"
_RELATION = re.compile(r"(\\(?:le|ge|ne|in)(?![a-z])|<=|>=|!=|[<>=]|\\(?:approx|equiv|sim)(?![a-z]))")
# `\{x \mid x > 2\}` is `x > 2`.
_DESCRIBED = re.compile(
    r"\\?\{ ?(?P<name>[a-z])(?: ?\\in ?\\mathbb ?\{? ?R ?\}?)? ?(?:\\mid(?![a-z])|[|:]) ?"
    r"(?P<condition>(?=[^|:]*(?P=name))[^|:]+?)\\?\}"
)
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_JOINTS = ("", ",", ";", "and", "or", ", and", ", or")
_CUP = re.compile(r"\\cup(?![a-z])")
_COMMA = re.compile(r"(,? ?(?:\\text ?\{ ?(?:and|or) ?\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))|[,;])")
_GROUPS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!,?\d)")  # thousands, where a list has wider separators
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-z])")
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@lru_cache(maxsize=1024)
def read(text: str) -> Answer:
    """The answer in a tidied text, with its unit and without the prose around it. Raises Unreadable."""
    if _depth(text) > MAX_DEPTH:
        raise Unreadable(text)
    core, unit = _separate(text)
    answer = _read_based(text) or _read(core)
    if unit and answer.kind == "words":
        raise Unreadable(text)
    if unit and answer.kind == "scalar" and not answer.label:
        return Answer("scalar", unit, answer.parts)
    return answer


def is_stated(text: str) -> bool:
    r"""Whether a tidied text states an answer as a gold must, words only in `\text` or brackets.

    `None`, `NaN`, `N/A` and `true` state nothing.
    """
    if re.fullmatch("n/?a", text, re.IGNORECASE):
        return False
    try:
        answer = read(text)
    except Unreadable:
        return False
    return answer.kind != "words" or r"\text" in text or "(" in text


def _separate(text: str) -> tuple[str, str]:
    """Split the mathematics of a text, or what follows a phrase such as `The answer is`, from the unit behind it."""
    tail = ""
    pieces = text.split("$")
    if len(pieces) > 1:
        text, lead, tail = _last_mathematics(pieces)
        if (
            not text
            or tail.startswith("^")
            or not is_harmless(lead.rstrip("="))
            or not is_harmless(re.sub(r"\^[23]|/", "", tail))
        ):
            raise Unreadable(text)
    elif lead_phrase := _LEAD.match(text := re.sub(r"^\\text ?\{([^{}]*(?:is|:))\s*\}", r"\1 ", text)):
        if not is_harmless(lead_phrase[0]):
            raise Unreadable(text)
        text = text[lead_phrase.end() :]
    if (separated := split_unit(text, _COMMANDS)) is None:
        raise Unreadable(text)
    return separated[0], separated[1] or unit_name(tail)


def _last_mathematics(pieces: list[str]) -> tuple[str, str, str]:
    """A text's last mathematics, which may be a list, with the prose before and behind it: `$x$ is $1$ and $2$`.

    `pieces` are prose and mathematics in turn. Mathematics in the prose before must be a name.
    """
    inside = [piece.strip(" .,") for piece in pieces[1::2]]
    outside = [piece.strip(" .") for piece in pieces[0::2]]
    first = next((i for i in range(len(inside) - 1, 0, -1) if outside[i] not in _JOINTS), 0)
    if not all(map(_NAME.fullmatch, inside[:first])):
        raise Unreadable("".join(pieces))
    return ", ".join(filter(None, inside[first:])), " ".join(outside[: first + 1]), outside[-1]


def _read(text: str) -> Answer:
    """The shape of a text without prose or unit."""
    text = text.strip()
    if re.search(r"[,;] |(?<![A-Za-z])(?:and|or)(?![A-Za-z])", text):
        text = _GROUPS.sub(lambda found: found[0].replace(",", ""), text)
    if not text:
        raise Unreadable(text)
    if read_number(text) is not None:
        return Answer("scalar", "", (text,))
    if (words := _words(text)) is not None:
        return Answer("words", words)
    if text in (r"\ldots", "..."):
        return Answer("dots", "")
    if text == r"\emptyset":
        return Answer("set", "")
    elements = _elements(text)
    relations = [part.strip() for part in _split(text, _RELATION)]
    if len(relations) > 1 and not (elements and all(len(_split(part, _RELATION)) > 1 for part in elements)):
        return _read_relations(relations)
    if len(joined := _split(text, _CUP)[::2]) > 1:
        return Answer("union", "", tuple(_flatten(map(_read, joined), "union")))
    if elements:
        return _read_list(elements, both=re.fullmatch(r".*[^,]\band\b.*", text) is not None)
    structured = _read_based(text) or _read_bracketed(text) or _read_matrix(text)
    return structured or (_read_plus_minus(text) if _PLUS_MINUS.search(text) else _read_scalar(text))


def _elements(text: str) -> list[str]:
    """The elements of a list without brackets; none of any other text."""
    parts = [] if re.fullmatch(rf"-? ?{NUMBER}", text) else _split(text, _COMMA)[::2]
    return parts if len(parts) > 1 else []


def _read_list(elements: list[str], *, both: bool) -> Answer:
    """A set; for named intervals their union (`x < 2 or x > 3`) or the interval between two (`x > 2 and x < 3`)."""
    parts = list(map(_read, elements))
    if both and all(part.kind == "named" and part.parts[0].kind == "tuple" for part in parts):
        return _between(parts)
    intervals = all(part.kind == "named" and part.parts[0].kind in ("tuple", "union") for part in parts)
    if intervals and len({part.label for part in parts}) == 1:
        return Answer("named", parts[0].label, (Answer("union", "", tuple(part.parts[0] for part in parts)),))
    held = (part.parts[0] if part.kind == "named" and part.parts[0].kind == "set" else part for part in parts)
    return Answer("set", "", tuple(_flatten(held, "set")))


def _between(bounds: list[Answer]) -> Answer:
    """The interval of one name that a lower and an upper bound leave."""
    lower = [bound.parts[0] for bound in bounds if bound.parts[0].parts[1].parts == (r"\infty",)]
    upper = [bound.parts[0] for bound in bounds if bound.parts[0].parts[0].parts == (r"-\infty",)]
    if len(bounds) != 2 or len(lower) != 1 or len(upper) != 1 or bounds[0].label != bounds[1].label:
        raise Unreadable(str(bounds))
    ends = (lower[0].parts[0], upper[0].parts[1])
    return Answer("named", bounds[0].label, (Answer("tuple", lower[0].label[0] + upper[0].label[1], ends),))


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at separators outside all brackets, the separators kept in between."""
    parts, depth, start = [], 0, 0
    found = {match.start(): match for match in separator.finditer(text)}
    for i, character in enumerate(text):
        if i in found and i >= start and depth == 0:
            parts += [text[start:i], found[i][0]]
            start = found[i].end()
        depth += (character in _OPEN) - (character in _CLOSE)
    return [*parts, text[start:]]


def _flatten(parts: Iterable[Answer], kind: str) -> Iterator[Answer]:
    for part in parts:
        if part.kind == kind:
            yield from part.parts
        else:
            yield part


def _words(text: str) -> str | None:
    r"""The words, in lower case, of an answer that is words: `\text{(C)}` and `Evelyn`."""
    inner = re.fullmatch(r"\(? ?\\text ?\{([^{}\\]*)\} ?\)?", text)
    plain = inner[1] if inner else text
    if not re.fullmatch(r"[\s(]*[^\W\d_]++(?:[\s.'-]++[^\W\d_]++)*+[\s).]*", plain):
        return None
    plain = re.sub(r"^\s*(?:an?|the)\s+", "", plain, flags=re.IGNORECASE)
    word = "".join(re.findall(r"[^\W\d_]+", plain)).lower()
    parts = set(re.findall(r"[^\W\d_]+", plain))
    return word if inner or (len(word) > 2 and parts.isdisjoint(_COMMANDS)) else None


def _read_relations(parts: list[str]) -> Answer:
    """A named value, an interval of a name, an equation, or a chain of equal sides."""
    sides = parts[0::2]
    signs = [sign.replace(r"\le", "<=").replace(r"\ge", ">=") for sign in parts[1::2]]
    named = _NAME.fullmatch(sides[0])
    if not all(sides):
        raise Unreadable(" ".join(parts))
    if signs[-1] == r"\approx" and set(signs[:-1]) <= {"="} and read_number(sides[-1]) is not None:
        return Answer("rounded", sides[-1], (_read(" = ".join(sides[:-1])),))
    if len(sides) == 2 and not named and re.fullmatch("[A-Za-z]", sides[1]):
        sides, signs = sides[::-1], [_FLIPPED.get(signs[0], signs[0])]
        named = _NAME.fullmatch(sides[0])
    if set(signs) == {"="}:
        if len(sides) > 2:
            return Answer("chain", "", tuple(map(_read, sides[1:] if named else sides)))
        if not named and _QUANTITY.fullmatch(sides[0]):
            return Answer("equation", "quantity", (Answer("scalar", "", (sides[0],)), _read(sides[1])))
        if not named:
            return Answer("equation", "", tuple(map(_read, sides)))
    if signs in (["="], [r"\in"]) and named:
        return Answer("named", bare_name(sides[0]), (_read(sides[1]),))
    return _read_inequalities(sides, signs)


def _read_inequalities(sides: list[str], signs: list[str]) -> Answer:
    """The interval of a name between bounds: `x > 2`, `2 < x`, `-2 <= x <= 7`."""
    if len(sides) == 2 and _NAME.fullmatch(sides[0]):
        sides, signs = sides[::-1], [_FLIPPED.get(signs[0], "")]
    if len(sides) == 2:
        sides, signs = [*sides, r"\infty" if signs[0] in ("<", "<=") else r"-\infty"], [signs[0], signs[0][:1]]
    directions = {sign[:1] for sign in signs}
    if len(sides) != 3 or not _NAME.fullmatch(sides[1]) or directions not in ({"<"}, {">"}):
        raise Unreadable(" ".join(sides))
    if directions == {">"}:
        sides, signs = sides[::-1], signs[::-1]
    brackets = ("[" if "=" in signs[0] else "(") + ("]" if "=" in signs[1] else ")")
    return Answer("named", bare_name(sides[1]), (Answer("tuple", brackets, (_read(sides[0]), _read(sides[2]))),))


def bare_name(name: str) -> str:
    """A name without braces, backslashes and spaces."""
    return re.sub(r"[\\{} ]", "", name)


def _read_plus_minus(text: str) -> Answer:
    """Both values, all upper signs and all lower ones."""
    upper = _PLUS_MINUS.sub(lambda found: "+" if found[1] == "pm" else "-", text)
    lower = _PLUS_MINUS.sub(lambda found: "-" if found[1] == "pm" else "+", text)
    return Answer("set", "", (_read(upper.lstrip("+ ")), _read(lower.lstrip("+ "))))


def _read_based(text: str) -> Answer | None:
    r"""A number in a base: `204_5`, `204_{\text{five}}`."""
    text = " ".join(re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text.strip("$")).split())
    found = re.fullmatch(r"\(?([\dA-Fa-f ]+)\)?(?: ?_ ?[{(]{0,2}| \(?(?:in )?base )(\d+|[a-z]{3,5})[)}]{0,2}", text)
    if not found:
        return None
    base = str(_BASES.index(found[2]) + 2) if found[2] in _BASES else found[2]
    digits = found[1].replace(" ", "").lstrip("0").lower()
    counted = base.isdigit() and all(int(digit, 16) < int(base) for digit in digits)
    return Answer("based", base, (digits,)) if counted else None


def _read_bracketed(text: str) -> Answer | None:
    r"""A tuple or an interval, or a set in `\{ \}`."""
    if described := _DESCRIBED.fullmatch(text):
        return _read(described["condition"])
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return Answer("set", "", tuple(_flatten(map(_read, _split(text[2:-2], _COMMA)[::2]), "set")))
    if text[0] == "{" and text[-1] == "}" and _depth(text[1:-1]) <= MAX_DEPTH:
        return _read(text[1:-1])
    if text[0] not in "([" or text[-1] not in ")]" or _depth(text[1:-1]) > MAX_DEPTH:
        return None
    parts = _split(text[1:-1], _COMMA)[::2]
    return Answer("tuple", text[0] + text[-1], tuple(map(_read, parts))) if len(parts) > 1 else None


def _depth(text: str) -> int:
    """Depth of nested brackets; more than `MAX_DEPTH` if one closes that was never opened, as in `a)(b`."""
    depth = deepest = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        deepest = max(deepest, depth)
        if depth < 0:
            return MAX_DEPTH + 1
    return deepest


def _read_matrix(text: str) -> Answer | None:
    found = re.fullmatch(
        r"[\[(]? ?\\begin\{([pb]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\} ?[\])]?", text, re.DOTALL
    )
    if not found:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2].strip().removesuffix(r"\\"))]
    if len({len(row) for row in rows}) > 1:
        raise Unreadable(text)
    return Answer("matrix", str(len(rows[0])), tuple(_read(cell) for row in rows for cell in row))


def _read_scalar(text: str) -> Answer:
    """A scalar in the parser's own spelling; every symbol is known."""
    percent = text.endswith("%")
    text = re.sub(r"\\text ?\{ ?([A-Za-z]) ?\}", r" \1 ", text.removesuffix("%").strip())
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    known = _COMMANDS.issuperset(re.findall(r"\\([A-Za-z]+)", text))
    if not known or _ODD.search(re.sub(r"\\[A-Za-z]+", r"\\", text)) or not _SCALAR.fullmatch(text):
        raise Unreadable(text)
    text = _BEFORE_BRACKET.sub(lambda found: found[1] or rf"{found[2]} \cdot ", text)
    return Answer("scalar", "%" if percent else "", (text.strip(),))


def _exactly(found: re.Match[str]) -> str:
    """A decimal, or a number with separators or an exponent, as integers; an integer as it is."""
    value = read_number(found[1])
    if value is None or found[1].isdigit():
        return found[1]
    return f"({value.numerator}/{value.denominator})" if value.denominator > 1 else str(value.numerator)


def _repeating(found: re.Match[str]) -> str:
    """A repeating decimal as a fraction of integers."""
    whole, fixed, repeated = found.groups()
    scale = 10 ** len(fixed)
    return f"({int(whole + fixed or '0')}/{scale}+{int(repeated)}/{scale * (10 ** len(repeated) - 1)})"


_SPELLINGS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"(?<![A-Za-z\\])({'|'.join(_PLAIN_COMMANDS)})(?![A-Za-z])", r"\\\1 "),
        (r"\\sqrt *\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt *(\[\d+\])? *(\d+|[A-Za-z])", r"\\sqrt\1{\2}"),
        (r"\^ ?\(([^()]*)\)", r"^{\1}"),
        (r"\^ ?-(\d+|[A-Za-z])", r"^{-\1}"),
        (rf"(\\(?:{'|'.join(_FUNCTIONS)})) *([_^]) *(?=[\w{{])", r"\1\2"),
        (rf"(\\(?:{'|'.join(_FUNCTIONS)})[_^])(\w)", r"\1{\2}"),
        (r"\\frac ?([0-9A-Za-z])", r"\\frac{\1}"),
        (r"(\\frac ?\{(?:[^{}]|\{[^{}]*\})*+\}) ?([0-9A-Za-z])", r"\1{\2}"),
        (r"\*\*", "^"),
        (r"(?<![\w.}^])(\d*)\.(\d*)\\overline ?\{(\d+)\}", _repeating),
        (rf"(?<![\w.}}^])({NUMBER})(?![\d.])", _exactly),
        # Mixed numbers, with or without a space.
        (r"(?<![\d}^_.)])(\d+) ?(\\frac\{\d+\}\{\d+\})", r"(\1+\2)"),
        (r"(?<![\d}^_.)])(\d+) (\d+/\d+)(?![\d^])", r"(\1+\2)"),
    )
]
# The parser takes a letter before a bracket for a function, so a product needs its sign; after an exponent it does not.
_BEFORE_BRACKET = re.compile(
    rf"(\\(?:{'|'.join(_FUNCTIONS)})(?:[_^]\{{[^{{}}]*\}})+) ?(?=\()|(?<![A-Za-z\\])([A-Za-z]|[\d)}}]) ?(?=\()"
)
# Words, adjacent numbers, brackets that are not a root's index, subscripts of or with other than letters and digits.
_ODD = re.compile(rf"(?<![A-Za-z])(?!{FACTORS})[A-Za-z]{{3,}}" r"|\d\s+\d|(?<!\\)\[|_(?!\{?\w)|(?<![A-Za-z\\])_")
