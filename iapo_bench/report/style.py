"""Style of every figure: sizes of a printed column, one colour and marker for each method."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from iapo_bench.config.report import BASE
from iapo_bench.files import whole_file

# Widths of one and of two printed columns, in inches (8.5 and 17.5 cm).
COLUMN, PAGE = 8.5 / 2.54, 17.5 / 2.54

MANY = 9  # with more methods than this, figures take another layout

INK, GREY, LIGHT = "#222222", "#767676", "#E6E6E6"
# Okabe and Ito's colours, which every kind of colour vision can tell apart; without yellow, too faint for a line.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", INK, "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "*", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (4, 1, 1, 1)), (0, (1, 1)), (0, (7, 1, 1, 1, 1, 1)))
# Phases of training and other parts of a whole: neutral, so that nobody takes them for methods.
NEUTRAL = ("#3D4852", "#7A93AC", "#B3C6D6", "#E3DCCB", "#F4F1EA")

# A method looks the same in every figure; a method that is not listed comes after these.
_ORDER = (
    *("dapo", "gfpo", "gtpo", "sgrpo", "iapo", "grpo", "dr_grpo", "kimi", "efficient", "shorterbetter", "laser"),
    *("alp", "dler", "grpo_lead", "gdpo", "random_reward", "gspo", "cispo"),
)

STYLE: Any = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iapo-bench",  # equal figures, equal files
}


class Style(NamedTuple):
    """A method's colour, marker, dash pattern, and the colour that fills its marker."""

    colour: str
    marker: str
    dashes: Any
    face: str


def method_styles(methods: Iterable[str], parents: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A look for each name, the same in every figure. A variant has its parent's colour, and an open marker.

    `parents` maps a name that is not itself a method (a variant, a method in another profile) to its method.
    """
    names = list(dict.fromkeys(methods))
    parents = {name: (parents or {}).get(name) or name for name in names}
    known = [*_ORDER, *sorted({*parents.values()} - {*_ORDER, BASE})]
    styles, variants = {}, dict.fromkeys(known, 0)
    for name in names:
        if name == BASE:
            styles[name] = Style(GREY, "o", (0, (1, 1)), "white")
            continue
        place = known.index(parents[name])
        colour, offset = PALETTE[place % len(PALETTE)], 0
        if name != parents[name]:
            variants[parents[name]] += 1
            offset = variants[parents[name]]
        marker, dashes = MARKERS[(place + offset) % len(MARKERS)], DASHES[(place + offset) % len(DASHES)]
        styles[name] = Style(colour, marker, dashes, "white" if offset else colour)
    return styles


def new_figure(
    panels: int, title: str, *, height: float, wide: bool = True, heights: Sequence[float] = (1,)
) -> tuple[Figure, list[Axes]]:
    """A figure one or, if `wide`, two printed columns wide and `height` inches high, with panels side by side, in a row
    for each of the relative `heights`."""
    width = PAGE if wide else COLUMN
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.07))
    FigureCanvasAgg(figure)
    figure.suptitle("\n".join(textwrap.wrap(title, round(16.5 * width))), x=0.01, ha="left")
    axes = figure.subplots(len(heights), panels, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, list(axes.ravel())


def plot_point(ax: Axes, x: float, y: float, look: Style, **options: Any) -> None:
    """A method's marker; a star needs more room than other markers to be as large."""
    size = STYLE["lines.markersize"] * (1.6 if look.marker == "*" else 1)
    ax.plot(
        x,
        y,
        look.marker,
        color=look.colour,
        markerfacecolor=look.face,
        markersize=size,
        zorder=3,
        linestyle="",
        **options,
    )


def label_ends(ax: Axes, ends: Mapping[str, tuple[float, float]], styles: Mapping[str, Style]) -> None:
    """Write each name right of the end of its line, names kept apart; call it after everything is drawn."""
    ax.figure.canvas.draw()
    pixel = ax.figure.dpi / 72
    gap, font = 8 * pixel, 7
    order = sorted(ends, key=lambda name: ends[name][1])
    wanted = [float(ax.transData.transform(ends[name])[1]) for name in order]
    places: list[float] = []
    for y in wanted:
        places.append(max(y, places[-1] + gap) if places else y)
    shift = sum(places) / len(places) - sum(wanted) / len(wanted)
    for name, y, place in zip(order, wanted, places, strict=True):
        ax.annotate(
            name,
            ends[name],
            xytext=(5, (place - shift - y) / pixel),
            textcoords="offset points",
            va="center",
            fontsize=font,
            color=styles[name].colour,
            annotation_clip=False,
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path`, with or without its suffix `.png`, and the `.svg` beside it, each whole or not at all, with the
    figure's title as metadata."""
    stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
    title = " ".join(figure.get_suptitle().split())
    with mpl.rc_context(STYLE):
        for kind, metadata in (
            ("png", {"Software": None, "Title": title}),
            ("svg", {"Date": None, "Title": title}),
        ):
            with whole_file(stem.with_name(f"{stem.name}.{kind}")) as partial:
                figure.savefig(partial, format=kind, dpi=300, metadata=metadata)
