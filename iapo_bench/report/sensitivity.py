"""What two options of a method do, on a grid, on the validation split."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from iapo_bench.config.tune import SensitivityJob
from iapo_bench.errors import UserError
from iapo_bench.evaluate.metrics import read_grades, summarise
from iapo_bench.files import whole_file
from iapo_bench.report.rows import BASE
from iapo_bench.report.style import INK, STYLE, new_figure, save_figure

_INTERVAL = (("", "mean"), ("_lo", "lo"), ("_hi", "hi"))


def make_sensitivity(job: SensitivityJob, base: Path, grades: Sequence[Path], *, out: Path, figure: Path) -> None:
    """Write what came out at each point of the tier's grid, `grades` in its order, with intervals, and heat maps."""
    points = job.sensitivity.points()
    if len(grades) != len(points):
        raise UserError(f"the grid has {len(points)} points: {len(grades)} files of grades do not fit")
    k = job.tune.k
    ks = sorted({1, k})
    measures = [f"{measure}@{i}" for measure, i in (("pass", 1), ("pass", k), ("length", k), ("ratio", k))]
    rows = []
    for name, point, path in [
        (BASE, {}, base),
        *zip([job.sensitivity.method] * len(points), points, grades, strict=True),
    ]:
        summary = summarise({0: read_grades(path)}, ks)
        cells = {measure: summary.cells[measure] for measure in measures}
        rows.append(
            {"method": name, **point}
            | {f"{m}{end}": getattr(cell, part) for m, cell in cells.items() for end, part in _INTERVAL}
            | {"n_problems": summary.n_problems, "n_samples": summary.n_samples}
        )
    frame = pd.DataFrame(rows)
    drawing = sensitivity_maps(
        frame, list(job.sensitivity.grid), measures, title=f"{job.model} on {job.dataset}, validation split"
    )
    with whole_file(out) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g")
    save_figure(drawing, figure)


def sensitivity_maps(table: pd.DataFrame, options: Sequence[str], measures: Sequence[str], *, title: str) -> Figure:
    """A heat map for each measure over two options, from the rows of `make_sensitivity`: the base's, then the grid's.

    The colour says how far a point is from the base, blue for the better and red for the worse side.
    """
    base, grid = table[table["method"] == BASE].iloc[0], table[table["method"] != BASE]
    across, up = options[1], options[0]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(len(measures), title, height=2.2)
        for ax, measure in zip(axes, measures, strict=True):
            values = grid.pivot_table(index=up, columns=across, values=measure)
            lengths = measure.startswith("length")
            reach = max(float(np.nanmax(np.abs(values.to_numpy() - base[measure]))), 1e-9)
            colours = mpl.colormaps["RdBu_r" if lengths else "RdBu"]
            ax.imshow(
                values, cmap=colours, vmin=base[measure] - reach, vmax=base[measure] + reach, origin="lower", alpha=0.85
            )
            for (row, column), value in np.ndenumerate(values.to_numpy()):
                strong = abs(value - base[measure]) > 0.6 * reach
                ax.text(
                    column, row, f"{value:.3g}", ha="center", va="center", color="white" if strong else INK, fontsize=8
                )
            ax.set_xticks(range(len(values.columns)), [f"{x:g}" for x in values.columns])
            ax.set_yticks(range(len(values.index)), [f"{y:g}" for y in values.index])
            ax.set_xlabel(across)
            ax.set_ylabel(up)
            ax.set_title(f"{measure.capitalize()} (base {base[measure]:.3g})")
            ax.grid(visible=False)
    return figure
