"""Settings: every file is valid, every mistake is one clear line with its place, and it is known which setting wins."""

import tomllib
from pathlib import Path

import pytest
import yaml

from iapo_bench.config.asked import check_arguments, check_methods, read_workflow_tier
from iapo_bench.config.reading import dump_yaml, merge, parse_yaml
from iapo_bench.config.section import identity
from iapo_bench.config.tier_file import list_tiers, parse_tier, read_tier
from iapo_bench.errors import UserError
from iapo_bench.method import load_method

ROOT = Path(__file__).parent.parent
TIERS = sorted(list_tiers())


def trained(tier, name, **changes):
    """What decides the training of a method, as plain values."""
    return identity(tier.train_job(name, 0, **changes))


@pytest.mark.parametrize("name", TIERS)
def test_every_tier_is_valid(name):
    tier = check_methods(read_tier(name))
    assert tier.tier == name
    for method in tier.methods:
        tier.train_job(method, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"completion": 3}}, "--config: train: unknown key 'completion': did you mean 'completions'"),
        ({"tran": {}}, "--config: top level: unknown key 'tran': did you mean 'train'"),
        ({"methods": {"ipo": None}}, "--config: methods.ipo: unknown method 'ipo': did you mean 'iapo'"),
        ({"methods": ["iapo", "grppo"]}, "--config: methods.grppo: unknown method 'grppo': did you mean 'grpo'"),
        (
            {"methods": {"iapo": {"options": {"alfa": 1}}}},
            "--config: unknown option of iapo 'alfa': did you mean 'alpha'",
        ),
        ({"methods": {"iapo": {"options": {"alpha": float("nan")}}}}, "--config: "),
        ({"methods": {"iapo": {"lrr": 1}}}, "--config: methods.iapo: unknown key 'lrr': did you mean 'lr'"),
        ({"train": {"lora": {"rnk": 8}}}, "train.lora: unknown key 'rnk': did you mean 'rank'"),
        ({"tune": {"sampels": 8}}, "tune: unknown key 'sampels'"),
        ({"train": {"lora": {}, "sharded": True}}, "sharded and lora cannot be combined"),
        ({"methods": {"iapo": {"profile": "official"}}}, "methods.iapo.profile"),
        ({"train": {"group_size": 0}}, "--config: train.group_size: Input should be greater than 0"),
        ({"train": {"lr": "fast"}}, "--config: train.lr"),
        ({"train": {"lr": float("inf")}}, "--config: train.lr"),
        ({"train": {"seeds": [1, 1]}}, "training seeds must be distinct"),
        ({"train": {"seeds": 0}}, "train.seeds: must be a number of seeds (3 means 0, 1 and 2) or a list"),
        ({"train": {"seeds": "three"}}, "or a list of seeds, not 'three'"),
        ({"world": {"name": "gsm9k"}}, "--config: world.name: unknown dataset 'gsm9k': did you mean 'gsm8k'"),
        ({"evaluate": {"n_samples": 16}}, "k=32 needs at least 32 samples a problem, n_samples is 16"),
        ({"methods": {"base": {"method": "iapo"}}}, "--config: methods.base: is reserved for the untrained model"),
        ({"methods": {"base_cut": {"method": "iapo"}}}, "--config: methods.base_cut: is reserved for the untrained"),
        ({"ablations": {"fast": {"method": "ipo"}}}, "--config: ablations.fast: unknown method 'ipo'"),
        ({"sensitivity": {"method": "ipo"}}, "--config: sensitivity.method: unknown method 'ipo': did you mean 'iapo'"),
        ({"world": {"name": "gsm8k"}}, "--config: world.name: the model 'shipped' answers only the micro world"),
        ({"tier": "qwen-7b", "world": {"name": "gsm8"}}, "--config: unknown dataset of this tier 'gsm8': did you mean"),
        (
            {"methods": {"iapo": {"method": "dapo"}, "dapo": {"method": "iapo"}}},
            "--config: methods.dapo: is a variant of iapo",
        ),
        ({"methods": {"..": {"method": "iapo"}}}, "--config: methods...: cannot name a folder of results"),
        ({"methods": {"a/b": {"method": "iapo"}}}, "--config: methods.a/b: cannot name a folder of results"),
        ({"methods": {"a{b}": {"method": "iapo"}}}, "--config: methods.a{b}: cannot name a folder of results"),
        ({"ablations": {"data": {"method": "iapo"}}}, "--config: ablations.data: cannot name a folder of results"),
        ({"given": {"train": {"lr": 1e-3}}}, "--config: given: is not set by hand"),
        ({"sensitivity": {"grid": {"alfa": [1], "beta": [1]}}}, "--config: unknown option of iapo 'alfa'"),
        ({"sensitivity": {"grid": {"alpha": ["much"]}}}, "Input should be a valid number"),
        ({"tier": "smoke", "world": {"file": "my.jsonl"}}, "--config: world.name: the model 'taught' answers only"),
        ({"tier": "qwen-7b", "datasets": {"gsm8k": "x"}}, "--config: datasets.gsm8k: Input should be a valid dict"),
        ({"tier": "mirco"}, "--config: unknown tier 'mirco': did you mean 'micro'"),
    ],
)
def test_mistakes_are_one_clear_line_with_their_place(changes, message):
    with pytest.raises(UserError) as error:
        read_workflow_tier(changes, changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_in_a_file_names_file_and_line(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (ROOT / "configs" / "micro.yaml").read_text()
    path.write_text(text.replace("group_size: 8", "group_size: eight"))
    line = next(n for n, row in enumerate(text.splitlines(), 1) if "group_size: 8" in row)
    with pytest.raises(UserError, match=rf"mine\.yaml:{line}: train\.group_size"):
        read_tier(path)
    path.write_text(text.replace("  group_size: 8", "  grup_size: 8"))
    with pytest.raises(UserError, match=rf"mine\.yaml:{line}: train: unknown key 'grup_size': did you mean 'gro"):
        read_tier(path)


def test_a_mistake_in_what_a_file_says_of_its_dataset_names_the_line(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (ROOT / "configs" / "qwen-7b.yaml").read_text()
    path.write_text(text.replace("  math500:", "  math500:\n    prompt: {sytem: terse}"))
    line = next(n for n, row in enumerate(path.read_text().splitlines(), 1) if "sytem" in row)
    with pytest.raises(UserError, match=rf"mine\.yaml:{line}: prompt: unknown key 'sytem'"):
        read_tier(path, {"world": {"name": "math500"}})
    read_tier(path)


def test_a_mistake_in_a_file_of_configfile_names_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    part = {"train": {"completions": 64, "lrr": 1}}
    path.write_text("train:\n  completions: 64\n  lrr: 1\n")
    with pytest.raises(UserError, match=r"mine\.yaml:3: train: unknown key 'lrr'"):
        read_workflow_tier(part, {}, files=[path])
    with pytest.raises(UserError, match=r"--config: train: unknown key 'lrr'"):
        read_workflow_tier(part, {"train": {"lrr": 1}}, files=[path])
    path.write_text("train:\n  lr: 1\n  lr: 2\n")
    with pytest.raises(UserError, match=r"mine\.yaml:3 is not YAML: duplicate key 'lr', at lines 2 and 3"):
        read_workflow_tier({"train": {"lr": 2}}, {}, files=[path])


def test_rows_are_chosen_from_a_whole_tier_of_configfile(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((ROOT / "configs" / "smoke.yaml").read_text())
    given = {"methods": ["iapo", "grpo"]}
    config = {**yaml.safe_load(path.read_text()), **given}  # as Snakemake merges them
    tier = read_workflow_tier(config, given, files=[path])
    assert list(tier.methods) == ["iapo", "grpo"]
    assert tier.method("iapo").options == {"alpha": 0.1, "beta": 0.1}


def test_settings_that_snakemake_would_drop_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("resources:\n  gpu: 1\n  gpu: 2\n")
    for arguments, message in (
        (["--config", "tier=smoke", "train={lr: 1, lr: 2}"], "--config train.* duplicate key 'lr'"),
        (["--config", "tier=smoke", "-n", "--config", "train={lr: 1}"], "--config is given twice"),
        (["--configfile", "a.yaml", "-n", "--configfile=b.yaml"], "--configfile is given 2 times"),
        (["-n", "--workflow-profile", str(tmp_path)], r"config\.yaml:3 .* duplicate key 'gpu'"),
    ):
        with pytest.raises(UserError, match=message):
            check_arguments(["snakemake", "results/table1.csv", *arguments])
    check_arguments(["snakemake", "--config", "train={lr: 1}", "train={seeds: 3}", "-n", "--", "all"])
    check_arguments(["snakemake", "--configfile", "a.yaml", "b.yaml", "-n"])


def test_unknown_tier_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="unknown tier 'mirco': did you mean 'micro'"):
        read_tier("mirco")
    with pytest.raises(UserError, match=r"results/mirco/table1\.csv: unknown tier 'mirco': did you mean 'micro'"):
        read_workflow_tier({}, {}, ["results/mirco/table1.csv"])
    with pytest.raises(UserError, match=r"gone\.yaml does not exist"):
        read_tier(tmp_path / "gone.yaml")
    broken = tmp_path / "broken.yaml"
    for content, message in (
        ("tier: [micro", r"broken\.yaml:1 is not YAML"),
        ("", "holds no settings"),
        ("train:\n  lr: 1\n  lr: 2\n", r"broken\.yaml:3 is not YAML: duplicate key 'lr', at lines 2 and 3"),
        ("a: {b: 1, b: 1}", "duplicate key 'b'"),
    ):
        broken.write_text(content)
        with pytest.raises(UserError, match=message):
            read_tier(broken)
    broken.write_bytes(b"tier: \xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_tier(broken)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-6", 1e-6), ("-2E+3", -2000.0), ("1.5e2", 150.0), ("1e", "1e"), ("e5", "e5"), ("7", 7)]
)
def test_numbers_are_numbers_everywhere(text, value):
    assert parse_yaml(f"lr: {text}", "here")[0] == {"lr": value}
    options = (
        read_tier("micro", {"methods": {"iapo": {"options": {"alpha": text}}}}).train_job("iapo", 0).method.options
    )
    assert options["alpha"] == value


@pytest.mark.parametrize("text", ["679e61750571", "1e3", "-2E+3", "7", "1.5", "null", "yes", "sums"])
def test_what_is_written_is_read_back(text):
    """A digest of twelve characters may look like a number."""
    assert parse_yaml(dump_yaml({"code": text, text: 1}), "here")[0] == {"code": text, text: 1}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"train": {"completions": 7}}, "completions = 7 is less than one group of 8"),
        ({"tune": {"n_samples": 8}}, "k = 16 needs at least as many samples, not n_samples = 8"),
    ],
)
def test_what_leaves_nothing_to_do_is_refused(given, complaint):
    with pytest.raises(UserError, match=complaint):
        read_tier("micro", given)


def test_a_list_of_methods_chooses_rows_and_a_mapping_changes_them():
    tier = read_tier("micro", {"methods": ["iapo", "grpo"]})
    assert list(tier.methods) == ["iapo", "grpo"]
    assert trained(tier, "iapo") == trained(read_tier("micro"), "iapo")
    assert list(read_tier("micro", {"methods": "dapo"}).methods) == ["dapo"]
    varied = read_tier("micro", {"methods": ["iapo", "iapo_ni"]})
    assert list(varied.methods) == ["iapo", "iapo_ni"]
    assert trained(varied, "iapo_ni")["method"]["options"]["alpha"] == 0.0
    changed = read_tier("micro", {"methods": {"iapo": {"lr": 0.5}}})
    assert list(changed.methods) == list(read_tier("micro").methods)
    assert changed.train_job("iapo", 0).train.lr == 0.5


def test_a_number_of_seeds_stands_for_the_first_ones():
    assert read_tier("micro", {"train": {"seeds": 3}}).train.seeds == [0, 1, 2]
    assert read_tier("micro", {"train": {"seeds": [5]}}).train.seeds == [5]


def test_a_change_to_one_method_is_in_no_other_slice():
    before, after = read_tier("micro"), read_tier("micro", {"methods": {"iapo": {"options": {"alpha": 0.5}}}})
    assert trained(before, "iapo") != trained(after, "iapo")
    for method in set(before.methods) - {"iapo"}:
        assert trained(before, method) == trained(after, method)


def test_settings_that_cannot_change_a_result_belong_to_no_runs_identity():
    free = {
        "engine_memory": 0.2,
        "micro_batch_tokens": 99,
        "rollout_batch_size": 3,
        "sharded": True,
        "gradient_checkpointing": True,
        "checkpoint_every": 1,
        "seeds": [0, 4],
    }
    tier = read_tier("micro")
    assert trained(tier, "iapo") == trained(
        read_tier("micro", {"train": free, "job": {"mem_mb": 9}, "gpus": 3}), "iapo"
    )
    sampled = identity(tier.sample_job("test"))
    assert sampled == identity(
        read_tier("micro", {"evaluate": {"batch_size": 3, "engine_memory": 0.5, "ks": [1]}}).sample_job("test")
    )
    values = {"lr": 9e-9, "temperature": 0.5, "group_size": 2, "clip_norm": 3.0, "max_draws": 9, "answer_stride": 2}
    values |= {"completions": 160, "prompts_per_step": 3, "max_tokens": 7, "updates_per_rollout": 3, "problems": 5}
    values |= {"importance_cap": 2.0, "skip_answer": True, "lora": {"rank": 3}, "engine": "vllm"}
    for key, value in values.items():
        assert trained(tier, "iapo") != trained(read_tier("micro", {"train": {key: value}}), "iapo"), key


def test_which_setting_wins():
    """The command line over the tier's entry for a method, that over the tuned choice, that over the tier."""
    content = yaml.safe_load((ROOT / "configs" / "micro.yaml").read_text())
    content["tuned"] = {"iapo": {"lr": 0.3, "options": {"alpha": 0.3, "beta": 0.3}}}
    tier = parse_tier(content, source="here")
    assert tier.train_job("iapo", 0).train.lr == 0.3
    assert tier.train_job("dapo", 0).train.lr == content["train"]["lr"]
    content["methods"]["iapo"] = {"lr": 0.2, "options": {"beta": 0.2}}
    tier = parse_tier(content, source="here")
    job = tier.train_job("iapo", 0)
    assert (job.train.lr, job.method.options) == (0.2, {"alpha": 0.3, "beta": 0.2})
    for_all = parse_tier(content, {"train": {"lr": 0.1}}, source="here")
    assert {for_all.train_job(name, 0).train.lr for name in for_all.methods} == {0.1}
    for_one = parse_tier(content, {"train": {"lr": 0.1}, "methods": {"iapo": {"lr": 0.05}}}, source="here")
    assert (for_one.train_job("iapo", 0).train.lr, for_one.train_job("dapo", 0).train.lr) == (0.05, 0.1)
    assert for_one.train_job("iapo", 0).method.options["beta"] == 0.2
    trial = tier.train_job("iapo", 0, trial=1)
    assert trial.train.lr == content["train"]["lr"]
    assert trial.method.options == {"alpha": 0.1, "beta": 0.0}, "a trial wins over the tier's entry"


def test_what_a_search_says_it_tried_is_what_it_trained():
    given = {"train": {"lr": 1e-3, "updates_per_rollout": 1}, "methods": {"iapo": {"options": {"alpha": 0.7}}}}
    tier = read_tier("micro", {**given, "tuned": None})
    tried = tier.tune_job().trials
    for name, trials in tried.items():
        jobs = [tier.train_job(name, 0, trial=number) for number in range(len(trials))]
        for trial, job in zip(trials, jobs, strict=True):
            assert trial["lr"] == job.train.lr
            assert trial.get("updates_per_rollout", 1) == job.train.updates_per_rollout == 1
            assert trial.get("options", {}).items() <= job.method.options.items()
    assert {trial["options"]["alpha"] for trial in tried["iapo"]} == {0.7}
    assert [trial["lr"] for trial in tried["sgrpo"]] == [1e-3, 1e-3, 1.5e-3], "multiples of the rate that was given"


def test_every_row_says_how_its_settings_were_chosen():
    micro = read_tier("micro", {"methods": {"grpo": None}})
    assert {name: micro.selection_of(name) for name in ("iapo", "grpo", "iapo_ni")} == {
        "iapo": "validation",
        "grpo": "defaults",
        "iapo_ni": "validation, varied",
    }
    assert read_tier("micro", {"train": {"lr": 1e-3}}).selection_of("iapo") == "by hand"
    assert read_tier("micro", {"methods": {"iapo": {"options": {"alpha": 0.5}}}}).selection_of("iapo") == "by hand"
    assert read_tier("micro", {"methods": {"iapo": {"lr": 0.5}}}).selection_of("dapo") == "validation"
    assert read_tier("micro", {"tuned": None}).selection_of("iapo") == "defaults"
    assert read_tier("qwen-0.5b").selection_of("iapo") == "published"
    assert read_tier("qwen-0.5b", {"train": {"lr": 1e-5}}).selection_of("iapo") == "by hand"
    smollm2 = read_tier("smollm2")
    assert (smollm2.selection_of("dapo"), smollm2.selection_of("iapo")) == ("published", "by hand")


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"train": {"temperature": 0.7}}, "by hand"),
        ({"train": {"rewards": {"correct": 2.0}}}, "by hand"),
        ({"world": {"options": {"train": 64}}}, "by hand"),
        ({"train": {"completions": 64, "problems": 8, "seeds": 2}}, "validation"),
        ({"train": {"micro_batch_tokens": 512, "checkpoint_minutes": 5}}, "validation"),
        ({"evaluate": {"temperature": 0.7}}, "validation"),
        ({"selection": "published"}, "validation"),
        ({"model": {"source": "taught"}}, "by hand"),
        ({"model": {"dtype": "bfloat16"}}, "by hand"),
        ({"model": {"source": "shipped", "name": "mine"}}, "validation"),
        ({"tuned": {"iapo": {"lr": 1e-3}}}, "by hand"),
    ],
)
def test_a_choice_holds_for_what_it_was_made_with(given, chosen):
    assert read_tier("micro", given).selection_of("iapo") == chosen


def test_a_model_of_ones_own_has_choices_of_its_own(tmp_path):
    content = yaml.safe_load((ROOT / "configs" / "smollm2.yaml").read_text()) | {"tuned": {"dapo": {"lr": 1e-5}}}
    for given, chosen in ({"source": str(tmp_path), "dtype": "bfloat16"}, "validation"), ({"sft": None}, "by hand"):
        assert parse_tier(content, {"model": given}, source="here").selection_of("dapo") == chosen


@pytest.mark.parametrize("selection", ["validation", "published", "defaults"])
def test_a_tier_says_how_its_settings_were_chosen(selection):
    tier = read_tier("smoke", {"selection": selection, "tuned": None, "methods": {"iapo": {"selection": "by hand"}}})
    assert {name: tier.selection_of(name) for name in ("iapo", "dapo")} == {"iapo": "by hand", "dapo": selection}


@pytest.mark.parametrize("name", [name for name in TIERS if read_tier(name).tune])
def test_on_every_tier_the_trials_of_a_method_differ_in_what_is_trained(name):
    tier = read_tier(name)
    sizes = {method: len(tier.trials(method)) for method in tier.methods}
    assert len(set(sizes.values())) == 1, sizes
    for method, size in sizes.items():
        trials = [trained(tier, method, trial=trial) for trial in range(size)]
        assert len({str(trial) for trial in trials}) == size
        for trial in trials:
            load_method(method, **trial["method"]["options"])
    weights = [trained(tier, "iapo", trial=trial)["method"]["options"] for trial in range(sizes["iapo"])]
    assert len({(w["alpha"], w["beta"]) for w in weights}) == len(weights), "the search moves IAPO's weights"
    rates = [tier.train_job("iapo", 0, trial=trial).train.lr for trial in range(sizes["iapo"])]
    assert all(0.1 < rate / tier.train.lr < 10 for rate in rates), "candidates are relative to the tier's own rate"


def test_choices_are_kept_by_tier_and_dataset():
    folders = {read_tier("qwen-7b", {"world": {"name": name}}).folder for name in ("gsm8k", "math500", "dapo")}
    assert folders == {"qwen-7b/gsm8k", "qwen-7b/math500", "qwen-7b/dapo"}
    assert read_tier("smollm2").choices == read_tier("smollm2", {"world": {"name": "gsm8k"}}).choices == "smollm2"
    assert read_tier("smollm2", {"world": {"name": "math500"}}).choices == "smollm2/math500"


def test_a_method_without_a_file_of_trials_has_three_rates_and_one_with_an_empty_file_is_an_error(
    monkeypatch, tmp_path
):
    micro = read_tier("micro", {"methods": ["grpo"]})
    monkeypatch.setattr("iapo_bench.config.tier.CONFIG_DIR", tmp_path)
    assert [trial.lr_times for trial in micro.trials("grpo")] == [0.5, 1.0, 1.5]
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "grpo.yaml").write_text("search: []\n")
    with pytest.raises(UserError, match="lists no trials"):
        micro.trials("grpo")


def test_merge_lays_mappings_over_each_other():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_a_whole_tier_given_as_a_mapping():
    content = yaml.safe_load((ROOT / "configs" / "micro.yaml").read_text())
    assert parse_tier(content, source="here").model_dump() == read_tier("micro").model_dump()


def test_the_conda_environment_lists_the_projects_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "configs" / "environment.yaml").read_text())
    assert environment["dependencies"][-1]["pip"] == project["dependencies"]
    engines = yaml.safe_load((ROOT / "configs" / "environment-vllm.yaml").read_text())
    extra = project["optional-dependencies"]["vllm"]
    assert engines["dependencies"][-1]["pip"] == project["dependencies"] + extra
