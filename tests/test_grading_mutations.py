"""Every gold stays right in every dress, and nothing that is made from it by a small change of meaning passes.

The shapes below are those of GSM8K's, MATH-500's and DAPO's golds. `--data-dir DIR` runs the same over the golds of the
datasets in DIR, some minutes.
"""

import random
import re
from fractions import Fraction

import pytest

from iapo_bench.config.world import WorldConfig
from iapo_bench.worlds import SPLITS
from iapo_bench.worlds.grading import Outcome, make_grader
from iapo_bench.worlds.load import load_world

SHAPES = {
    "integer": ["18", "0", "-7", "1234", "850000", "20922789888256", "-12"],
    "math": [
        *(
            "9",
            "-50",
            "2220",
            r"\frac{14}{3}",
            r"-\frac{35}{9}",
            r"\frac43",
            r"\frac 34",
            r"\frac9{19}",
            r"\dfrac{17}{50}",
        ),
        *(
            r"1\frac{4}{5}",
            r"137 \frac{1}{2}",
            "1.25",
            ".35625",
            ".0000672",
            "58,500",
            r"10,\!080",
            r"11,\! 111,\! 111,\! 100",
        ),
        *(r"\$18.90", r"\$32,\!348", r"90^\circ", r"15\mbox{ cm}^2", r"864 \mbox{ inches}^2", r"5.4 \text{ cents}"),
        *(
            r"\frac{270}7\text{ degrees}",
            "204_5",
            "4210_{5}",
            r"\pi",
            r"12\pi",
            r"\frac{20000}{\pi}",
            r"\sqrt{51}",
            r"11\sqrt2",
        ),
        *(
            r"-\sqrt{3}",
            r"\frac{3\sqrt{3}}{4}",
            r"1+2\sqrt{3}",
            r"1 \pm \sqrt{19}",
            "6 - 5i",
            "1+274i",
            "2k+2",
            "p - q",
            "3R^2",
        ),
        *(
            "-13x+3",
            "(a+5)(b+2)",
            r"\frac{11+9a}{20}",
            "x^3+3x-6",
            r"\cot x",
            "x=5",
            "y = 2x + 3",
            "5x - 7y + 11z + 4 = 0",
        ),
        *(
            "3, 5, 7",
            "1,-2",
            r"\{1\pm\sqrt{5},-2\}",
            "(6,31,-1)",
            r"\left( 3, \frac{\pi}{2} \right)",
            r"(2,\infty)",
            "(3,4]",
        ),
        *(r"(-\infty, 2) \cup (3, \infty)", r"x \in [-2,7]", r"\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]"),
        *(r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}"),
        *(r"\text{Evelyn}", r"\text{(C)}", r"\text{even}"),
    ],
}

DRESSES = """
%s | $%s$ | $$%s$$ | \\(%s\\) | \\[%s\\] | \\[ %s \\] | \\boxed{%s} | $\\boxed{%s}$ | \\(\\boxed{%s}\\) | **%s**
**$%s$** | `%s` | %s. | $%s$. | \\boxed{%s}. | \\[ %s. \\] | The answer is %s | The answer is $%s$.
The final answer is: %s | Answer: %s
"""
NAMED = "x = %s | x=%s | $x = %s$ | \\[x = %s\\] | \\boxed{x = %s}"
WITH_UNITS = """
%s \\text{ units} | %s\\text{ cm} | $%s$ units | %s\\,\\text{cm}^2 | %s apples | %s \\text{ km/h}
%s miles per hour
"""
SEPARATORS = (",", r"\,", "{,}", r",\!", " ", "\u202f", "'")

# What makes a right answer wrong, whatever it is.
TWISTS = """
\\neq %s | \\ne %s | \\not %s | not %s | > %s | < %s | \\geq %s | \\leq %s | x \\neq %s | x > %s | \\approx %s
\\sim %s | ~%s | %s|1 | 1|%s | %s \\cancel{1} | \\cancel{%s} | %s\\cancel{}1 | \\overline{%s} | %s... | %s?
%s or 987654 | %s, 987654 | %s \\text{ or } 987654 | %s = 987654321 | 987654321 = %s | x = 987654321 = %s
x = %s = 987654321 | -(x=%s) | %s + 1 | %s - 1 | %s \\pm 1 | %s \\text{ thousand} | at least %s | more than %s
about %s | It is not %s | The answer is not %s | The answer is not $%s$ | \\text{not } %s | neither %s
%s \\text{ is wrong} | %s is wrong | %s and a half | %s or so | %s_7 | %s \\mod 7 | f(%s) | \\cos %s | \\log %s
e^{%s} | %s < | %s = | %s \\cup \\{1\\} | %s \\setminus \\{%s\\} | \\{%s\\}, 0
"""
SWAPS = [
    *(
        (r"\pm", "+"),
        (r"\pm", "-"),
        (r"\cup", r"\cap"),
        (r"\sqrt", ""),
        (r"\pi", "e"),
        ("cm", "mm"),
        ("}^2", "}^3"),
        ("cents", "dollars"),
    ),
    *(
        (r"\cot", r"\tan"),
        (r"\infty", "100"),
        ("Evelyn", "Debra"),
        ("even", "odd"),
        ("(C)", "(D)"),
        ("x", "t"),
        ("i", "j"),
        ("k", "m"),
    ),
    *(("pmatrix", "vmatrix"), ("&", r"\\"), ("^2", "^3"), (" = ", r" \ne "), ("=", ">"), (r"\$", "€0")),
]
# Left to compute: wrong where golds are integers.
SUMS = """
%(twice)s/2 | \\frac{%(twice)s}{2} | %(less)s + 1 | %(less)s+1 = %(gold)s | %(gold)s*1 | %(gold)s \\times 1
\\sum_{k=1}^{%(gold)s} 1 | \\binom{%(gold)s}{1}
"""


def filled(forms: str, gold: str) -> list[str]:
    return [form.strip().replace("%s", gold) for line in forms.strip().splitlines() for form in line.split(" | ")]


def dressed(gold: str) -> list[str]:
    answers = filled(DRESSES, gold)
    if not re.search(r"=|\\in(?!f)|\\text\{(?! )", gold):
        answers += filled(NAMED, gold)
    if re.fullmatch(r"-?\d+", gold):
        answers += [*filled(WITH_UNITS, gold), f"{gold}.00"]
        groups = f"{int(gold):,}"
        answers += [groups.replace(",", separator) for separator in SEPARATORS]
    return answers


def twisted(gold: str, kind: str, generator: random.Random) -> list[str]:
    answers = filled(TWISTS, gold)
    for number in re.finditer(r"\d+", gold):
        digits = number[0]
        place = generator.randrange(len(digits))
        other = str((int(digits[place]) + generator.randrange(1, 10)) % 10)
        for changed in (
            str(int(digits) + 1),
            str(abs(int(digits) - 1)),
            f"1{digits}",
            digits[:place] + other + digits[place + 1 :],
        ):
            answers.append(gold[: number.start()] + changed + gold[number.end() :])
    for sign in re.finditer(r"[+-]", gold):
        answers.append(gold[: sign.start()] + ("-" if sign[0] == "+" else "+") + gold[sign.end() :])
    for old, new in SWAPS:
        pattern = rf"(?<![A-Za-z\\]){old}(?![a-z])" if old.isalpha() and len(old) == 1 else re.escape(old)
        answers.append(re.sub(pattern, lambda _: new, gold))  # noqa: B023
    if re.fullmatch(r"(\\left)?[(\[].*,.*[)\]]", gold) and r"\cup" not in gold:
        inner = re.sub(r"^(\\left)?.|(\\right)?.$", "", gold)
        answers += [rf"\{{{inner}\}}", inner, f"[{inner}[", f"({inner}]" if gold[-1] == ")" else f"({inner})"]
    if re.fullmatch(r"-?\d+", gold):
        answers += [
            f"-{gold}" if gold != "0" else "1",
            f"{gold}.5",
            f"{gold}.0000001",
            hex(int(gold)),
            f"{gold}_{{9}}",
            f"{gold}0",
        ]
        if kind == "integer":
            answers += filled(SUMS % {"gold": gold, "twice": 2 * int(gold), "less": int(gold) - 1}, gold)
    return sorted({answer for answer in answers if not equal_by_chance(answer, gold)})


def equal_by_chance(answer: str, gold: str) -> bool:
    """Whether a twist left the gold, or its value, as it was: `1.250` for `1.25`, `-0` for 0."""

    def value(text: str) -> Fraction | str:
        text = text.replace(r"\$", "")
        return Fraction(text) if re.fullmatch(r"-?\d*\.?\d+", text) else text

    return value(answer) == value(gold)


def tagged(answer: str) -> str:
    return f"<think> so </think> <answer> {answer} </answer>"


def judged(kind: str, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], Outcome]:
    with make_grader(kind) as grader:
        outcomes = grader.grade([tagged(answer) for answer, _ in pairs], [gold for _, gold in pairs])
    return dict(zip(pairs, outcomes, strict=True))


def check(kind: str, golds: list[str]) -> tuple[int, int]:
    """Grade all dresses and all twists of the golds; return how many of each there were."""
    right = judged(kind, [(answer, gold) for gold in golds for answer in dressed(gold)])
    assert [pair for pair, outcome in right.items() if outcome is not Outcome.CORRECT] == []
    generator = random.Random(0)
    wrong = judged(kind, [(answer, gold) for gold in golds for answer in twisted(gold, kind, generator)])
    assert [pair for pair, outcome in wrong.items() if outcome is not Outcome.WRONG] == []
    return len(right), len(wrong)


@pytest.mark.parametrize("kind", ["integer", "math"])
def test_golds_of_every_shape_stay_right_in_every_dress_and_no_twist_of_them_passes(kind):
    right, wrong = check(kind, SHAPES[kind])
    assert right > 20 * len(SHAPES[kind])
    assert wrong > 60 * len(SHAPES[kind])


@pytest.mark.parametrize("name", ["gsm8k", "math500", "dapo"])
def test_the_same_holds_of_a_datasets_own_golds(name, request):
    if (folder := request.config.getoption("--data-dir")) is None:
        pytest.skip("--data-dir names no directory with the datasets")
    world = load_world(WorldConfig(name=name, data_dir=folder), 0)
    golds = {problem.answer for split in SPLITS for problem in world.load(split)}
    print(name, check(world.grader, sorted(golds)))
