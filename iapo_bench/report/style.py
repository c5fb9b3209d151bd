"""How every figure looks."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from iapo_bench.files import whole_file
from iapo_bench.report.rows import BASE

# Okabe and Ito's colours, which every kind of colour vision can tell apart; without yellow, too faint for a line.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

INK = "#222222"

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iapo-bench",  # equal figures, equal files
}


class Style(NamedTuple):
    colour: str
    marker: str
    dashes: str


def save_figure(figure: Figure, stem: Path) -> None:
    """Write `stem.png` and `stem.svg`, each whole or not at all."""
    with mpl.rc_context(STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with whole_file(stem.with_name(f"{stem.name}.{kind}")) as partial:
                figure.savefig(partial, format=kind, dpi=200, metadata=metadata)


def new_figure(panels: int, title: str, height: float = 3.6, width: float = 4.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(1.0 + width * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """A look for each method; the base takes none of the palette, so the others look the same without it."""
    styles = {BASE: Style(INK, "o", ":")}
    for i, method in enumerate(method for method in methods if method != BASE):
        cycle, colour = divmod(i, len(PALETTE))
        styles[method] = Style(PALETTE[colour], "osD^"[cycle % 4], ("-", "--", "-.", ":")[cycle % 4])
    return styles
