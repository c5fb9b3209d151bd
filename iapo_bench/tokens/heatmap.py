"""Pages that colour every token by a number, its information about the answer or its credit: one HTML file each, which
works offline.

Pure functions from scored transcripts to text. The template escapes everything that comes from a transcript.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup, escape

from iapo_bench.report.style import INK, PALETTE

POSITIVE, NEGATIVE = PALETTE[0], PALETTE[1]  # blue and vermilion: apart in every kind of colour vision, and in print
SCALE_QUANTILE = 0.98  # of absolute values: one extreme token must not bleach all the others
STRONGEST = 0.8  # of a full hue, so that black text stays readable on it
SHARE = 0.9
# Colours come in steps on either side of white: `p` above 0, `n` below.
STEPS = 16
CLASSES = {f"p{step}": step / STEPS for step in range(STEPS + 1)} | {
    f"n{step}": -step / STEPS for step in range(1, STEPS + 1)
}
FOLDED_AFTER = 20  # transcripts
LONG_PROMPT = 300  # characters, beyond which a prompt is folded

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _PLOT = 860, 180, 46, 10, 10, 120  # of the curve, in pixels


@dataclass(frozen=True)
class ScoredTranscript:
    """A completion of T tokens with the model's numbers for each. Entropies and log-probabilities are in nats."""

    id: str
    prompt: str
    tokens: tuple[str, ...]  # (T,) as decoded
    token_ids: tuple[int, ...]  # (T,)
    roles: tuple[str, ...] | None  # (T,), where the vocabulary has roles
    logp: tuple[float, ...]  # (T,)
    entropy: tuple[float, ...]  # (T,) of the distribution that each token was drawn from; empty: not computed
    answer_entropy: tuple[float, ...]  # (T+1,) of the first answer token, after 0 to T tokens; empty: not computed
    correct: bool | None = None
    credit: tuple[float, ...] | None = None  # (T,) advantage times weight in the loss
    note: str = ""  # shown beside the id

    @property
    def values(self) -> tuple[float, ...]:
        """The numbers shown in colour, (T,): the credit where there is one, else the information."""
        return self.information if self.credit is None else self.credit

    @property
    def information(self) -> tuple[float, ...]:
        """Each token's information about the answer, nats, (T,): the answer entropy before it minus after it."""
        e = self.answer_entropy
        return tuple(before - after for before, after in itertools.pairwise(e))


class _Quantity(NamedTuple):
    """The wording of a page: names, labels and explanations of its numbers."""

    name: str
    title: str
    less: str
    more: str
    unit: str
    marked: str  # the tokens with dotted underlines
    explained: str


_INFORMATION = _Quantity(
    name="information",
    title="What each token tells about the answer",
    less="makes the answer less certain",
    more="tells about the answer",
    unit=" nats",
    marked="make the answer less certain",
    explained="After every token the model is made to answer at once, by the postfix; a token\u2019s information is "
    "the entropy of the answer that it takes away. The distribution is that of the first answer token, a proxy for the "
    "whole answer (arXiv 2602.19049).",
)
_CREDIT = _Quantity(
    name="credit",
    title="What the method rewarded",
    less="made less likely",
    more="made more likely",
    unit="",
    marked="the update makes less likely",
    explained="A token\u2019s credit is its advantage times its weight in the loss, as the method gave it at that "
    "step: the update makes a token of positive credit more likely, one of negative credit less. Rewards are those "
    "after the method\u2019s own terms.",
)


def heatmap_page(transcripts: Sequence[ScoredTranscript], *, model: str, postfix: str, temperature: float) -> str:
    """The page of information, self-contained HTML. All transcripts share one colour scale and one y axis."""
    facts = {"model": model, "postfix": postfix, "temperature": f"{temperature:g}"}
    return _page(transcripts, _INFORMATION, facts)


def credit_page(completions: Sequence[ScoredTranscript], facts: Mapping[str, str]) -> str:
    """The page of credit, for completions that have `credit`; `facts` stand at its head."""
    return _page(completions, _CREDIT, facts)


def _page(transcripts: Sequence[ScoredTranscript], quantity: _Quantity, facts: Mapping[str, str]) -> str:
    scale = colour_scale([value for transcript in transcripts for value in transcript.values])
    highest = max((max(transcript.answer_entropy or (0.0,)) for transcript in transcripts), default=0.0)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iapo_bench.tokens"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("tokens.html.j2").render(
        quantity=quantity,
        facts=facts,
        ink=INK,
        scale=scale,
        percent=round(100 * SCALE_QUANTILE),
        share_percent=round(100 * SHARE),
        classes=[(name, background(value * scale, scale)) for name, value in CLASSES.items()],
        ramp=[name for name, value in sorted(CLASSES.items(), key=lambda item: item[1]) if value * 4 == int(value * 4)],
        folded_after=FOLDED_AFTER,
        long_prompt=LONG_PROMPT,
        with_roles=any(transcript.roles for transcript in transcripts),
        transcripts=[_shown(transcript, quantity, scale, highest) for transcript in transcripts],
    )


def colour_scale(values: Sequence[float]) -> float:
    """The absolute value of the strongest colour: a high quantile, and never so low that rounding errors get a hue."""
    return max(float(np.quantile(np.abs(values), SCALE_QUANTILE)) if len(values) else 0.0, 1e-3)


def background(value: float, scale: float) -> str:
    """The colour of a token: white at 0, blue above, vermilion below, in proportion up to `scale`."""
    strength = STRONGEST * min(1.0, abs(value) / scale)
    hue = POSITIVE if value > 0 else NEGATIVE
    parts = [round(255 + strength * (int(hue[i : i + 2], 16) - 255)) for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in parts)


def concentration(information: Sequence[float]) -> float | None:
    """The smallest share of the tokens that holds 90% of the positive information; None where there is none."""
    positive = sorted((value for value in information if value > 0), reverse=True)
    if not positive:
        return None
    sums = np.cumsum(positive)
    # A sum of floats may miss its own 90% by a rounding error.
    needed = int(np.searchsorted(sums, SHARE * sums[-1] * (1 - 1e-9))) + 1
    return needed / len(information)


def visible(text: str) -> str:
    """Text of a token with its line breaks and control characters marked; a marked line break still breaks the line."""
    marked = [
        "↵\n"
        if character == "\n"
        else chr(0x2400 + ord(character))
        if character < " " and character != "\t"
        else character
        for character in text
    ]
    return "".join(marked)


def _shown(transcript: ScoredTranscript, quantity: _Quantity, scale: float, highest: float) -> dict[str, Any]:
    e, values = transcript.answer_entropy, transcript.values
    summary = _information_facts(transcript) if quantity is _INFORMATION else _credit_facts(transcript)
    numbers = {"answer": e, "logp": transcript.logp, "entropy": transcript.entropy, "credit": transcript.credit}
    return {
        "id": transcript.id,
        "note": transcript.note,
        "prompt": transcript.prompt,
        "correct": transcript.correct,
        "summary": {"tokens": str(len(transcript.tokens)), **summary},
        "completion": _completion(transcript.tokens, np.array(values), scale),
        "numbers": {name: _numbers(some) for name, some in numbers.items() if some},
        "role_names": list(dict.fromkeys(transcript.roles or ())),
        "role_places": _places(transcript.roles or ()),
        "roles": _by_role(transcript),
        "curve": _curve(e, highest) if e else None,
    }


def _information_facts(transcript: ScoredTranscript) -> dict[str, str]:
    e = transcript.answer_entropy
    share = concentration(transcript.information)
    return {
        "answer entropy at the start": f"{e[0]:.3f} nats",
        "at the end": f"{e[-1]:.3f} nats",
        "information in total": f"{_signed(e[0] - e[-1])} nats",
        f"tokens with {SHARE:.0%} of the positive information": "none" if share is None else f"{share:.1%}",
    }


def _credit_facts(transcript: ScoredTranscript) -> dict[str, str]:
    values = transcript.values
    spread = f"{_signed(min(values))} to {_signed(max(values))}"
    return {"mean credit": _signed(fmean(values)), "of its tokens": spread}


def _completion(tokens: Sequence[str], values_T: np.ndarray, scale: float) -> Markup:
    """The tokens, each in the class of its colour. Joined here: a template is ten times slower on many tokens."""
    steps_T = np.rint(STEPS * np.minimum(1.0, np.abs(values_T) / scale)).astype(int)
    names = np.where((values_T < 0) & (steps_T > 0), -steps_T, steps_T).tolist()
    shown = (
        f"{gap}<i class={'n' if step < 0 else 'p'}{abs(step)}>{text}</i>"
        for (gap, text), step in zip(map(_token, tokens), names, strict=True)
    )
    return Markup("".join(shown))


@lru_cache(maxsize=100_000)
def _token(text: str) -> tuple[str, str]:
    """The space before a token, and its text, escaped.

    The space stands outside the coloured box, so that boxes are as wide as their words.
    """
    gap = " " if text[:1] == " " and text.strip(" ") else ""
    return gap, str(escape(visible(text.removeprefix(gap)) or "∅"))


def _numbers(values: Sequence[float]) -> str:
    """Numbers to three decimals, without trailing zeros: a page has hundreds of thousands of them."""
    return " ".join([f"{value:.3f}".rstrip("0").rstrip(".") for value in values])


def _places(roles: Sequence[str]) -> str:
    names = list(dict.fromkeys(roles))
    return " ".join(str(names.index(role)) for role in roles)


def _by_role(transcript: ScoredTranscript) -> list[tuple[str, int, str]]:
    """(role, tokens, mean of the number shown) of every role that occurs."""
    values: dict[str, list[float]] = {}
    for role, value in zip(transcript.roles or (), transcript.values, strict=bool(transcript.roles)):
        values.setdefault(role, []).append(value)
    return [(role, len(some), _signed(fmean(some))) for role, some in values.items()]


def _curve(answer_entropy: Sequence[float], highest: float) -> dict[str, Any]:
    """The plot of answer entropy (nats) against tokens read, in pixels."""
    length = len(answer_entropy) - 1
    y_ticks = _ticks(max(highest, 0.1), 4)
    top = max(y_ticks[-1], highest)
    bottom = _TOP + _PLOT

    def x(tokens: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * tokens / length, 1)

    def y(nats: float) -> float:
        return round(bottom - _PLOT * nats / top, 1)

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": bottom,
        "strip": bottom + 4,
        "line": _line(answer_entropy, top),
        "step": round((_WIDTH - _LEFT - _RIGHT) / length, 4),
        "x_ticks": [(x(t), f"{t:g}") for t in _ticks(length, 8) if t == int(t)],
        "y_ticks": [(y(e), f"{e:g}") for e in y_ticks],
    }


def _line(answer_entropy: Sequence[float], top: float) -> str:
    """The points of the curve."""
    y_T = _TOP + _PLOT - _PLOT * np.array(answer_entropy) / top
    x_T = np.linspace(_LEFT, _WIDTH - _RIGHT, len(y_T))
    return " ".join([f"{x:.1f},{y:.1f}" for x, y in zip(x_T.tolist(), y_T.tolist(), strict=True)])


def _ticks(highest: float, most: int) -> list[float]:
    """Round numbers from 0 up to `highest` at the most, about `most` of them."""
    magnitude = 10 ** math.floor(math.log10(highest / most))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if highest / (factor * magnitude) <= most)
    return [round(i * step, 10) for i in range(int(highest / step + 1e-9) + 1)]


def _signed(value: float) -> str:
    """A number to three decimals with its sign; 0 has none, even after rounding."""
    text = f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    return "0.000" if text[1:] == "0.000" else text
