"""The main figure and the ablations: changes from the base and from the parent, paired by problem."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from test_tables import make_row

from iapo_bench.errors import UserError
from iapo_bench.evaluate.intervals import estimate
from iapo_bench.report.ablations import FACETS, ablations_figure, make_ablations
from iapo_bench.report.paired import make_paired, paired_figure


def texts(figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.fixture
def rows():
    return [make_row("base", (1, 16), 0.4, 60), make_row("dapo", (1, 16), 0.5, 40), make_row("iapo", (1, 16), 0.45, 50)]


def test_changes_from_the_base_with_their_intervals(rows):
    figure = paired_figure(rows)
    passes, lengths = figure.axes
    assert [text.get_text() for text in passes.get_yticklabels()] == ["dapo", "iapo"]
    points = [line.get_xdata()[0] for line in passes.lines if line.get_marker() not in ("None", "")]
    wanted = [estimate(row.tally.values("pass@1"), rows[0].tally.values("pass@1"), seeds=True) for row in rows[1:]]
    assert points == pytest.approx([100 * found.value for found in wanted])
    bars = [path.vertices[:, 0].tolist() for group in passes.collections for path in group.get_paths()]
    assert bars == [pytest.approx([100 * end for end in found.interval]) for found in wanted]
    ends = [line for line in passes.lines if line.get_marker() in ("None", "")][1:]  # the first stands at 0
    assert [line.get_xdata()[0] for line in ends] == pytest.approx([end for bar in bars for end in bar])
    assert passes.get_xlabel().startswith("Pass@1, points\n(base 4")
    assert lengths.get_xlabel() == "Length, tokens\n(base 60.0;\nleft is shorter)"
    title = " ".join(figure.get_suptitle().split())
    assert "200 problems \N{MULTIPLICATION SIGN} 64 samples, 2 training seeds; bars: 95%, paired" in title


def test_the_figure_needs_a_base_and_equal_problems(rows):
    with pytest.raises(UserError, match="needs the base's summary"):
        paired_figure(rows[1:])
    with pytest.raises(UserError, match="different problems"):
        paired_figure([rows[0], make_row("dapo", (1, 16), n_problems=50)])


def test_a_collapsed_method_is_named_at_the_edge(rows):
    others = [make_row(f"m{i}", (1, 16), 0.41 + i / 100, 59) for i in range(4)]
    figure = paired_figure([rows[0], *others, make_row("mute", (1, 16), 0.02, 5)])
    found = texts(figure)
    assert any(text.startswith("\N{LEFTWARDS ARROW} \N{MINUS SIGN}38") for text in found), found
    assert figure.axes[0].get_xlim()[0] > -20, "and hides nobody else's change"


VARIANTS = (("iapo_ni", 0.44, 52, "paper"), ("iapo_released", 0.40, 57, "released"))


def test_ablations_have_two_facets_and_differences_from_the_parent(rows):
    rows[2] = make_row("iapo", (1, 16), 0.45, 50, parent="iapo")
    rows += [make_row(n, (1, 16), a, length, parent="iapo", profile=p) for n, a, length, p in VARIANTS]
    figure = ablations_figure(rows)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [FACETS[0], "", FACETS[1], ""]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["iapo_ni"]
    assert [text.get_text() for text in figure.axes[2].get_yticklabels()] == ["iapo_released"]
    point = next(line for line in figure.axes[1].lines if line.get_marker() not in ("None", ""))
    change = rows[3].tally.values("length").mean() - rows[2].tally.values("length").mean()
    assert point.get_xdata()[0] == pytest.approx(change)
    with pytest.raises(UserError, match="no variant"):
        ablations_figure(rows[:3])


def test_files(rows, tmp_path):
    rows[2] = make_row("iapo", (1, 16), 0.45, 50, parent="iapo")
    rows.append(make_row("iapo_ni", (1, 16), 0.44, 52, parent="iapo"))
    paths = [tmp_path / "summaries" / f"{row.method}.json" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        row.write(path)
    make_ablations(paths, out=tmp_path / "ablations.csv", figure=tmp_path / "ablations")
    make_paired(paths, tmp_path / "paired")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"ablations.csv", "ablations.md", "ablations.tex", "ablations.png", "paired.svg"} <= names
    assert np.all([(tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("paired", "ablations")])
    table = pd.read_csv(tmp_path / "ablations.csv").set_index("method")
    lengths = [row.tally.values("length").mean() for row in rows[2:4]]
    assert table.loc["iapo_ni", "length_change"] == pytest.approx(lengths[1] - lengths[0], rel=1e-5)
    assert table.loc["iapo_ni", "length_change_lo"] < lengths[1] - lengths[0] < table.loc["iapo_ni", "length_change_hi"]
    assert table.loc["iapo", "against":].isna().all(), "it varies nothing"
    text = (tmp_path / "ablations.md").read_text()
    assert text.index("| iapo_ni | iapo      | without a part | ") < text.index("Means with half the width")
