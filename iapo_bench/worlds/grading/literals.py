r"""Numbers as people and models write them: one literal with a sign, separators, currency, units or words around it.

Everything here is linear in the text, needs no library and can run in the grading process itself.
"""

import re
import unicodedata
from fractions import Fraction

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_WORDS = {
    **{"×": "times", "·": "cdot", "⋅": "cdot", "π": "pi", "∞": "infty", "√": "sqrt", "±": "pm", "∓": "mp"},
    **{"≤": "le", "≥": "ge", "≠": "ne", "≈": "approx", "∈": "in", "∪": "cup", "∅": "emptyset", "∠": "angle"},
    **{"…": "ldots", "→": "to", "⇒": "to", "∴": "to", "\u2062": "cdot"},
    **{"θ": "theta", "α": "alpha", "β": "beta", "γ": "gamma", "λ": "lambda", "φ": "phi"},
}
_SYMBOLS = {
    **{symbol: rf"\{word} " for symbol, word in _WORDS.items()},
    **dict.fromkeys("−–—‐‑﹣", "-"),
    **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("’‘", "'"),
    **dict.fromkeys("“”«»", '"'),
    **dict.fromkeys("✓✔✅☑\ufe0e\ufe0f", " "),
    **{"º": "°", "。": ".", "、": ",", "\u2063": ",", "\u2064": "+", "∛": r"\sqrt[3]"},
}
# A unit above or below a fraction's bar: in `\text`, or letters that are not a product of variables.
_UNIT = r"((?:\\text\s*\{[^{}]*\}|[a-z]{4,}|[kcm]?m|mi|ft|in|k?g|mL|lb|oz|h|hr|min|s|sec)\s*(?:\^\s*(?:\d|\{\d\}))?)"
_ABOVE_UNIT = rf"\\frac\s*\{{\s*{_UNIT}\s*\}}\s*\{{\s*{_UNIT}\s*\}}"
# Applied in order. Unambiguous separators between digits vanish; spacing and sizing commands become a space.
_TYPOGRAPHY = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\,|\\!|\\ |(?<=\d)'(?=\d))\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\!\s*", ""),
        (r"(?<!\\)\\[,;:> ]|(?<=[\w})])~(?=[\w\\])|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick|en)space(?![A-Za-z])", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])\.?", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (
            r"\\(?:mbox|hbox|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mathsf|operatorname|emph)\s*(?=\{)",
            r"\\text",
        ),
        (r"\{\s*\\(?:rm|bf|it)\s", r"\\text{"),
        (r"\\(?:text)?color\s*\{[^{}]*\}", " "),
        (r"\\(?:rm|bf|it|mathbf|mathrm|boldsymbol|large|Large|LARGE|huge)(?![A-Za-z])(?!\s*\{)", " "),
        (r"\\boxed\s*([^\s{\\$]+)", r"\\boxed{\1}"),
        (r"\\text\s*\{[\s.,]*\}|\\(?:checkmark|blacksquare|qed)(?![A-Za-z])", " "),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"(\.\d*)\\(?:bar|dot|overline)\s*(?:\{(\d+)\}|(\d))", r"\1\\overline{\2\3}"),
        (r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\times "),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\bUSD ?(?=\d)", "¤"),
        (r"\bRs\. ?(?=\d)", "₹"),
        (rf"(?<=[\d}}])\s*{_ABOVE_UNIT}", r" \1/\2"),
        (r"(?<=\d)( (?:k?[gNW]|[km]?m)|k[gm]|ft) ?\\cdot ?(?=[mhs](?![A-Za-z]))", r"\1 "),
        (r"\\text\s*\{\s*([A-Za-z])\s*\}", r" \1 "),
        (r"\\(?:dots|cdots|dotsc)(?![A-Za-z])", r"\\ldots "),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:neq|not\s*=)", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])", "°"),
        (r"\\%", "%"),
    )
]
_WRAPPER = re.compile(r"\\(?:boxed|fbox|framebox|underline|bm|boldsymbol)\s*\{")

# Openings and endings that add nothing to an answer: arrows, bullets, an equals sign; `is the answer`.
_OPENING = re.compile(r"^(\$? ?)(?:\\(?:to|implies|[rR]ightarrow|therefore)(?![A-Za-z])|[•:]|\*(?= )|=(?![=>])) ?")
_VERDICT = re.compile(
    r"(?<=[\w)}$]) is (?:the )?(?:(?:final|correct|right) )?(?:answer|choice|option|correct|right)$", re.IGNORECASE
)
# A minus sign, or the word for it; money before the digits, or after.
_MONEY = "¤€£¥₹₩¢₱₪฿₫₽₺₴₦"
_GROUPED = (
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:[.,]\d+)?"
    r"|\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d+"
)
NUMBER = rf"(?:(?:{_GROUPED})(?![\d,])|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?![\dA-Za-z.]))?)"
_LITERAL = re.compile(
    rf"(?P<lead>[^\d{_MONEY}]*?)(?<![A-Za-z\d._^])(?P<sign>[-+]|(?:minus|negative)(?= ))?(?P<gap> ?)"
    rf"(?:[A-Z]{{0,3}}[{_MONEY}] ?)?(?P<inner>-?)(?P<number>{NUMBER})(?::00(?!\d))?(?P<tail>[^\d].*)?",
    re.DOTALL,
)
_PLAIN = re.compile(rf"(?P<sign>[-+]? ?)(?P<number>{NUMBER})")
_LEAD = re.compile(r"#*\s*(?:[^\W\d_][\w\s,.:'()*+-]*)?")
_EQUATED = re.compile(r"[^\W\d_(][\w\s,'()*+-]*(?:=|:=)\s*")
_TERM = r"\d* ?[A-Za-z](?:_\w+)?(?:\^\d)?"
# Quantities named by more than a letter: `|A \cup B|`, `E[X]`, `[ABC]`, `\angle ABC`.
MEASURED = (
    r"\|[A-Z][^|=\d]*\||(?:\\mathbb ?\{?E\}?|E)? ?\[[A-Z][^][=\d]*\]|m? ?\\(?:angle|overline|triangle) ?\{?[A-Z]+\}?"
)
_QUANTITY = re.compile(
    rf"\s*(?:{_TERM}(?: ?[+-] ?{_TERM})+|[A-Za-z](?:_\w+|\(-?\d+\)|\([a-z]\(-?\d+\)\))|{MEASURED})\s*"
)
_CALLED = re.compile(r"[^+-]*|[A-Za-z]\(.*")
# What may follow a number: a percent or degree sign, money, and words or units, `cm^2` and `km/h` among them.
_TAIL = re.compile(
    rf"\s*(?:US|CA|AU)?[%°{_MONEY}]?(?:[.](?=\s))?(?:[\s,;()'\"/-]*+[^\W\d_]++(?:\^-?[1-3])?+(?:[.](?=\s|$))?+)*+[\s)]*"
)
_EXPONENT = re.compile(r"(?<=[A-Za-z])\s*\^\s*\{?\s*(-?[1-3])\s*\}?")
_LETTER_UNITS = frozenset("mgshlLCFVNJW") | {"by", "cc"}
# Words that put in doubt whether the number beside them is the answer, and words that change the number.
_DOUBTS = (
    r"no|not|never|nor|neither|cannot|none|nan|null|wrong|incorrect|false|invalid|impossible|mistaken?|except|or|but|vs"
    r"|versus|unknown|undefined|maybe|perhaps|probably|possibly|presumably|guess\w*|un(?:sure|certain|like|likely|less)"
    r"|I (?:think|believe|suppose|assume)|(?:is|are|was|do|does)nt"
)
_OPERATORS = (
    r"half|halves|twice|thrice|double|triple|plus|minus|negative|divided|root|mod|modulo|sqrt|pi|sin|cos|tan|log|ln|exp"
    r"|choose"
)
# Not, half, perhaps; but `different`, `non-negative` and `radius` are harmless.
_CHINESE = "不(?!同)|非(?!负|負|零|空)|半(?!径|徑|周|圆|圓)|大[概致]|[也或][许許]"
# An operator word counts only directly before a number: `under 5`, but not `the area under the curve is 5`.
_BEFORE = re.compile(
    rf"\b(?:{_DOUBTS})\b|n't\b|~|{_CHINESE}|[约約](?!数|數)|[负負](?!数|數|整)|大[于於]|小[于於]|至[少多]|超[过過]|可能(?!的|性)"
    rf"|\b(?:{_OPERATORS}|times|than|least|most|about|approx\w*|around|roughly|nearly|almost|hardly|barely|over|under"
    r"|above|below|beyond|between|exceed(?:s|ing)?|up to|close to|near|circa|ca|without|(?:might|could|may) be"
    r"|(?:opposite|inverse|reciprocal|square|cube|complement|multiple|factor|divisor|power|sum|product|thirds?|quarters?)"
    r" of)\b(?: (?:of|to|by|equal|the|an?))*\W*$",
    re.IGNORECASE,
)
_AFTER = re.compile(
    rf"\b(?:{_DOUBTS}|{_OPERATORS}|times (?:[a-z]|an|the|that|itself|one|two|three|four|five|six|ten)|at least|at most"
    r"|approx\w*|roughly|give or take|and (?:above|over|up|below|under|beyond)"
    r"|too (?:high|low|big|small|large|many|much|few)"
    r"|(?<![A-Za-z] )(?:squared|cubed)|factorial|dozens?|hundreds?|thousands?"
    r"|[mbtr]+illions?|lakhs?|crores?|tens|gross|per mille|mill?|thou|grand|below zero|under par"
    r"|(?:ten|hundred|thousand|[mbtr]+illion|third|quarter|fif|six|seven|eigh|nin|eleven|twelf|\w+teen|\w+tie)(?:th)?s?)\b"
    r"|^-?ish\b|^ scores?\b"
    rf"|(?<![A-Za-z])(?:bn|mn|mln)\b|n't\b|{_CHINESE}|[万萬亿億千百]|^[十多余餘](?!边|邊)|左右|上下|以[上下内內外]|未[满滿満]",
    re.IGNORECASE,
)


def tidy(text: str) -> str:
    r"""The same text in one spelling: plain digits and signs, no spacing commands, no boxes, `$` around mathematics and
    `¤` for dollars."""
    text = re.sub("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/]([₀-₉]+)", _fraction, text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀-₉]+", lambda found: "_{" + found[0].translate(_SUBSCRIPTS) + "}", text)
    text = "".join(_SYMBOLS.get(character, character) for character in map(_spell, text))
    text = "".join(_SYMBOLS.get(character, character) for character in unicodedata.normalize("NFKC", text))
    # Drop characters of no width, such as joiners and direction marks.
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    for pattern, replacement in _TYPOGRAPHY:
        text = pattern.sub(replacement, text)
    # A one-line display is just its content; one with `&` or a line break is several things.
    text = re.sub(r"\\begin\{(align|equation|gather)(\*?)\}([^&\\]*(?:\\[A-Za-z][^&\\]*)*)\\end\{\1\2\}", r"$\3$", text)
    text = re.sub(r"(?<=\d)( ?)([ap])\.m\.", r"\1\2m", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<!\\)\\[()\[\]]|\$\$", "$", text.replace(r"\$", "¤"))
    text = _unwrap(text)
    if text.count("$") % 2:
        text = text.replace("$", "¤")
    text = re.sub(r"(?<![\w)}])\*\*(.+?)\*\*(?!\w)", r"\1", " ".join(text.split()))
    text = _OPENING.sub(r"\1", _undress(text))
    text = _VERDICT.sub("", re.sub(r"(?<![.,;\s]) ?[.,;]( ?\$)?$", r"\1", text))
    text = re.sub(r"^([A-Z])\)$", r"(\1)", text)
    return _undress(text)


def read_number(text: str) -> Fraction | None:
    """The value of a tidied text that is one number and nothing more, in any spelling; None for anything else."""
    found = _PLAIN.fullmatch(text.strip("$ "))
    return _value(found["number"], negative=found["sign"].startswith("-")) if found else None


def read_literal(text: str) -> Fraction | None:
    """The value of a tidied text that holds one number, with words, units or a name around it, and nothing to compute.

    None when there is no number or more than one, an operator, or a word that changes the value: `18 eggs` and `x = 18`
    are 18; `9*2`, `> 18`, `not 18`, `18 thousand`, `18x` and `36/2` are nothing.
    """
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text.replace("$", " "))
    text = _EXPONENT.sub(r"^\1", text).replace("{", "").replace("}", "")
    text = _valued(_undress(" ".join(text.split())))
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    found = _LITERAL.fullmatch(text)
    if not found or text.count("(") != text.count(")"):
        return None
    lead, tail = found["lead"], found["tail"] or ""
    if re.search(r"\w ?[-+*] ?$", lead + (found["sign"] or "" if found["gap"] else "")):
        return None  # `n - 18`, `n-18`
    if found["sign"] and found["inner"]:
        return None
    named = _EQUATED.fullmatch(lead)
    if not (named or _LEAD.fullmatch(lead)) or lead.count("(") != lead.count(")") or not _TAIL.fullmatch(tail):
        return None
    if _BEFORE.search(lead) or _AFTER.search(tail) or not _is_unit(tail):
        return None
    return _value(found["number"], negative=(found["sign"] or found["inner"] or "+")[0] in "-mn")


def _valued(text: str) -> str:
    """The stated value of `f(2)`, `a_7`, `100m + n` or `x^2 + y^2`; any other text unchanged.

    A statement about one name alone, `2x = 36`, is an equation to solve.
    """
    if reversed_ := re.fullmatch(r"([^=]*\d) ?= ?[A-Za-z]", text):
        return reversed_[1]
    quantity, equals, value = text.partition("=")
    if not equals or "=" in value or not _QUANTITY.fullmatch(quantity):
        return text
    several = len(set(re.findall(r"[A-Za-z]+", quantity))) > 1
    return value.strip() if several or _CALLED.fullmatch(quantity) else text


def is_harmless(prose: str) -> bool:
    """Whether words beside a mathematical answer leave it unchanged: no negation, comparison or multiplier."""
    return not (_BEFORE.search(prose) or _AFTER.search(prose)) and not re.search(r"[\\\d=<>|+*/^_-]", prose)


def _is_unit(tail: str) -> bool:
    """Whether the first word after a number is a word or a unit: `18 m` but not `18x`, `18xy`, `18/x` or `18 - x`."""
    first = re.match(r"(\s*[-,;])?[\s/(]*(?!a |o'clock)([abcxyz]{2,3}|[A-Za-z])(?![^\W\d_])", tail)
    return not first or (first[2] in _LETTER_UNITS and not (first[1] and len(first[2]) == 1))


def _fraction(found: re.Match[str]) -> str:
    return rf"\frac{{{found[1].translate(_SUPERSCRIPTS)}}}{{{found[2].translate(_SUBSCRIPTS)}}}"


def _spell(character: str) -> str:
    """A vulgar fraction, or a power of a unit, as LaTeX: `½` is one half, `㎡` is m^2."""
    name = unicodedata.normalize("NFKC", character)
    if re.fullmatch("[cdkm]?m[23]", name):
        return f" {name[:-1]}^{name[-1]}"
    if "\u2044" not in name or len(name) < 3:
        return character
    above, _, below = name.partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _undress(text: str) -> str:
    """A text without surrounding quotes and emphasis marks; a mark at one end alone stays."""
    text = text.strip()
    while len(text) > 1 and text[0] == text[-1] and text[0] in "*_`\"'":
        text = text[1:-1].strip()
    return text


def _unwrap(text: str) -> str:
    r"""The text with each `\boxed{...}` replaced by its content, in `$` unless it is within `$` already.

    An unclosed box stays.
    """
    while found := _WRAPPER.search(text):
        depth, end = 1, found.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        mark = "" if text[: found.start()].count("$") % 2 else "$"
        text = f"{text[: found.start()]} {mark}{text[found.end() : end - 1]}{mark} {text[end:]}"
    return text


def _value(number: str, *, negative: bool) -> Fraction:
    if re.search(r"[. ].*,|\..*\.", number):  # dots or spaces between thousands, then a decimal comma
        number = number.replace(".", "").replace(",", ".")
    value = Fraction(re.sub("[, ]", "", number))
    return -value if negative else value
