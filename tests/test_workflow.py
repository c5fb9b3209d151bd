"""The workflow in a copy of the project: the whole smoke tier, then a method that a user drops in."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from builders import PERFECT, odd_tokenizer, open_world, reciter
from project_copy import copy_project, snakemake
from test_tables import make_row

from iapo_bench.models.checkpoints import save_model
from iapo_bench.report.captions import is_whole, report_texts
from iapo_bench.report.table1 import make_table

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

    name = "brief idea"
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
        (("--config", "train={lr: 1}", "--config", "gpus=0"), "--config is given twice"),
        (("--configfile", "wrong.yaml"), "wrong.yaml:45: unknown option of iapo 'alpa': did you mean 'alpha'"),
        (("--config", "evaluate={n_samples: 2}"), "k=32 needs at least 32 samples"),
    ],
)
def test_a_mistake_in_the_settings_stops_everything(copy, arguments, message):
    smoke = (ROOT / "configs" / "smoke.yaml").read_text()
    (copy / "wrong.yaml").write_text(smoke.replace("alpha: ", "alpa: "))
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
    free = ("--config", "gpus=1", "train={engine_memory: 0.2, checkpoint_every: 7}")
    for arguments in ((), ("-n", *free)):
        again = snakemake(copy, *target, *arguments)
        assert "Nothing to be done" in again.stdout + again.stderr

    made = {path: path.stat().st_mtime_ns for path in results.rglob("seed0/**/*.*") if path.is_file()}
    (copy / "methods" / "brief idea.py").write_text(DROPPED_IN)
    with (copy / "configs" / "smoke.yaml").open("a") as file:
        file.write("  brief idea:\n")
    second = snakemake(copy, *target)
    assert second.returncode == 0, second.stderr[-3000:]
    assert pd.read_csv(results / "table1.csv")["method"].tolist() == [*rows, "brief idea", "base_cut", "base_shortest"]
    assert {path: path.stat().st_mtime_ns for path in made} == made
    log = second.stdout + second.stderr
    assert log.count("rule train:") == 1
    assert "rule base:" not in log
    assert "rule prepare:" not in log


@pytest.mark.slow
def test_a_job_whose_rule_changed_says_so(tmp_path):
    copy = copy_project(tmp_path)
    target = ("results/smoke/data", "--config", "tier=smoke")
    assert "stale" not in snakemake(copy, *target).stderr
    rules = copy / "rules" / "train.smk"
    rules.write_text(rules.read_text().replace('"prepare --settings', '"prepare  --settings'))
    again = snakemake(copy, *target).stderr
    assert "stale: prepare, since its rule has another command\n" in again
    assert "1 of 1  rule prepare" in again


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


def test_a_report_leaves_out_a_table_without_its_form_for_readers(tmp_path):
    for name in ("table.csv", "figure.png"):
        (tmp_path / name).touch()
        assert is_whole(tmp_path / name) == (name == "figure.png")
    (tmp_path / "table.md").touch()
    assert is_whole(tmp_path / "table.csv")
    assert not is_whole(tmp_path / "other.csv")


def test_captions_of_the_report_count_what_is_behind_the_table_that_was_made(tmp_path):
    assert report_texts(str(tmp_path))["behind"] == ""
    paths = [tmp_path / f"{name}.json" for name in ("base", "iapo")]
    for path, seeds in zip(paths, ([0], [0, 1, 2, 3, 4]), strict=True):
        make_row(path.stem, train_seeds=seeds, n_problems=7, n_samples=16).write(path)
    make_table(paths, published=None, out=tmp_path / "table1.csv", figure=tmp_path / "figure")
    said = "small on micro: 7 test problems, 16 samples each for 2 sampling seeds, 5 training seeds."
    assert report_texts(str(tmp_path))["behind"] == said


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


def planned(folder: Path, *targets: str) -> set[str]:
    """The rules of a dry run's jobs."""
    shown = snakemake(folder, "-n", *targets)
    assert shown.returncode == 0, shown.stderr
    return set(re.findall(r"^(?:local)?rule (\w+):", shown.stdout + shown.stderr, re.MULTILINE))


@pytest.mark.slow
def test_a_dataset_dropped_in_goes_through_the_workflow(tmp_path):
    """The worked example of docs/your-dataset.md, one file, and a model that answers all of its problems with 4; then
    its problems and its model change in place."""
    folder = copy_project(tmp_path)
    docs = (ROOT / "docs" / "your-dataset.md").read_text()
    listing = re.search(r"```python\n# (iapo_bench/\S+)\n(.*?)```", docs, re.DOTALL)
    (folder / listing[1]).write_text(listing[2])
    (folder / "data").mkdir()
    rows = [{"problem": f"2 + 2? ({n})", "solution": f"So. Answer: {4 if n % 3 else 5}"} for n in range(100, 140)]
    problems = folder / "data" / "sums.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = odd_tokenizer()
    (length,) = {len(open_world("gsm8k").dialogue(tokenizer).encode(row["problem"])) for row in rows}
    said = tokenizer(PERFECT + "<turn>", add_special_tokens=False).input_ids
    save_model(reciter(len(tokenizer), said, length), tokenizer, folder / "model")
    tier = {
        "tier": "mine",
        "model": {"source": "model"},
        "world": {"name": "sums", "data_dir": "data"},
        "train": {"completions": 16, "prompts_per_step": 2, "group_size": 4, "max_tokens": 40},
        "evaluate": {"ks": [1, 2], "n_samples": 2, "seeds": [0], "max_tokens": 40},
        "methods": {"grpo": None},
    }
    (folder / "configs" / "mine.yaml").write_text(yaml.safe_dump(tier))
    targets = ("results/mine/table1.csv", "results/mine/lm_eval.csv")
    done = snakemake(folder, *targets)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    test = [json.loads(line) for line in (folder / "results/mine/data/test.jsonl").read_text().splitlines()]
    right = sum(row["answer"] == "4" for row in test) / len(test)
    assert 0 < right < 1
    table = pd.read_csv(folder / "results/mine/table1.csv").set_index("method")
    assert table.index.tolist() == ["base", "grpo"]
    assert table["n_problems"].tolist() == [len(test)] * 2
    assert table["pass@1"].tolist() == pytest.approx([right] * 2, abs=1e-5)
    measured = pd.read_csv(folder / "results/mine/lm_eval.csv")
    assert set(measured["task"]) == {"iapo_sums"}
    assert (measured["value"] - right).abs().min() < 1e-5

    assert planned(folder, *targets) == set()
    before, question = problems.read_text(), next(row["question"] for row in test if row["answer"] == "4")
    problems.write_text(re.sub(rf"({re.escape(question)}.*)Answer: 4", r"\1Answer: 5", before))
    scored = {"grade", "metrics", "table", "lm_eval", "lm_eval_table"}
    assert planned(folder, *targets) == {"prepare", *scored}
    problems.write_text("".join(before.splitlines(keepends=True)[:20]))
    assert planned(folder, *targets) == {"prepare", "train", "sample", *scored}
    problems.write_text(before)
    save_model(reciter(len(tokenizer), said[:-1], length), tokenizer, folder / "model")
    assert planned(folder, *targets) == {"base", "train", "sample", *scored}
    problems.write_text("{}\n")
    assert snakemake(folder, "-n", *targets).returncode == 2
