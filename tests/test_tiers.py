"""The paper's tiers: published values, datasets of a tier, and a dry run of everything."""

import re
from pathlib import Path

import pytest
import yaml
from project_copy import copy_project, snakemake

from iapo_bench.config.asked import PAPER_TIERS, asked_for, paper_cells, read_workflow_tier
from iapo_bench.config.tier_file import parse_tier, read_tier
from iapo_bench.errors import UserError
from iapo_bench.method import load_method
from iapo_bench.plan.show import jobs
from iapo_bench.train.optimizer import make_optimizer
from iapo_bench.worlds import read_problems
from iapo_bench.worlds.prepare import prepare

ROOT = Path(__file__).parent.parent
DATASETS = ("gsm8k", "math500", "dapo")
WEIGHTS = {  # IAPO's alpha and beta, selected per cell in its paper
    "qwen-0.5b": ((1, 1), (1, 1e-6), (1e-6, 1e-2)),
    "qwen-1.5b": ((1, 1), (1e-6, 1e-6), (1e-2, 1e-4)),
    "qwen-7b": ((1, 1e-6), (1e-6, 1e-6), (1e-6, 1e-6)),
}
EPOCHS = {"gsm8k": 2, "math500": 152, "dapo": 2}
TRAINING_PROBLEMS = {"gsm8k": 6973, "math500": 255, "dapo": 16_041}  # of the honest splits, repeats removed


def cell(name: str, dataset: str, **changes):
    return read_tier(name, {"world": {"name": dataset}, **changes})


@pytest.mark.parametrize("name", PAPER_TIERS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_published_settings(name, dataset, model):
    tier = cell(name, dataset)
    train, evaluate = tier.train, tier.evaluate
    assert (train.lr, train.clip_norm, train.temperature, train.max_tokens) == (1e-6, 1.0, 1.0, 2048)
    assert train.group_size == 8
    assert train.prompts_per_step * train.group_size == (128 if name == "qwen-7b" else 96)
    assert train.completions == EPOCHS[dataset] * TRAINING_PROBLEMS[dataset] * 8
    assert make_optimizer(model, train.lr).defaults["betas"] == (0.9, 0.99)
    assert (evaluate.n_samples, evaluate.seeds, evaluate.temperature, evaluate.top_p) == (32, [42, 142, 242], 1.0, 1.0)
    assert {2, 4, 8, 16, 32} <= set(evaluate.ks)
    assert set(tier.methods) == {"grpo", "dapo", "gfpo", "gtpo", "sgrpo", "iapo"}
    options = tier.train_job("iapo", 0).method.options
    assert (options["alpha"], options["beta"]) == WEIGHTS[name][DATASETS.index(dataset)]
    assert load_method("iapo").loss.kl_coef == 0.001
    assert tier.model.dtype == "bfloat16"
    assert re.fullmatch(r"Qwen/Qwen2\.5-[\d.]+B-Instruct@[0-9a-f]{40}", tier.model.source)
    assert tier.folder == f"{name}/{dataset}"


@pytest.mark.parametrize("dataset", DATASETS)
def test_an_epoch_counts_the_problems_that_prepare_leaves(dataset, request, tmp_path):
    if not (folder := request.config.getoption("--data-dir")):
        pytest.skip("needs --data-dir")
    prepare(cell("qwen-0.5b", dataset, world={"name": dataset, "data_dir": folder}).prepare_job(), tmp_path / "data")
    assert len(read_problems(tmp_path / "data" / "train.jsonl")) == TRAINING_PROBLEMS[dataset]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([], ("micro", "micro")),
        (["results/table1.csv", "ablations"], ("micro", "micro")),
        (["results/smoke-0.5b/table1.csv"], ("smoke-0.5b", "micro")),
        (["results/qwen-7b/dapo/table1.csv", "results/qwen-7b/dapo/wallclock.csv"], ("qwen-7b", "dapo")),
        (["results/qwen-7b/table1.csv"], ("qwen-7b", "gsm8k")),
        (["results/figures/training.png"], ("micro", "micro")),
    ],
)
def test_a_target_names_its_tier(targets, expected):
    tier = read_workflow_tier({"train": {"completions": "64"}}, {}, targets)
    assert (tier.tier, tier.world.name) == expected
    assert tier.train.completions == 64
    assert read_workflow_tier({"tier": "smoke"}, {}, targets).tier == "smoke"


def test_a_target_of_a_dataset_that_the_tier_has_not():
    with pytest.raises(UserError, match=r"gsm8/table1\.csv: unknown dataset of this tier 'gsm8': did you mean 'gsm8k'"):
        read_workflow_tier({}, {}, ["results/qwen-7b/gsm8/table1.csv"])


def test_targets_of_several_tiers():
    with pytest.raises(UserError, match="belong to several tiers or datasets"):
        read_workflow_tier({}, {}, ["results/qwen-7b/dapo/table1.csv", "results/qwen-7b/gsm8k/table1.csv"])


def test_the_targets_of_a_command_line():
    assert asked_for(["snakemake", "-n"]) == []
    assert asked_for(["snakemake", "-n", "results/smoke/table1.csv", "--cores", "2"]) == ["results/smoke/table1.csv"]
    assert asked_for(["./results/smoke/table1.csv"]) == ["results/smoke/table1.csv"]  # as shells complete it


def test_a_setting_that_is_given_wins_over_the_datasets():
    assert cell("qwen-0.5b", "math500", train={"completions": 64}).train.completions == 64
    content = yaml.safe_load((ROOT / "configs" / "qwen-0.5b.yaml").read_text())
    given = {"world": {"name": "math500"}, "train": {"completions": 64}}
    merged = {
        **content,
        "world": {**content["world"], **given["world"]},
        "train": {**content["train"], **given["train"]},
    }
    assert read_workflow_tier(merged, given).train.completions == 64
    words = {
        "methods": {"iapo": {"options": {"alpha": "1e-3", "informativeness": "next_token"}}},
        "lm_eval": {"limit": "null"},
    }
    assert read_workflow_tier({**words, "tier": "micro"}).method("iapo").options["alpha"] == 1e-3
    assert read_workflow_tier({**words, "tier": "micro"}).lm_eval.limit is None
    assert type(read_workflow_tier({"model": {"sft": {"steps": "2"}}}).model.sft["steps"]) is int
    assert read_workflow_tier(content).train.completions == cell("qwen-0.5b", "gsm8k").train.completions


def test_a_part_for_one_dataset_can_be_given():
    parts = {"gsm8k": {"train": {"max_tokens": 1024}}, "math500": {"train": {"max_tokens": 99}}}
    assert cell("qwen-0.5b", "gsm8k", datasets=parts).train.max_tokens == 1024
    assert cell("qwen-0.5b", "dapo", datasets=parts).model_dump() == cell("qwen-0.5b", "dapo").model_dump()
    assert cell("qwen-0.5b", "gsm8k", datasets=parts, train={"max_tokens": 64}).train.max_tokens == 64
    assert list(cell("qwen-0.5b", "gsm8k", datasets=parts).datasets) == list(read_tier("qwen-0.5b").datasets)


def test_a_resolved_tier_can_be_read_again_and_is_the_same():
    tier = cell("qwen-1.5b", "dapo", train={"completions": 64})
    assert parse_tier(tier.model_dump(mode="json"), source="here").model_dump() == tier.model_dump()


def test_mistakes_about_datasets_are_one_line():
    with pytest.raises(UserError, match="unknown dataset of this tier 'micro'"):
        read_tier("qwen-7b", {"world": {"name": "micro"}})
    content = yaml.safe_load((ROOT / "configs" / "qwen-7b.yaml").read_text())
    content["datasets"]["gsm8k"] = {"trian": {"lr": 1.0}}
    with pytest.raises(UserError, match="unknown key 'trian': did you mean 'train'"):
        parse_tier(content, source="here")
    with pytest.raises(UserError, match="unknown tier 'qwen-8b'"):
        paper_cells({"tiers": ["qwen-8b"]})


def test_cells_of_the_paper_get_what_is_given_to_all(tmp_path):
    given = {"world": {"data_dir": str(tmp_path)}, "train": {"completions": 8}}
    cells = paper_cells({"tiers": ["qwen-7b", "smollm2"], **given})
    assert list(cells) == ["qwen_7b_gsm8k_", "qwen_7b_math500_", "qwen_7b_dapo_", "smollm2_gsm8k_"]
    for config in cells.values():
        tier = read_workflow_tier(config)
        assert (tier.world.data_dir, tier.train.completions) == (str(tmp_path), 8)


def test_every_job_reads_a_file_that_is_named_by_what_can_change_its_result():
    """Jobs of several tiers run in one workflow: one without settings of its own would read another tier's."""
    for path in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            if "shell:" in rule and not rule.startswith("lm_eval_data:"):  # whose arguments say all
                assert re.search(r"(settings|code)=settings\(|with_problems\(", rule), rule.splitlines()[0]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("paper"))


def dry_run(folder: Path, *arguments: str) -> str:
    done = snakemake(folder, *arguments, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def test_a_dry_run_of_the_whole_paper_counts_its_jobs(copy):
    shown = dry_run(copy, "-s", "paper.smk", "-n")
    counts = {rule: int(count) for rule, count in re.findall(r"^(\S+) +(\d+)$", shown, re.MULTILINE)}
    expected = sum(sum(jobs(cell(name, dataset)).values()) for name in PAPER_TIERS for dataset in DATASETS)
    assert counts["total"] == expected + 1
    for name in PAPER_TIERS:
        for dataset in DATASETS:
            prefix = re.sub(r"\W", "_", f"{name}_{dataset}_")
            assert counts[f"{prefix}train"] == 6 * 3
            assert counts[f"{prefix}sample"] == counts[f"{prefix}grade"] == 6 * 3 + 1
            assert counts[f"{prefix}metrics"] == 7


@pytest.mark.parametrize("name", ["micro", "smoke", "smollm2", "authors"])
def test_a_dry_run_has_the_jobs_that_the_plan_counts(copy, name):
    shown = dry_run(copy, "-n", "--config", f"tier={name}")
    counts = {rule: int(count) for rule, count in re.findall(r"^(\S+) +(\d+)$", shown, re.MULTILINE)}
    total = counts.pop("total")
    assert counts == {**jobs(read_tier(name)), "all": 1}
    assert total == sum(counts.values())


def test_jobs_of_two_tiers_in_one_run_read_their_own_settings(copy):
    snakemake(
        copy,
        *("-s", "paper.smk", "--config", "tiers=[smoke,micro]", "world={options: {n_validation: 5}}"),
        *("--until", "smoke_micro_prepare", "micro_micro_prepare"),
    )
    lines = {
        (tier, split): len((copy / "results" / tier / "data" / f"{split}.jsonl").read_text().splitlines())
        for tier in ("smoke", "micro")
        for split in ("test", "validation")
    }
    assert lines == {
        ("smoke", "test"): 8,
        ("micro", "test"): 300,
        ("smoke", "validation"): 5,
        ("micro", "validation"): 5,
    }


def test_a_folder_of_data_that_is_not_there_is_named_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"world\.data_dir: .*nope is not a directory"):
        read_workflow_tier({"tier": "smollm2", "world": {"data_dir": str(tmp_path / "nope")}})
