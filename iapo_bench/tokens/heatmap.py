"""The page that shows, token by token, what a completion tells about its answer: one HTML file that works offline.

A pure function from scored transcripts to text. Everything that comes from a transcript is escaped by the template.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from iapo_bench.report.style import INK, PALETTE

POSITIVE, NEGATIVE = PALETTE[0], PALETTE[1]  # blue and vermilion: apart in every kind of colour vision, and in print
SCALE_QUANTILE = 0.98  # of |information|: one extreme token must not bleach all the others
STRONGEST = 0.8  # of a full hue, so that black text stays readable on it
SHARE = 0.9
# Colours come in steps on either side of white: `p` tells about the answer, `n` makes it less certain.
STEPS = 16
CLASSES = {f"p{step}": step / STEPS for step in range(STEPS + 1)} | {
    f"n{step}": -step / STEPS for step in range(1, STEPS + 1)
}
FOLDED_AFTER = 20  # transcripts
LONG_PROMPT = 300  # characters, beyond which a prompt is folded

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _PLOT = 860, 180, 46, 10, 10, 120  # of the curve, in pixels


@dataclass(frozen=True)
class ScoredTranscript:
    """A completion of T tokens with what the model says of each. Entropies and log-probabilities are in nats."""

    id: str
    prompt: str
    tokens: tuple[str, ...]  # (T,) as decoded
    token_ids: tuple[int, ...]  # (T,)
    roles: tuple[str, ...] | None  # (T,), where the vocabulary has roles
    logp: tuple[float, ...]  # (T,)
    entropy: tuple[float, ...]  # (T,) of the next token, where this one was drawn
    answer_entropy: tuple[float, ...]  # (T+1,) of the first answer token, after 0 to T tokens
    correct: bool | None = None

    @property
    def information(self) -> tuple[float, ...]:
        """What each token tells about the answer: the entropy before it less the entropy after it, (T,)."""
        e = self.answer_entropy
        return tuple(before - after for before, after in itertools.pairwise(e))


def heatmap_page(transcripts: Sequence[ScoredTranscript], *, model: str, postfix: str, temperature: float) -> str:
    """The page, without a reference to anything outside it. All transcripts share one colour scale and one y axis."""
    scale = colour_scale([value for transcript in transcripts for value in transcript.information])
    highest = max((max(transcript.answer_entropy) for transcript in transcripts), default=0.0)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("iapo_bench.tokens"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("informativeness.html.j2").render(
        model=model,
        postfix=postfix,
        temperature=f"{temperature:g}",
        ink=INK,
        scale=scale,
        percent=round(100 * SCALE_QUANTILE),
        share_percent=round(100 * SHARE),
        classes=[(name, background(value * scale, scale)) for name, value in CLASSES.items()],
        ramp=[name for name, value in sorted(CLASSES.items(), key=lambda item: item[1]) if value * 4 == int(value * 4)],
        folded_after=FOLDED_AFTER,
        long_prompt=LONG_PROMPT,
        with_roles=any(transcript.roles for transcript in transcripts),
        transcripts=[_shown(transcript, scale, highest) for transcript in transcripts],
    )


def colour_scale(information: Sequence[float]) -> float:
    """The |information| (nats) of the strongest colour: a high quantile, and never so low that rounding has a hue."""
    return max(float(np.quantile(np.abs(information), SCALE_QUANTILE)) if len(information) else 0.0, 1e-3)


def background(information: float, scale: float) -> str:
    """The colour of a token: white at 0, blue above, vermilion below, in proportion up to `scale` nats."""
    strength = STRONGEST * min(1.0, abs(information) / scale)
    hue = POSITIVE if information > 0 else NEGATIVE
    parts = [round(255 + strength * (int(hue[i : i + 2], 16) - 255)) for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in parts)


def concentration(information: Sequence[float]) -> float | None:
    """The smallest share of the tokens that holds 90% of the positive information; None where there is none."""
    positive = sorted((value for value in information if value > 0), reverse=True)
    if not positive:
        return None
    sums = np.cumsum(positive)
    # A sum of floats may miss its own 90% by a rounding.
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


def _shown(transcript: ScoredTranscript, scale: float, highest: float) -> dict[str, Any]:
    e, information = transcript.answer_entropy, transcript.information
    share = concentration(information)
    summary = {
        "tokens": str(len(transcript.tokens)),
        "answer entropy at the start": f"{e[0]:.3f} nats",
        "at the end": f"{e[-1]:.3f} nats",
        "information in total": f"{_signed(e[0] - e[-1])} nats",
        f"tokens with {SHARE:.0%} of the positive information": "none" if share is None else f"{share:.1%}",
    }
    return {
        "id": transcript.id,
        "prompt": transcript.prompt,
        "correct": transcript.correct,
        "summary": summary,
        "completion": _completion(transcript.tokens, np.array(information), scale),
        "answer": _numbers(e),
        "logp": _numbers(transcript.logp),
        "entropy": _numbers(transcript.entropy),
        "role_names": list(dict.fromkeys(transcript.roles or ())),
        "role_places": _places(transcript.roles or ()),
        "roles": _by_role(transcript),
        "curve": _curve(transcript, highest),
    }


def _completion(tokens: Sequence[str], information_T: np.ndarray, scale: float) -> Markup:
    """The tokens, each in the class of its colour. Joined here: a template is ten times slower on many tokens."""
    steps_T = np.rint(STEPS * np.minimum(1.0, np.abs(information_T) / scale)).astype(int)
    names = np.where((information_T < 0) & (steps_T > 0), -steps_T, steps_T).tolist()
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
    """To three places, without the zeros that say nothing: a page has hundreds of thousands of them."""
    return " ".join([f"{value:.3f}".rstrip("0").rstrip(".") for value in values])


def _places(roles: Sequence[str]) -> str:
    names = list(dict.fromkeys(roles))
    return " ".join(str(names.index(role)) for role in roles)


def _by_role(transcript: ScoredTranscript) -> list[tuple[str, int, str]]:
    """(role, tokens, mean information) of every role that occurs."""
    values: dict[str, list[float]] = {}
    for role, information in zip(transcript.roles or (), transcript.information, strict=bool(transcript.roles)):
        values.setdefault(role, []).append(information)
    return [(role, len(some), _signed(fmean(some))) for role, some in values.items()]


def _curve(transcript: ScoredTranscript, highest: float) -> dict[str, Any]:
    """Pixels of the drawing of answer entropy (nats) against tokens read."""
    length = len(transcript.tokens)
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
        "line": _line(transcript.answer_entropy, top),
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
    """With its sign, and without one that rounding to three places leaves behind."""
    text = f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    return "0.000" if text[1:] == "0.000" else text
