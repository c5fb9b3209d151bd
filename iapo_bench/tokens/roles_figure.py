"""The figure of scores (do they rank needed tokens first?) and of the roles that each method removed."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iapo_bench.report.rows import caution
from iapo_bench.report.style import GREY, INK, MANY, NEUTRAL, STYLE, Style, method_styles, new_figure, plot_point

# Colours of roles, distinct from the methods': needed tokens dark, redundant ones lighter.
ROLE_COLOURS = dict(zip(("needed", "check", "restatement", "filler"), NEUTRAL, strict=False))

SCORE_LABELS = {
    "early_exit": "early exit",
    "early_exit_statement": "early exit,\nstatement",
    "next_token": "next token,\ndifference",
    "next_token_entropy": "next token,\nentropy",
    "position": "position",
}
FACETS = ("redundant", "filler")


def informativeness_roles(aucs: pd.DataFrame, roles: pd.DataFrame, *, tier: str = "") -> Figure:
    """How well each score ranks needed above other tokens (AUC, 95% interval), and tokens a completion by role.

    `aucs` and `roles` are the two tables of `iapo_bench.tokens.roles`. A point is a method's mean over its training
    seeds, whose own values are ticks beside it; against all redundant tokens, and against filler alone. A score that
    found nothing to rank has no point.
    """
    methods = list(dict.fromkeys(roles["method"]))
    styles = method_styles(methods)
    with mpl.rc_context(STYLE):
        labels = f"{aucs['model'].iloc[0]} on {aucs['dataset'].iloc[0]}, {aucs['problems'].max():.0f} problems"
        title = f"{caution(tier)}{labels}: what tokens tell, and what they are for; bars: 95%"
        many = len(methods) > MANY
        heights = (1.5, 1.5, 0.5 + 0.15 * len(methods)) if many else (1.9 + 0.16 * len(methods),)
        figure, axes = new_figure(1 if many else 3, title, height=sum(heights) + many, heights=heights)
        for ax, against in zip(axes, FACETS, strict=False):
            _draw_aucs(ax, aucs[aucs["needed_against"] == against], methods, styles)
            ax.set_title(f"needed against {against}")
        axes[0].set_ylabel("AUC (0.5: chance)")
        lows, highs = zip(*(ax.get_ylim() for ax in axes[:2]), strict=True)
        for ax in axes[:2]:
            ax.set_ylim(min(lows), max(highs))
        if many:
            axes[0].tick_params(labelbottom=False)
            axes[1].set_ylabel("AUC")
        else:
            axes[1].tick_params(labelleft=False)
        _draw_roles(axes[2], roles, methods)
        once = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=min(len(once), 8))
    return figure


def _draw_aucs(ax: Axes, aucs: pd.DataFrame, methods: list[str], styles: dict[str, Style]) -> None:
    ax.axhline(0.5, color=GREY, linewidth=1, linestyle="--", zorder=1)
    scores = [score for score in SCORE_LABELS if score in set(aucs["score"])]
    for i, method in enumerate(methods):
        look = styles[method]
        for place, score in enumerate(scores):
            mine = aucs[(aucs["method"] == method) & (aucs["score"] == score)].dropna(subset="auc")
            if mine.empty:
                continue
            x = place + (i - (len(methods) - 1) / 2) * 0.7 / len(methods)
            ax.vlines(x, mine["auc_lo"].min(), mine["auc_hi"].max(), color=look.colour, linewidth=1)
            plot_point(ax, x, float(mine["auc"].mean()), look, label=method)
            if len(mine) > 1:
                ax.plot(np.full(len(mine), x + 0.05), mine["auc"], "_", color=look.colour, markersize=4)
    ax.set_xticks(
        range(len(scores)), [SCORE_LABELS[score] for score in scores], rotation=0 if len(methods) > MANY else 90
    )
    ax.grid(visible=False, axis="x")


def _draw_roles(ax: Axes, roles: pd.DataFrame, methods: list[str]) -> None:
    """Bars of tokens a completion by role, means over training seeds."""
    start = np.zeros(len(methods))
    for role, colour in ROLE_COLOURS.items():
        tokens = roles[roles["role"] == role].groupby("method")["tokens"].mean().reindex(methods).to_numpy(float)
        ax.barh(methods, tokens, left=start, color=colour, edgecolor="white", height=0.7, label=role)
        start += tokens
    ax.bar_label(ax.containers[-1], [f"{total:.1f}" for total in start], padding=2, color=INK, fontsize=7)  # type: ignore[arg-type]
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.grid(visible=False)
    ax.set_title("tokens a completion")
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=2, columnspacing=1, handlelength=1.2)
