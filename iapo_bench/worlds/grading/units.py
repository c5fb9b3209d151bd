r"""Units behind a scalar: `15\text{ cm}^2`, `60 miles per hour`, `$18.90`, `90^\circ`."""

import re

from iapo_bench.worlds.grading.literals import is_harmless

# Spellings of a unit, in the singular, by its canonical name.
_SPELLINGS = {
    "degree": "deg °",
    "in": "inch inche",
    "ft": "foot feet",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "km": "kilometer kilometre",
    "m": "meter metre",
    "s": "second sec",
    "h": "hour hr",
    "min": "minute",
    "¤": "dollar usd",
    "cent": "¢",
    "mi": "mile",
    "mi/h": "mph",
    "km/h": "kph kmph",
    "yd": "yard",
    "kg": "kilogram",
    "g": "gram",
    "%": "percent percentage pct",
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_PLURAL = re.compile(r"(?<=[a-z]{3})s$")
_LETTERS = "mgshlLNJW"
# Letters behind a number that are variables: `xy`, `bh`, `mv`, `xyz`.
FACTORS = (
    "(?!(?:in|ft|cm|[dkm]m|mi|yd|[km]g|lb|oz|ml|hr|yr|wk|pt|qt|pc|tsp|cc|ms|sq|cu|[ap]m|[kmr]p[hm]|mpg|fps|st|nd|rd|th"
    "|of|as|an|on)s?(?![A-Za-z]))(?:[a-z]{2}|[b-df-hj-np-tv-z]{3}|[abcxyz]{3})(?![A-Za-z])"
)
_WORD = (
    rf"(?:\\text ?\{{[^{{}}]*\}}|[¤¢°%]|[A-Za-z]{{2,}}+\.?|(?<=[ /])[{_LETTERS}]|[mgsh](?=/))"
    r"(?: ?\^ ?\{?-?\d\}?)?"
)
_BEHIND = re.compile(
    rf"(?P<core>.*(?:[\d}})\]°]|\\pi(?= )|[^\s/](?= ?\\text))) ?(?P<unit>(?!{FACTORS}){_WORD}(?: ?/? ?{_WORD})*)",
    re.DOTALL,
)
_MONEY = re.compile(r"(^|= ?)(-?) ?(?:US)?¤ ?(?=[\d.-])")


def split_unit(text: str, commands: frozenset[str]) -> tuple[str, str] | None:
    """A text without money before it or a unit behind it, and the unit's canonical name; None if words change its
    value.

    `commands`: words that are mathematics, not units, even without a backslash.
    """
    text, money = _MONEY.subn(r"\1\2", text)
    if money:
        return text, "¤"
    text = re.sub(r"(?<=[\d/ ])sec$", "s", text)
    text = re.sub(r"(\\text ?\{[^{}]*\}) ?\\cdot ?(?=\\text| ?[mhs](?![A-Za-z]))", r"\1 ", text)
    unit = ""
    # The core is matched greedily, so it may still end with the front of a unit.
    while (found := _BEHIND.fullmatch(text)) and commands.isdisjoint(re.findall(r"(?<!\\)[A-Za-z]+", found["unit"])):
        if _is_factor(found["unit"], found["core"]):
            break
        unit, text = f"{found['unit']} {unit}".strip(), found["core"].strip()
    return (text, unit_name(unit)) if unit.count("%") <= 1 and is_harmless(_prose(unit)) else None


def unit_name(text: str) -> str:
    """One name for all spellings of a unit: `square inches` and `in^2` are `in^2`."""
    text = re.sub(r"\\text|[{} .,]", " ", text)
    text = re.sub(r"\b(?:sq|square|squared)\b(.*)", r"\1^2", text)
    text = re.sub(r"\b(?:cu|cubic|cubed)\b(.*)", r"\1^3", text)
    text = re.sub(r"\b([a-z]+) *\^ *-1", r"/\1", re.sub(r"\bper\b", "/", text))
    words = [_PLURAL.sub("", word.lower()) for word in re.findall(r"[^\W\d_]+|[°¤¢%/]|\^ *-?\d", text)]
    return "".join(_NAMES.get(word, word) for word in words).replace(" ", "")


def _is_factor(unit: str, core: str) -> bool:
    r"""Whether a letter behind a core is one more of its variables and no unit: `h` in `\pi r^2 h`."""
    term = re.split(r"[=<>,;:]|\\(?:le|ge|ne|in|approx)(?![a-z])", core)[-1]
    letters = re.sub(r"\\text ?\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]{3,}|(?<=\d)e", "", term)
    return bool(re.match("[A-Za-z](?![A-Za-z])", unit) and re.search("[A-Za-z]", letters))


def _prose(unit: str) -> str:
    return re.sub(r"\\text|[\^/-]|\d", " ", unit)
