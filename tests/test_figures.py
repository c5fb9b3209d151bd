"""The figures hold every method, label their axes and are written whole."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from test_tables import STEP, TIMING, make_row

from iapo_bench.config.report import Labels
from iapo_bench.errors import UserError
from iapo_bench.report.curves import training_curves
from iapo_bench.report.style import method_styles, save_figure
from iapo_bench.report.table1 import accuracy_length
from iapo_bench.report.wallclock import wallclock_bars, wallclock_row

LABELS = Labels(tier="micro", dataset="micro", model="small")
METHODS = ["base", "grpo", "dr_grpo", "dapo", "gfpo", "gtpo", "sgrpo", "iapo", "mine", "a_rather_long_name"]


def texts(figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.fixture
def rows():
    """Methods crowded together with intervals inside their points, the base apart, a long name at the right edge."""
    ks = (1, 4, 32)
    return [
        make_row("base", ks, accuracy=0.55, length=40),
        *(
            make_row(method, ks, accuracy=0.7 + 0.004 * (i % 4), length=50 + 0.6 * i, half=0.0005)
            for i, method in enumerate(METHODS[1:-1])
        ),
        make_row(METHODS[-1], ks, accuracy=0.6, length=80, half=0.0005),
    ]


@pytest.fixture
def logs(tmp_path):
    runs = {}
    for number, method in enumerate(METHODS[1:]):
        runs[method] = [tmp_path / f"{method}{seed}.jsonl" for seed in range(2)]
        for path in runs[method]:
            steps = [
                STEP | {"completions_total": 8 * s, "correct": 0.5 + s / 100, "length": 60.0 - s - number}
                for s in range(1, 9)
            ]
            path.write_text("".join(json.dumps(step) + "\n" for step in steps))
    return runs


def test_accuracy_length_shows_every_method_at_the_smallest_and_largest_k(rows):
    figure = accuracy_length(rows)
    assert [ax.get_xlabel() for ax in figure.axes] == ["Length@1 (tokens)", "Length@32 (tokens)"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["Pass@1", "Pass@32"]
    found = texts(figure)
    for method in METHODS:
        assert found.count(method) == 2, method
    markers = [line for line in figure.axes[0].lines if line.get_xdata() == [40]]
    assert [marker.get_markerfacecolor() for marker in markers] == ["white"], "the base is an open marker"
    assert len(accuracy_length([make_row(ks=(16,))]).axes) == 1


def test_labels_cover_neither_points_nor_one_another(rows):
    figure = accuracy_length(rows)
    figure.canvas.draw()
    for ax in figure.axes:
        labels = {a.get_text(): a for a in ax.texts if isinstance(a, Annotation)}
        assert set(labels) == set(METHODS)
        areas = {name: Text.get_window_extent(label) for name, label in labels.items()}
        half = 3 * figure.dpi / 72  # of a marker's width
        markers = [Bbox([ax.transData.transform(label.xy)] * 2).padded(half) for label in labels.values()]
        for name, area in areas.items():
            assert not any(area.overlaps(marker) for marker in markers), f"{name} covers a point"
            assert not any(area.overlaps(other) for key, other in areas.items() if key != name), name
            assert ax.bbox.contains(area.x0, area.y0), name
            assert ax.bbox.contains(area.x1, area.y1), name


def test_intervals_are_drawn(rows):
    ax = accuracy_length(rows).axes[0]
    cells = rows[-1].summary.cells
    ends = [path.vertices.tolist() for collection in ax.collections for path in collection.get_paths()]
    length, passes = cells["length@1"], cells["pass@1"]
    assert [[length.lo, passes.mean], [length.hi, passes.mean]] in ends
    assert [[length.mean, passes.lo], [length.mean, passes.hi]] in ends


def test_rows_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match="one model and dataset"):
        accuracy_length([make_row(), make_row(dataset="gsm8k")])
    with pytest.raises(UserError, match="no k"):
        accuracy_length([make_row(ks=(2,)), make_row(ks=(4,))])


def test_training_curves(logs):
    figure = training_curves(LABELS, logs)
    assert [ax.get_xlabel() for ax in figure.axes] == ["completions generated"] * 2
    assert [ax.get_ylabel() for ax in figure.axes] == ["share correct", "mean length (tokens)"]
    found = texts(figure)
    for method in METHODS[1:]:
        assert found.count(method) == 2, f"{method}: at the end of its line, whatever the number of seeds"
    assert "running mean over 5 steps" in " ".join(found)
    length = figure.axes[1].lines[0]
    assert list(length.get_xdata()) == [8 * s for s in range(1, 9)]
    assert list(length.get_ydata())[:4] == pytest.approx([58, 57.5, 57, 56]), "59, 58, 57, ... smoothed"
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in length.axes.lines}
    assert len(looks) == len(METHODS) - 1, "every method looks different"


def test_a_method_looks_the_same_whatever_is_shown_beside_it():
    every = method_styles([*METHODS, "iapo_ni", "iapo_ne"], {"iapo_ni": "iapo", "iapo_ne": "iapo"})
    for i, name in enumerate(METHODS[:-2]):
        assert method_styles(METHODS[i:-2])[name] == every[name]
    for look in zip(*every.values(), strict=True):
        assert len(set(map(str, look))) > 1
    first_two = list(every.values())[1:3]
    assert all(a != b for a, b in list(zip(*first_two, strict=True))[:3]), "apart in colour, marker and dash"
    assert len({style[:3] for style in every.values()}) == len(every)
    variants = [every["iapo_ni"], every["iapo_ne"]]
    assert {style.colour for style in variants} == {every["iapo"].colour}
    assert len({style.marker for style in [*variants, every["iapo"]]}) == 3


def test_figures_are_as_wide_as_printed_columns(rows):
    figure = accuracy_length(rows)
    assert figure.get_figwidth() * 2.54 == pytest.approx(17.5)
    sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
    assert min(sizes) >= 7
    assert max(sizes) <= 8
    assert accuracy_length([make_row(ks=(16,))]).get_figwidth() * 2.54 == pytest.approx(8.5)


def test_training_curves_of_several_seeds(tmp_path):
    """One line, the mean where the first run has its steps, in a band over all runs; with one run no band."""
    paths = [tmp_path / f"{seed}.jsonl" for seed in range(2)]
    for path, stride, length in zip(paths, (8, 16), (40.0, 50.0), strict=True):
        steps = [
            STEP | {"completions_total": n, "correct": n / 64, "length": length} for n in range(stride, 65, stride)
        ]
        path.write_text("".join(json.dumps(step) + "\n" for step in steps))
    correct, length = training_curves(LABELS, {"dapo": paths}).axes
    assert [len(ax.lines) for ax in (correct, length)] == [1, 1]
    assert list(length.lines[0].get_xdata()) == [8 * s for s in range(1, 9)]
    assert list(length.lines[0].get_ydata()) == [45.0] * 8
    (band,) = length.collections
    heights = [y for _, y in band.get_paths()[0].vertices]
    assert (min(heights), max(heights)) == (40.0, 50.0)
    assert "mean over training seeds" in " ".join(texts(correct.figure))
    alone = training_curves(LABELS, {"dapo": paths[:1]})
    assert not alone.axes[1].collections
    assert "seeds" not in " ".join(texts(alone))


def test_training_curves_of_many_methods_have_a_panel_each(logs):
    """Eighteen lines over each other say nothing: every method stands alone, before the others in grey."""
    runs = {name: logs[METHODS[1 + i % 8]] for i, name in enumerate([*METHODS[1:], "x", "y", "z"])}
    figure = training_curves(LABELS, runs)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [*runs, *runs], "first shares correct, then lengths"
    assert all(len(ax.lines) == len(runs) + 1 for ax in figure.axes)
    assert {ax.get_ylim() for ax in figure.axes[: len(runs)]} == {figure.axes[0].get_ylim()}
    sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
    assert (min(sizes) >= 7, max(sizes) <= 8) == (True, True)


def test_wallclock_bars(tmp_path, logs):
    timing = tmp_path / "timing.json"
    timing.write_text(json.dumps(TIMING))
    rows = [
        wallclock_row(path, timing, run=name, dataset="micro", model="small")
        for name, path in [("base", None)] + [(f"{method}/0", paths[0]) for method, paths in logs.items()]
    ]
    figure = wallclock_bars(LABELS, rows)
    found = texts(figure)
    for word in [*METHODS, "rollout", "grade", "signals", "update", "other", "not trained"]:
        assert word in found, word
    assert all("(seconds)" in ax.get_xlabel() for ax in figure.axes)
    ends = [max(bar.get_x() + bar.get_width() for bar in group) for group in figure.axes[0].containers]
    assert ends == [8, 24, 48, 80, 120], "phases are stacked"
    (first, *_), name = logs.values(), METHODS[1]
    rows.append(wallclock_row(first[0], timing, run=f"{name}/1", dataset="micro", model="small"))
    found = texts(wallclock_bars(LABELS, rows))
    assert {f"{name}/0", f"{name}/1"} <= set(found)
    assert name not in found
    assert METHODS[2] in found, "of one seed, as before"


def test_files_are_written_whole_and_the_same_each_time(tmp_path, rows, monkeypatch):
    for name in ("a", "b"):
        save_figure(accuracy_length(rows), tmp_path / "figures" / name)
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first, second = ((tmp_path / "figures" / f"{name}.{kind}").read_bytes() for name in "ab")
        assert first.startswith(start)
        assert first == second
    svg = (tmp_path / "figures" / "a.svg").read_text()
    assert all(f">{method}</text>" in svg for method in METHODS)
    assert "<title>small on micro: accuracy against length" in svg

    def break_off(figure, path, **_):
        path.write_text("half")
        raise OSError("disk full")

    figure = accuracy_length(rows)
    monkeypatch.setattr(type(figure), "savefig", break_off)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, tmp_path / "figures" / "c")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]


def test_the_first_methods_can_be_told_apart_without_green_cones_and_their_markers_without_colour():
    """Deuteranopia as simulated by Machado et al. 2009; distances in CIELAB, where 10 is plain to see side by side."""
    machado = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]])
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def lab(colour: str) -> np.ndarray:
        srgb = np.array(to_rgb(colour))
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        x, y, z = np.cbrt(to_xyz @ np.clip(machado @ linear, 0, 1) / [0.9505, 1, 1.089])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    names = ["base", "dapo", "gfpo", "gtpo", "sgrpo", "iapo"]
    looks = method_styles(names)
    pairs = list(itertools.combinations(names, 2))
    distances = {(a, b): np.linalg.norm(lab(looks[a].colour) - lab(looks[b].colour)) for a, b in pairs}
    assert min(distances.values()) > 10, min(distances, key=distances.get)
    assert len({(look.marker, look.face == "white") for look in looks.values()}) == len(names)
