"""Which scores know a needed token, and which roles each method removed: the figure."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from iapo_bench.report.rows import BASE, run_names
from iapo_bench.report.style import INK, STYLE, method_styles, new_figure

# Roles of tokens, apart from the methods' colours: needed dark, what could go lighter.
ROLE_COLOURS = {"needed": "#3D4852", "check": "#7A93AC", "restatement": "#B3C6D6", "filler": "#E3DCCB"}

SCORE_LABELS = {
    "early_exit": "early exit",
    "early_exit_statement": "early exit,\nstatement",
    "next_token": "next token,\ndifference",
    "next_token_entropy": "next token,\nentropy",
    "position": "position",
}


def informativeness_roles(aucs: pd.DataFrame, roles: pd.DataFrame) -> Figure:
    """How well each score ranks needed above redundant tokens (AUC, 95% interval), and tokens a completion by role.

    `aucs` and `roles` are the two tables of `iapo_bench.tokens.roles`: a point and a bar for each run, a colour for
    each method. A score that found nothing to rank has no point.
    """
    aucs = aucs[aucs["needed_against"] == "redundant"].assign(run=run_names(aucs))
    roles = roles.assign(run=run_names(roles))
    methods = dict(zip(roles["run"], roles["method"], strict=True))
    runs, styles = list(methods), method_styles(dict.fromkeys(methods.values()))
    scores = [score for score in SCORE_LABELS if score in set(aucs["score"])]
    with mpl.rc_context(STYLE):
        title = f"{aucs['model'].iloc[0]} on {aucs['dataset'].iloc[0]}: what tokens tell, and what they are for"
        figure, (left, right) = new_figure(2, title, height=2.6 + 0.16 * len(runs))
        left.axhline(0.5, color="#888888", linewidth=1, linestyle="--", zorder=1)
        for i, run in enumerate(runs):
            mine = aucs[aucs["run"] == run].set_index("score").loc[scores]
            places = np.arange(len(scores)) + (i - (len(runs) - 1) / 2) * 0.7 / len(runs)
            method = methods[run]
            colour, marker = styles[method].colour, styles[method].marker
            left.vlines(places, mine["auc_lo"], mine["auc_hi"], color=colour, linewidth=1.2)
            face = "white" if run == BASE else colour
            left.plot(places, mine["auc"], marker, color=colour, markerfacecolor=face, markersize=5, label=method)
        left.set_xticks(range(len(scores)), [SCORE_LABELS[score] for score in scores])
        left.set_ylabel("AUC, needed against redundant (0.5: chance)")
        left.grid(visible=False, axis="x")
        start = np.zeros(len(runs))
        for role, colour in ROLE_COLOURS.items():
            tokens = roles[roles["role"] == role].set_index("run")["tokens"].reindex(runs).to_numpy(float)
            right.barh(runs, tokens, left=start, color=colour, edgecolor="white", height=0.7, label=role)
            start += tokens
        right.bar_label(right.containers[-1], [f"{total:.1f}" for total in start], padding=3, color=INK)  # type: ignore[arg-type]
        right.invert_yaxis()
        right.margins(x=0.12)
        right.grid(visible=False)
        right.set_xlabel("tokens a completion")
        for ax in (left, right):
            once = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
            place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 4}
            ax.legend(once.values(), once.keys(), columnspacing=1.2, handletextpad=0.5, **place)
    return figure
