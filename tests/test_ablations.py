"""Variants of a method, the grid over two of its options, and their place in the workflow."""

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from builders import write_grades
from matplotlib.text import Text
from project_copy import copy_project, snakemake

from iapo_bench.config.asked import check_methods
from iapo_bench.config.section import identity
from iapo_bench.config.tier_file import parse_tier, read_tier
from iapo_bench.errors import UserError
from iapo_bench.report.sensitivity import make_sensitivity, sensitivity_maps

ROOT = Path(__file__).parent.parent


def smoke(**changes):
    content = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    return parse_tier(content | changes, source="test")


def test_a_variant_starts_from_its_parent_and_changes_what_it_says():
    ablations = {
        "iapo_ni": {"method": "iapo", "options": {"alpha": 0.0}},
        "plain": {"method": "iapo", "profile": "released", "lr": 0.5},
    }
    tier = smoke(ablations=ablations)
    parent, variant = identity(tier.train_job("iapo", 0)), identity(tier.train_job("iapo_ni", 0))
    assert variant["method"] == {"name": "iapo", "profile": "paper", "options": {"alpha": 0.0, "beta": 0.1}}
    assert variant["train"] == parent["train"]
    assert tier.parent("iapo_ni") == "iapo"
    assert tier.parent("dapo") == "dapo"
    assert identity(tier.train_job("plain", 0))["method"]["profile"] == "released"
    assert identity(tier.train_job("plain", 0))["train"]["lr"] == 0.5
    assert identity(tier.train_job("iapo", 0)) == identity(smoke().train_job("iapo", 0))


def test_the_micro_tiers_ablations_differ_from_iapo_in_one_thing_each():
    tier = read_tier("micro")
    parent = identity(tier.train_job("iapo", 0))
    for name, change in {
        "iapo_ni": {"alpha": 0.0},
        "iapo_ne": {"informativeness": "next_token"},
        "iapo_nx": {"beta": 0.0},
    }.items():
        variant = identity(tier.train_job(name, 0))
        assert variant["method"]["options"] == {**parent["method"]["options"], **change}
        assert variant["train"] == parent["train"]


def test_the_micro_tier_has_every_method_of_its_table_as_released():
    """At the released code's own numbers where a number of the tuned choice would hide them."""
    tier = read_tier("micro")
    own = {"iapo": {"alpha": 1.0, "beta": 1.0}, "gfpo": {"k": 6, "metric": "length"}}
    for name in tier.methods:
        chosen, variant = tier.method(name), tier.method(f"{name}_released")
        assert variant.profile == "released"
        assert variant.options == chosen.options | own.get(name, {})
        assert variant.lr == chosen.lr
        assert variant.updates_per_rollout in (None, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ablations": {"x": {"method": "iapoo"}}}, "unknown method 'iapoo': did you mean 'iapo'"),
        ({"ablations": {"x": {}}}, "unknown method 'x'"),
        (
            {"ablations": {"x": {"method": "iapo", "options": {"alfa": 1}}}},
            "'alfa': did you mean 'alpha'",
        ),
        ({"ablations": {"iapo": {"options": {"alpha": 0.0}}}}, "ablations.iapo: is also in methods"),
        ({"sensitivity": {"method": "iapo", "grid": {"alpha": [1]}}}, "sensitivity.grid"),
        ({"sensitivity": {"method": "iapo", "grid": {"alpha": [1], "bta": [1]}}}, "unknown option of iapo 'bta'"),
        ({"sensitivity": {"method": "ipo", "grid": {"alpha": [1], "beta": [1]}}}, "unknown method 'ipo'"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_methods(smoke(**changes))


GRID = {"method": "iapo", "grid": {"alpha": [0.0, 0.5], "beta": [0.0, 0.1, 1.0]}}


def test_sensitivity_has_a_row_and_a_cell_for_every_point(tmp_path):
    tier = smoke(sensitivity=GRID, tune={"k": 2, "n_samples": 4})
    base = write_grades(tmp_path / "base.parquet", 2, 20)
    grades = [write_grades(tmp_path / f"{i}.parquet", i % 5, 10 + i) for i in range(6)]
    make_sensitivity(tier.sensitivity_job(), base, grades, out=tmp_path / "out.csv", figure=tmp_path / "maps")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["method"].tolist() == ["base"] + ["iapo"] * 6
    assert table[["alpha", "beta"]].iloc[1:].to_numpy().tolist() == [[a, b] for a in (0, 0.5) for b in (0, 0.1, 1)]
    assert table["pass@1"].tolist() == [0.5, 0, 0.25, 0.5, 0.75, 1, 0]
    assert table["length@2"].tolist() == [20, 10, 11, 12, 13, 14, 15]
    assert table["pass@2"].iloc[2] == 0.5
    assert (table["pass@1_lo"] <= table["pass@1"]).all()
    assert (tmp_path / "maps.png").stat().st_size > 10_000
    bold = [line for line in (tmp_path / "out.md").read_text().splitlines() if line.startswith("| **")]
    assert len(bold) == 1, "the choice, of highest ratio"
    assert bold[0].startswith("| **alpha 0.5, beta 0** | **0.750 [")
    figure = sensitivity_maps(table, ["alpha", "beta"], ["pass@1", "length@2"], title="grid", chosen=1)
    left, right = figure.axes[:2]
    shown = [text.get_text() for text in left.texts]
    assert shown == [".000", ".250", ".500", ".750", "1.000", ".000"]
    assert left.get_title() == "Pass@1\n(base .500)"
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "0.1", "1"]
    # Blue is better: more accurate, but shorter.
    colours = {ax: ax.images[0].to_rgba(ax.images[0].get_array()) for ax in (left, right)}
    bluer = {ax: rgba[..., 2] - rgba[..., 0] for ax, rgba in colours.items()}
    assert bluer[left][1, 1] > 0 > bluer[left][0, 0]
    assert (bluer[right] > 0).all()
    assert colours[right][0, 0].sum() < colours[right][1, 2].sum()  # the stronger, the darker
    assert "alpha" in [text.get_text() for text in figure.findobj(Text)]


def test_sensitivity_mistakes(tmp_path):
    base = write_grades(tmp_path / "base.parquet", 2, 20)
    where = {"out": tmp_path / "out.csv", "figure": tmp_path / "maps"}
    with pytest.raises(UserError, match="lacks a 'sensitivity' or a 'tune' section"):
        smoke().sensitivity_job()
    job = smoke(sensitivity=GRID, tune={"k": 2, "n_samples": 4}).sensitivity_job()
    with pytest.raises(UserError, match="6 points, not 1"):
        make_sensitivity(job, base, [base], **where)
    assert not (tmp_path / "out.csv").exists()


def test_the_workflow_trains_variants_and_points(tmp_path):
    shown = snakemake(copy_project(tmp_path), "-n", "-p", "ablations", "sensitivity", timeout=300)
    assert shown.returncode == 0, shown.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", shown.stdout, flags=re.MULTILINE))
    assert {name: jobs[name] for name in ("train", "ablation_table", "sensitivity_table")} == {
        # five methods, eight variants of them, and the points of the grid
        "train": str(13 * len(read_tier("micro").train.seeds) + 16),
        "ablation_table": "1",
        "sensitivity_table": "1",
    }
    assert "settings/train--iapo_ne-seed0-" in shown.stdout
