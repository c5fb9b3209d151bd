"""Equality of answers: every way to write the gold is right, and nothing else is."""

import re

import pytest

from iapo_bench.worlds.grading import Outcome, grade_integer, grade_math, make_grader

C, W = Outcome.CORRECT, Outcome.WRONG


def tagged(answer: str) -> str:
    return f"<think> so </think> <answer> {answer} </answer>"


LITERALS_OF_18 = """
18 | 18. | +18 | 18.0 | 18.00 | 018 | １８ | 1.8e1 | (18) | **18** | `18` | "18" | #### 18 | $18$ | $$18$$ | \\(18\\)
\\[ 18 \\] | \\boxed{18} | $\\boxed{18}$ | \\boxed{18}. | \\mathbf{18} | \\text{18} | {18} | \\displaystyle 18
$18 | \\$18 | $18.00 | US$18 | USD 18 | €18 | 18 € | £ 18 | Rs. 18 | 18 dollars | $\\$18$ | 18¢ | 18% | 18\\%
18 percent | 18° | 18^\\circ | $18^{\\circ}$ | 18 degrees | 18°C | 18 eggs | 18 \\text{ eggs} | $18$ eggs
18\\text{ cm}^2 | 18 cm^2 | 18 cm² | 18 km/h | 18 miles per hour | 18 m | 18 ft. | 18~m | 18 PM | 18:00 | 18th
18 boys and girls | 18 more than Bob | 18, which is even | She has 18 eggs left. | 18个 | 答案是18。 | x = 18 | x=18
18㎡ | 18 ㎤ | 18, a prime | 18, by counting | 18 times
$n = 18$ | a + b + c = 18 | f(x) = 18 | Total: 18 | Answer: 18 | The answer is 18 | The answer is $18$.
\\text{The answer is } 18 | The final answer is: 18 | |A \\cup B| = 18 | \\angle ABC = 18 | E[X] = 18 | 18 \\checkmark
"""
NOT_18 = """
17 | 81 | -18 | 180 | 1.8 | 18.5 | 1 8 | 18.0001 | minus 18 | negative 18 | −18 | $-18 | 18e1 | 0x12 | 18k | 18M
9*2 | 36/2 | \\frac{36}{2} | 17 + 1 | 17 + 1 = 18 | 9 \\times 2 = 18 | 18 = 17 | 17 = 18 | \\sqrt{324} | 18! | 18^2
18^1 | 2x = 36 | \\sum_{k=1}^{18} 1 | \\binom{18}{1} | n - 18 | y = x + 18 | -(x = 18) | --18 | - -18 | 18 - | 18 /
18/1 | (18, 19) | 18 mod 20 | 18_5 | 18_{10} | 18x | 18 x | 18i | 18e | 18 pi | 18\\pi | 18\\sqrt{2} | x18 | f(18)
|18| | \\lfloor 18 \\rfloor | \\overline{18} | \\neq 18 | \\ne 18 | \\not 18 | not 18 | isn't 18 | > 18 | < 18
\\geq 18 | x < 18 | x \\neq 18 | x != 18 | ≠ 18 | ≈ 18 | ~18 | \\pm 18 | 18|17 | 1\\cancel{}8 | \\cancel{18}
18\\cancel{}1 | 18 or 19 | 18, 19 | 18 and 19 | {18} or {19} | \\{18\\} | [18] | 18... | 18? | 3:18 | 18:30
about 18 | at least 18 | more than 18 | 18 or more | 18 thousand | 18 dozen | 18 hundred | 18 and a half
half of 18 | twice 18 | 18 is wrong | 不是18 | 18万 | 18左右 | 18以上 | eighteen | I do not know | None
n-18 | x+18 | x*18 | a * 18 | 18 - x | 18-x | 18/x | 18(x) | 18xy | 18 abc | 18, n | 18; n | (18, n)
18 times n
I think 18 | 18, I believe | 18 (approximately) | it isnt 18 | |x| = 18
"""
THOUSANDS = """
1,234 | 1234 | 1 234 | 1\\,234 | 1{,}234 | 1,\\!234 | 1\\ 234 | 1\\;234 | 1'234 | 1’234 | 1\u00a0234 | 1\u202f234
1\u2009234 | $1,234.00 | 1,234 eggs | \\boxed{1,234}
"""


def listed(text: str) -> list[str]:
    return [answer.strip() for line in text.strip().splitlines() for answer in re.split(r" \| ", line)]


@pytest.mark.parametrize("answer", listed(LITERALS_OF_18))
@pytest.mark.parametrize("grade", [grade_integer, grade_math])
def test_one_literal_in_any_dress_is_the_integer(grade, answer):
    assert grade(tagged(answer), "18") is C


@pytest.mark.parametrize("answer", listed(NOT_18))
def test_anything_else_than_one_literal_is_wrong_where_golds_are_integers(answer):
    assert grade_integer(tagged(answer), "18") is W


COMPUTED = [
    "9*2",
    "36/2",
    r"\frac{36}{2}",
    "17 + 1",
    "17 + 1 = 18",
    r"9 \times 2 = 18",
    r"\sqrt{324}",
    "18^1",
    r"\binom{18}{1}",
    "18/1",
]


@pytest.mark.parametrize("answer", sorted({*listed(NOT_18)} - {*COMPUTED, "- -18", "--18", "|18|"}))
def test_the_same_holds_of_an_integer_gold_in_mathematics_but_that_arithmetic_has_its_value(answer):
    assert grade_math(tagged(answer), "18") is W


@pytest.mark.parametrize("answer", COMPUTED)
def test_arithmetic_is_its_value_in_mathematics(answer):
    assert grade_math(tagged(answer), "18") is C


@pytest.mark.parametrize("grade", [grade_integer, grade_math])
@pytest.mark.parametrize("answer", listed(THOUSANDS))
def test_thousands_may_be_separated(grade, answer):
    assert grade(tagged(answer), "1234") is C
    assert grade(tagged(answer), "1235") is W


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("1.000.000", "1000000"),
        ("1,00,000", "100000"),
        ("12 345 678", "12345678"),
        ("1.234.567,0", "1234567"),
        ("- 1,234", "-1234"),
    ],
)
def test_other_countries_separators_are_read(answer, value):
    assert grade_integer(tagged(answer), value) is C


@pytest.mark.parametrize("answer", ["1,23", "1,2345", "1 23", "12,34,5", "1.234", "1,234,56", "1,234 567"])
def test_odd_groups_are_no_number_of_thousands(answer):
    assert grade_integer(tagged(answer), re.sub(r"\D", "", answer)) is W


RIGHT = [
    (
        r"\frac{14}{3}",
        [
            r"\frac{14}{3}.",
            "14/3",
            "28/6",
            r"$\dfrac{28}{6}$",
            "4.6666667",
            "4 2/3",
            r"4\frac23",
            r"The share is $\frac{14}{3}$ of a cup",
        ],
    ),
    (
        r"\frac{1}{2}",
        [
            "½",
            ".5",
            "0.5",
            "0.50",
            r"\frac12",
            r"\frac 1 2",
            r"\tfrac{1}{2}",
            "1/2",
            "50%",
            r"2^{-1}",
            r"$\boxed{\frac{1}{2}}$",
        ],
    ),
    (r"1\frac{1}{2}", ["1 1/2", "1 and 1/2", r"1 and \frac12", "1½", "1.5", "3/2", r"1 \frac{1}{2}"]),
    (
        r"4\sqrt{2}",
        [
            "4√2",
            "4√{2}",
            "4*sqrt(2)",
            "4 sqrt 2",
            r"4 \cdot \sqrt{2}",
            r"\sqrt{32}",
            r"\frac{8}{\sqrt2}",
            "√32",
            "5.656854",
        ],
    ),
    (r"\frac{\pi}{6}", ["π/6", r"\pi/6", "pi/6", r"\frac{1}{6}\pi", "0.523599"]),
    (".0000672", ["0.0000672", "6.72e-5", r"6.72 \times 10^{-5}", r"6.72 \cdot 10^{-5}"]),
    ("42", ["4.2e1", r"4.2 \times 10^1", r"\frac{84}{2}", "x = 42", r"x = \frac{84}{2} = 42", "40 + 2 = 42"]),
    (r"\$18.90", ["18.9", "$18.90", "18.90 dollars", r"\$ 18.90", "x = $18.90"]),
    ("58,500", ["58500", "58 500", r"58{,}500", "58,500"]),
    (r"5.4 \text{ cents}", ["5.4", "5.4 cents", r"\[ 5.4 \text{ cents} \]", "5.4¢", "5.4 cent"]),
    (
        r"864 \mbox{ inches}^2",
        ["864", "864 square inches", "864 in^2", r"\[ 864 \mbox{ inches}^2 \]", "864 inches squared"],
    ),
    (r"15\mbox{ cm}^2", ["15", "15 cm^2", "15 cm²", r"15\,\mathrm{cm}^2", "15 square centimeters"]),
    (
        "60",
        ["60 miles/hour", "60 miles per hour", r"60 \text{ km}/\text{h}", "60 m/s", r"60\ \mathrm{m/s}"],
    ),
    (r"90^\circ", ["90", "90°", "90 degrees", r"90^{\circ}", r"90\text{ degrees}", "x = 90°"]),
    (r"\frac{270}7\text{ degrees}", [r"\frac{270}{7}", "270/7 degrees", r"\frac{270}{7}^\circ", "270/7°"]),
    ("204_5", ["204_{5}", "$204_5$", r"204_{\text{five}}", "204₅", r"204_\text{five}"]),
    ("-2 + 7i", ["7i - 2", "-2+7i", "i(7 + 2i)"]),
    ("(a+5)(b+2)", ["ab + 2a + 5b + 10", "(b+2)(a+5)", r"(a+5) \cdot (b+2)"]),
    (r"\frac{11+9a}{20}", ["(11+9a)/20", r"\frac{9a+11}{20}", r"\frac{9a}{20} + \frac{11}{20}"]),
    ("3R^2", ["3R^{2}", "3 R²", "3*R*R"]),
    (r"\cot x", [r"\frac{\cos x}{\sin x}", "cot(x)", r"\frac{1}{\tan x}"]),
    ("x=5", ["5", "x = 5", "$x=5$"]),
    ("y = 2x + 3", ["2x+3", "y = 3 + 2x", "2x - y + 3 = 0", "y - 3 = 2x"]),
    ("5x - 7y + 11z + 4 = 0", ["5x + 11z + 4 = 7y", "10x - 14y + 22z + 8 = 0", "-5x + 7y - 11z - 4 = 0"]),
    ("3, 5, 7", ["7, 5, 3", "3, 5 and 7", r"\{3, 5, 7\}", "3,5,7", "$3$, $5$, and $7$", r"3, 5, \text{ and } 7"]),
    ("1,-2", ["-2, 1", "x = 1, x = -2", "x = 1 or x = -2", r"$x=1$ or $x=-2$"]),
    (r"1 \pm \sqrt{19}", ["1 ± √19", "1+√19, 1-√19", r"x = 1 \pm \sqrt{19}", r"\{1-\sqrt{19}, 1+\sqrt{19}\}"]),
    (r"\{1\pm\sqrt{5},-2\}", [r"-2, 1 \pm \sqrt5", r"1+\sqrt5, 1-\sqrt5, -2"]),
    (
        r"\left( 3, \frac{\pi}{2} \right)",
        [r"(3, \frac{\pi}{2})", "(3,π/2)", r"$\left(3, \frac{\pi}{2}\right)$", r"(3, \tfrac12\pi)"],
    ),
    (r"(2,\infty)", ["x > 2", "2 < x", r"x \in (2, \infty)", "(2, ∞)", r"(2, +\infty)"]),
    (r"x \in [-2,7]", ["[-2,7]", r"-2 \le x \le 7", "-2 <= x <= 7", r"7 \geq x \geq -2"]),
    ("(3,4]", [r"3 < x \leq 4", "(3, 4]", r"\left(3,4\right]"]),
    (
        r"(-\infty, 2) \cup (3, \infty)",
        ["x < 2 or x > 3", "(-∞,2)∪(3,∞)", r"(3,\infty) \cup (-\infty,2)", r"x<2 \text{ or } x>3"],
    ),
    (
        r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
        [r"\begin{bmatrix}-1&0\\0&-1\end{bmatrix}", r"\left(\begin{array}{cc}-1&0\\0&-1\end{array}\right)"][:1],
    ),
    (
        r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}",
        [r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}", r"\begin{pmatrix} \frac15 \\ -\frac{18}{5} \end{pmatrix}"],
    ),
    (
        r"\text{Evelyn}",
        ["Evelyn", "evelyn", "The answer is Evelyn.", r"\textbf{Evelyn}", "**Evelyn**", r"$\text{Evelyn}$"],
    ),
    (
        r"\text{(C)}",
        ["C", "(C)", r"\text{C}", "The answer is (C).", "Option C", r"\boxed{\text{(C)}}", "$C$", r"\mathrm{(C)}"],
    ),
    (r"50\%", ["50%", "50 percent", "0.5", r"\frac12", "50"]),
    (r"1, 2, \ldots, n", [r"1,2,\ldots,n", r"1, 2, \dots, n", "1, 2, …, n"]),
    (
        r"\frac{3}{4}",
        [
            *(
                r"Therefore, \boxed{\frac34}.",
                r"She needs \boxed{\frac34} cups",
                r"**Answer:** \frac{3}{4}",
                r"= \frac34",
            ),
            *(r"The value of $x$ is $\frac34$.", r"a + b = \frac34", r"P(X) = \frac34", r"$\sin \theta = \frac{3}{4}$"),
            *(
                r"\text{The answer is }\frac34",
                r"The answer is: **\(\frac34\)**",
                r"Thus $x=\frac34$",
                "¾",
                "3⁄4",
                "75%",
            ),
            *(
                r"\frac34 \frac{\text{km}}{\text{h}}",
                r"$\frac34$ of a cup",
                r"x = \boxed{\frac34}",
                "The answer is 3/4",
            ),
        ],
    ),
    (r"\frac{1}{6}", [r"0.1\overline{6}", "0.166667", r"\frac{-1}{-6}"]),
    (r"\text{ellipse}", ["an ellipse", "It is an ellipse.", "Ellipse"]),
    ("(3,4)", ["(x,y) = (3,4)", "$(3, 4)$", "( 3 , 4 )"]),
]
WRONG = [
    ("204_5", ["204_6", "204", "402_5", "204_{50}", "54", "2040_5", "1204_5"]),
    (r"\frac{1}{2^{99}}", [r"\frac{1}{2^{98}}", "0", r"-\frac{1}{2^{99}}", r"\frac{1}{2^{99}+1}"]),
    (
        r"1 - \frac{1}{\mathrm{e}}",
        [r"1 + \frac{1}{\mathrm{e}}", r"1 - \mathrm{e}", r"1 - \frac{1}{\mathrm{e}} + 10^{-30}"],
    ),
    (r"1, 2, \ldots, n", [r"1, 3, 5, \ldots, 2n-1", "1, 2, n", r"2, 1, \ldots, n"]),
    ("4", ["4√2", "4x", r"4 \sqrt{2}", r"4 + 10^{-40}", "3.9999999"]),
    (r"15\mbox{ cm}^2", [r"15\mbox{ cm}^3", "15 cm", "15 m^2", "15^2", "15 inches^2"]),
    (r"5.4 \text{ cents}", ["5.4 dollars", "$5.4", "54 cents", r"5.4 \text{ or } 6"]),
    (r"\$36", ["36 cents", "-$36", "$360"]),
    ("(1,2)", [r"\{1,2\}", "1,2", "(2,1)", "[1,2]", "[1,2)", "(1,2,3)", "(1)", "1 < 2"]),
    ("3, 1/2", ["3 1/2", "7/2"]),
    ("1,-2", ["(1,-2)", "1", "1, 2", "1, -2, 3", "1, 1", "1 and 2", "1,-2,-2"]),
    ("x=5", ["-(x=5)", "y=5", "2x=10", r"x \neq 5", "x > 5", "x = 6 = 5", "x = 5 = 6", "-x=5"]),
    ("y = 2x + 3", ["y = 2x - 3", "-y = 2x + 3", "x = 2y + 3", "z = 2x + 3", r"y \ne 2x+3", "y > 2x+3", "3"]),
    (
        "5x - 7y + 11z + 4 = 0",
        ["5x - 7y + 11z - 4 = 0", "5x - 7y + 11z + 4", r"5x - 7y + 11z + 4 \le 0", "5x - 7y + 11z + 4 = 1", "0"],
    ),
    (r"(2,\infty)", ["[2,\\infty)", "x < 2", r"x \geq 2", "(2,-\\infty)", "2", "> 2", r"\{2, \infty\}"]),
    (
        r"x \in [-2,7]",
        ["(-2,7)", "[-2,7)", "[-2,8]", r"x \notin [-2,7]", "y \\in [-2,7]", "-2 < x < 7", r"-2 \le x \ge 7"],
    ),
    (
        r"(-\infty, 2) \cup (3, \infty)",
        [
            r"(-\infty, 2) \cap (3, \infty)",
            r"(-\infty, 2)",
            r"(-\infty, 3) \cup (2, \infty)",
            r"(-\infty, 2] \cup (3, \infty)",
            r"(2, 3)",
        ],
    ),
    (r"\frac{11}{36}", ["0.3056", "0.305555", "11/35", r"\frac{36}{11}", r"11\frac{1}{36}", r"\frac{11}{36}x"]),
    (".0000672", [".0000671", ".0000673", "0", ".000067", ".00006720001"]),
    ("0.15", ["0.15000001", "0.149999999", "15", "0.15x"]),
    (r"1\frac{4}{5}", [r"\frac45", "1.45", r"1 \cdot \frac45", "14/5"]),
    (r"1 \pm \sqrt{19}", [r"1 + \sqrt{19}", r"1 - \sqrt{19}", r"\sqrt{19} \pm 1", r"2 \pm \sqrt{19}"]),
    (r"6 - 5i", ["6 + 5i", "6 - 5j", "6 - 5", "-6 + 5i"]),
    (r"\cot x", [r"\tan x", r"-\cot x", r"\cot y", r"\cot 2x", r"\cot"]),
    (
        r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
        [
            r"\begin{pmatrix} 1 & 0 \\ 0 & -1 \end{pmatrix}",
            r"\begin{vmatrix} -1 & 0 \\ 0 & -1 \end{vmatrix}",
            r"\begin{pmatrix} -1 & 0 & 0 & -1 \end{pmatrix}",
            "1",
        ],
    ),
    (r"\text{Evelyn}", ["Bob", "not Evelyn", "Evelyn or Bob", "Evelyn, Bob", "It is not Evelyn", "Evel", "5"]),
    (r"\text{(C)}", ["(D)", "C and D", "not C", "C, D", "5"]),
    (
        "5",
        [
            *("2x = 5", "-a = 5", r"2 \cdot \boxed{5}", r"-\boxed{5}", r"\boxed{5}^2", r"\boxed{5} or \boxed{6}"),
            *("The value of $5$ is $7$", "It is not $5$ but $x$", "$x$ is not $5$", r"x \neq y = 5", "f(5)"),
            *(
                r"5\\6",
                r"5\quad 6",
                "5\n6",
                r"5\phantom{6}",
                r"5 \bmod 7",
                r"5 \pmod{7}",
                "5 mod 7",
                "5 % 7",
                "5=",
                "= > 5",
            ),
            *(
                r"\lim_{x \to 5} x",
                r"\max(5, 3)",
                r"\int_0^5 dx",
                "5 x/y",
                r"5 \text{ or } 6",
                "5; 6",
                r"\frac{5}{}",
                "5_{}",
            ),
            *(r"\boxed{5}\boxed{6}", r"\boxed{5}, no, \boxed{6}"),
        ],
    ),
    (r"\sqrt{51}", [r"\sqrt{51} + \frac{\pi}{10^{30}}", r"\sqrt{51} - 10^{-30}\pi", r"-\sqrt{51}", "51"]),
    (r"\frac13", [r"0.\overline{4}", "0.3", "0.33333", r"\overline{\frac13}"]),
    (
        r"\frac{3}{4}",
        [
            r"The answer is not \frac{3}{4}",
            r"The answer is $\frac{3}{5}$",
            r"$\frac34$ or $\frac12$",
            r"$\frac34$ is wrong",
            r"\frac{3}{4} \text{ or } \frac12",
        ],
    ),
    (
        "1234567890123456789012345678901234567890123456789012345678901234567890",
        ["1234567890123456789012345678901234567890123456789012345678901234567891"],
    ),
]


@pytest.fixture(scope="module")
def math():
    with make_grader("math") as grader:
        yield grader


@pytest.mark.parametrize(("gold", "answers"), RIGHT, ids=[gold for gold, _ in RIGHT])
def test_every_way_to_write_the_gold_is_right(math, gold, answers):
    answers = [gold, *answers]
    outcomes = math.grade([tagged(answer) for answer in answers], [gold] * len(answers))
    assert [a for a, outcome in zip(answers, outcomes, strict=True) if outcome is not C] == []


@pytest.mark.parametrize(("gold", "answers"), WRONG, ids=[gold for gold, _ in WRONG])
def test_what_is_not_the_gold_is_wrong(math, gold, answers):
    outcomes = math.grade([tagged(answer) for answer in answers], [gold] * len(answers))
    assert [(a, outcome) for a, outcome in zip(answers, outcomes, strict=True) if outcome is not W] == []


@pytest.mark.parametrize(
    "answer", ["18bn", "18 lakh", "18 tens", "18 tenths", "18 quarter", "18 per mille", "anything but 18"]
)
def test_a_scale_or_a_negation_is_no_literal(answer):
    text = f"<think> so </think> <answer> {answer} </answer>"
    assert [str(found) for found in make_grader("integer").grade([text], ["18"])] == ["WRONG"]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (r"\begin{align*} 5 \end{align*}", "CORRECT"),
        (r"\begin{equation}5\end{equation}", "CORRECT"),
        ("5 a.m.", "CORRECT"),
        (r"\begin{align*} 5 & 6 \end{align*}", "WRONG"),
        (r"\begin{align*}5\\6\end{align*}", "WRONG"),
    ],
)
def test_a_display_of_one_line_is_its_contents(answer, right):
    text = f"<think> so </think> <answer> {answer} </answer>"
    assert [str(found) for found in make_grader("math").grade([text], ["5"])] == [right]
