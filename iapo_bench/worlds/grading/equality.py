"""Whether two answers are the same: by their characters, as numbers, or shape by shape with the algebra of sympy."""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from iapo_bench.worlds.grading.literals import read_literal, read_number
from iapo_bench.worlds.grading.reading import Answer, Unreadable, read

# Digits to which scalars are compared.
DIGITS = 60
_MIXED = re.compile(r"(\d+),? (?:and|\\text ?\{ ?and ?\}) ?(?=\d+/\d|\\frac)")
_TOLERANCE = Fraction(1, 10 ** (DIGITS - 10))
# A decimal with at least this many significant digits, the last rounded, matches a value that has no finite decimal.
APPROXIMATE_DIGITS = 6


def same_text(answer: str, gold: str) -> bool | None:
    """Whether two tidied texts are the same answer, by their characters or, if both are plain numbers, by their values;
    None if it takes the algebra of `same`."""
    if _squeeze(answer) == _squeeze(gold):
        return True
    wanted = read_number(gold)
    if wanted is None:
        return None
    found = read_number(answer)
    if found is None and "%" not in answer:
        found = read_literal(answer)
    return None if found is None else found == wanted


def _squeeze(text: str) -> str:
    """A text without spaces that separate nothing, or `$` around it."""
    return re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", text.strip("$ "))


def same(answer: str, gold: str) -> bool:
    """Whether two tidied texts are the same answer. Raises Unreadable for a gold of no known shape.

    The algebra has no bound on time or memory: call it where both are limited.
    """
    wanted = read(gold)
    if wanted.kind == "scalar":  # if the gold is a list, `2 and 3/4` stays one
        answer = _MIXED.sub(r"\1 ", answer, count=1)
    try:
        return _same(read(answer), wanted)
    except (MemoryError, ImportError):
        raise
    except Exception:  # the answer is unreadable or too odd for the algebra; golds are checked
        return False


def _same(found: Answer, wanted: Answer) -> bool:
    """Whether two answers are the same; a name, a unit or `=` that only one of them has makes no difference."""
    if found.kind == "rounded":
        return _same(found.parts[0], wanted) and _is_near(found.label, wanted)
    if found.kind == "chain" or (found.kind == "equation" and wanted.kind not in ("named", "equation")):
        sides = found.parts[1:] if found.label == "quantity" else found.parts
        return all(_same(side, wanted) for side in sides)
    if _are_equations(found, wanted):
        return _same_equations(found, wanted)
    if found.kind == "named" != wanted.kind:
        found = found.parts[0]
    elif wanted.kind == "named" != found.kind:
        wanted = wanted.parts[0]
    if wanted.kind == "words" and found.kind == "scalar":  # a choice's letter
        return str(found.parts[0]).strip("( )").lower() == wanted.label
    if found.kind == "set" and (wanted.kind, wanted.label) == ("tuple", "()"):
        found = _in_order_of_names(found)
    if _is_letter(wanted) and found.kind in ("words", "scalar"):
        letter = found.label if found.kind == "words" else str(found.parts[0]).strip("( )").lower()
        if letter == wanted.parts[0].lower():
            return True
    if found.kind != wanted.kind:
        return False
    if wanted.kind == "scalar":
        return _same_scalars(found, wanted)
    if found.label != wanted.label or len(found.parts) != len(wanted.parts):
        return False
    if wanted.kind == "based":
        return found.parts == wanted.parts
    if wanted.kind in ("set", "union") and not any(part.kind == "dots" for part in wanted.parts):
        return _same_in_any_order(list(found.parts), wanted.parts)
    return all(map(_same, found.parts, wanted.parts))


def _in_order_of_names(values: Answer) -> Answer:
    """The values of different names, `x = 3, y = 4`, as a tuple; any other set unchanged."""
    names = {part.label for part in values.parts if part.kind == "named"}
    if len(names) < len(values.parts) or not values.parts:
        return values
    return Answer("tuple", "()", tuple(part.parts[0] for part in sorted(values.parts, key=lambda part: part.label)))


def _is_near(decimal: str, wanted: Answer) -> bool:
    """Whether a decimal is the gold's value, rounded."""
    scalar = wanted.parts[0] if wanted.kind == "named" else wanted
    number, decimals = read_number(decimal), len(decimal.partition(".")[2])
    if scalar.kind != "scalar" or number is None or _expression(scalar.parts[0]).free_symbols:
        return False
    return bool(2 * abs(_expression(scalar.parts[0]) - _rational(number)).evalf(DIGITS) * 10**decimals <= 1)


def _is_letter(answer: Answer) -> bool:
    """Whether a scalar is one capital letter, which may name a choice."""
    return answer.kind == "scalar" and re.fullmatch("[A-Z]", str(answer.parts[0]).strip()) is not None


def _same_in_any_order(found: list[Answer], wanted: Sequence[Answer]) -> bool:
    for part in wanted:
        match = next((other for other in found if _same(other, part)), None)
        if match is None:
            return False
        found.remove(match)
    return True


def _are_equations(found: Answer, wanted: Answer) -> bool:
    """Whether to compare two answers as equations whose sides may be moved: not where the gold is a name's value."""
    kinds = {found.kind, wanted.kind}
    if not kinds <= {"named", "equation"} or (kinds == {"named"} and found.label == wanted.label):
        return False
    if any(side.kind != "scalar" for side in (*found.parts, *wanted.parts)):
        return False
    return wanted.kind == "equation" or bool(_expression(wanted.parts[0].parts[0]).free_symbols)


def _same_equations(found: Answer, wanted: Answer) -> bool:
    """Whether the differences of both sides are multiples of each other."""
    left, right = _difference(found), _difference(wanted)
    if left.free_symbols != right.free_symbols:
        return False
    ratios = []
    for place in _points(left.free_symbols):
        above, below = left.subs(place).evalf(DIGITS), right.subs(place).evalf(DIGITS)
        if not (above.is_number and below.is_number and abs(above) > 10**-9 and abs(below) > 10**-9):
            return False
        ratios.append(above / below)
    return all(abs(ratio / ratios[0] - 1) < _TOLERANCE for ratio in ratios)


def _difference(equation: Answer) -> Any:
    """The left side minus the right one."""
    left = equation.label if equation.kind == "named" else equation.parts[0].parts[0]
    return _expression(left) - _expression(equation.parts[-1].parts[0])


def _same_scalars(found: Answer, wanted: Answer) -> bool:
    """Whether two scalars have the same value and compatible units; `50%` equals 50 and 1/2, but not `.5%`."""
    # `25% of the cake` and `25% increase` are 25%.
    units = tuple("%" if answer.label.startswith("%") else answer.label for answer in (found, wanted))
    if all(units) and units[0] != units[1]:
        return False
    percent = units.count("%") == 1
    expected = _expression(wanted.parts[0])
    if not percent and not expected.free_symbols and _approximates(found.parts[0], expected):
        return True
    value = _expression(found.parts[0])
    if _equal(value, expected) and (units != ("%", "") or not expected.is_number or abs(expected) >= 1):
        return True
    return percent and (_equal(value / 100, expected) if units[0] == "%" else _equal(value, expected / 100))


def _approximates(text: str, expected: Any) -> bool:
    """Whether a decimal is the rounded value of a number that has no finite decimal."""
    number, decimals = read_number(text), re.fullmatch(r"-?[\d ,]*\.(\d+)", text)
    if number is None or not decimals or len(re.sub(r"\D", "", text).lstrip("0")) < APPROXIMATE_DIGITS:
        return False
    exact = expected.doit()
    if not exact.is_real or (exact.is_Rational and _terminates(int(exact.q))):
        return False
    return bool(2 * abs(exact - _rational(number)).evalf(DIGITS) * 10 ** len(decimals[1]) <= 1)


def _terminates(denominator: int) -> bool:
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _rational(number: Fraction) -> Any:
    from sympy import Rational

    return Rational(number.numerator, number.denominator)


@lru_cache(maxsize=1024)
def _expression(latex: str) -> Any:
    """The sympy expression of a scalar. Raises Unreadable."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from sympy import Expr, I
    from sympy.core.function import AppliedUndef

    number = read_number(latex)
    if number is not None:
        return _rational(number)
    try:
        cased = ConversionConfig(lowercase_symbols=False)  # `R^2 - r^2` is not 0
        expression = latex2sympy(latex, is_real=False, normalization_config=None, conversion_config=cased)
    except (MemoryError, ImportError):  # an installation that is damaged says nothing of answers
        raise
    except Exception as error:  # the parser may raise anything
        raise Unreadable(latex) from error
    if not isinstance(expression, Expr) or expression.atoms(AppliedUndef):
        raise Unreadable(latex)
    return expression.subs({symbol: I for symbol in expression.free_symbols if str(symbol) == "i"})


def _equal(one: Any, other: Any) -> bool:
    """Whether two expressions agree at several points, and exactly if their difference is a rational number."""
    if one == other:
        return True
    if one.free_symbols != other.free_symbols:
        return False
    agreed = False
    for place in _points(one.free_symbols):
        values = [expression.subs(place).evalf(DIGITS) for expression in (one, other)]
        if not all(value.is_number and value.is_finite for value in values):
            continue
        if abs(values[0] - values[1]) > max(map(abs, values)) * _TOLERANCE:
            return False
        agreed = True
    if not agreed:
        return False
    difference = (one - other).doit()
    return not difference.is_Rational or difference == 0


def _points(symbols: set[Any]) -> list[dict[Any, Any]]:
    """Three points, the same in every run, at which no two symbols are equal; without symbols, one empty point."""
    starts = (Fraction(137, 101), Fraction(-89, 53), Fraction(223, 71)) if symbols else (Fraction(0),)
    ordered = sorted(symbols, key=str)
    return [{s: _rational(start + Fraction(17 * i, 29)) for i, s in enumerate(ordered)} for start in starts]
