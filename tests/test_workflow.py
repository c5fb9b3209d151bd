"""The workflow in a copy of the project: the whole smoke tier, then a method that a user drops in."""

from pathlib import Path

import pandas as pd
import pytest
from project_copy import copy_project, snakemake

ROOT = Path(__file__).parent.parent
DROPPED_IN = '''
"""Credit to the shortest correct completions: a user's own idea."""

from dataclasses import dataclass

import torch

from iapo_bench.batch import RolloutBatch
from iapo_bench.method import Credit, Method, assign, group_normalise


@dataclass
class Brief(Method):
    """A = norm(r - price * length)."""

    name = "brief"
    price: float = 0.01

    def credit(self, batch: RolloutBatch, generator: torch.Generator | None = None) -> Credit:
        return assign(group_normalise(batch.rewards_B - self.price * batch.lengths_B, batch.group_size), batch)
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("copy"))


def test_a_dry_run_shows_the_default_table(copy):
    shown = snakemake(copy, "-n", "results/table1.csv")
    assert shown.returncode == 0, shown.stderr
    for rule in ("prepare", "base", "train", "sample", "grade", "metrics", "table"):
        assert f"\n{rule} " in shown.stdout + shown.stderr


def test_a_target_of_another_tier_is_enough(copy):
    shown = snakemake(copy, "-n", "results/smoke/table1.csv")
    assert shown.returncode == 0, shown.stderr
    assert "results/smoke/settings/table-" in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "tier=mirco"), "unknown tier 'mirco': did you mean 'micro'"),
        (("--config", "train={completion: 3}"), "train: unknown key 'completion': did you mean 'completions'"),
        (("--config", "methods={ipao: {}}"), "unknown method 'ipao': did you mean 'iapo'"),
        (("--config", "evaluate={n_samples: 2}"), "k=32 needs at least 32 samples"),
    ],
)
def test_a_mistake_in_the_settings_stops_everything(copy, arguments, message):
    shown = snakemake(copy, "-n", *arguments)
    assert shown.returncode != 0
    assert message in shown.stderr + shown.stdout
    assert "Traceback" not in shown.stderr + shown.stdout


@pytest.mark.slow
def test_the_smoke_tier_and_then_a_method_of_ones_own(copy):
    results = copy / "results" / "smoke"
    target = ("--configfile", "configs/smoke.yaml")
    first = snakemake(copy, *target)
    assert first.returncode == 0, first.stderr[-3000:]
    table = pd.read_csv(results / "table1.csv")
    published = pd.read_csv(ROOT / "results" / "published" / "table1.csv")
    rows = ["base", "grpo", "dapo", "gfpo", "gtpo", "sgrpo", "iapo"]
    assert table["method"].tolist() == [*rows, "base_cut", "base_shortest"]
    assert table.columns[: len(published.columns)].tolist() == published.columns.tolist()
    clock = pd.read_csv(results / "wallclock.csv")
    assert clock["method"].tolist() == rows
    assert (clock["inference_seconds"] > 0).all()
    for name in ("table1.md", "table1.provenance.json", "figures/accuracy_length.png", "figures/training.png"):
        assert (results / name).stat().st_size > 0
    assert "Nothing to be done" in (again := snakemake(copy, *target)).stdout + again.stderr

    made = {path: path.stat().st_mtime_ns for path in results.rglob("seed0/**/*.*") if path.is_file()}
    (copy / "methods" / "brief.py").write_text(DROPPED_IN)
    with (copy / "configs" / "smoke.yaml").open("a") as file:
        file.write("  brief:\n")
    second = snakemake(copy, *target)
    assert second.returncode == 0, second.stderr[-3000:]
    assert pd.read_csv(results / "table1.csv")["method"].tolist() == [*rows, "brief", "base_cut", "base_shortest"]
    assert {path: path.stat().st_mtime_ns for path in made} == made
    log = second.stdout + second.stderr
    assert log.count("rule train:") == 1
    assert "rule base:" not in log
    assert "rule prepare:" not in log


@pytest.mark.slow
def test_the_default_table_leaves_room_in_both_directions():
    """The base is neither hopeless nor done, every method had the same budget, and training changed something."""
    path = ROOT / "results" / "table1.csv"
    if not path.exists():
        pytest.skip("make results/table1.csv first")
    table = pd.read_csv(path).set_index("method")
    assert 0.3 <= table.loc["base", "pass@1"] <= 0.7
    assert table.loc["base", "pass@16"] < 0.92
    trained = table.drop("base")
    shorter = trained["length@16_hi"] < table.loc["base", "length@16_lo"]
    better = trained["pass@1_lo"] > table.loc["base", "pass@1_hi"]
    assert (shorter | better).any()


def test_the_released_code_and_protocol_have_targets(copy):
    shown = snakemake(copy, "-n", "fidelity", "protocol", "claims")
    assert shown.returncode == 0, shown.stderr
    said = shown.stdout + shown.stderr
    for rule in ("fidelity_table", "protocol_table", "claims"):
        assert f"\nrule {rule}:" in said or f"\n{rule} " in said
    assert "iapo_released/seed0" in said


def test_a_checkpoint_is_fetched_and_not_trained(copy):
    arguments = ("tier=smoke", "methods={authors: {checkpoint: someone/models}}")
    shown = snakemake(copy, "-n", "results/smoke/table1.csv", "--config", *arguments)
    assert shown.returncode == 0, shown.stderr
    said = shown.stdout + shown.stderr
    assert "checkpoint--authors" in said
    assert "sample--authors-seed0" in said
    assert "train--authors" not in said
