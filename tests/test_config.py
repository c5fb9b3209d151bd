"""Configurations: every file is valid, every mistake is one clear line, a method's slice is its own."""

import tomllib
from pathlib import Path

import pytest
import yaml

from iapo_bench.config.reading import merge
from iapo_bench.config.tier import parse_tier, read_tier, search_space
from iapo_bench.errors import UserError
from iapo_bench.method import load_method

ROOT = Path(__file__).parent.parent
TIERS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem != "environment")


@pytest.mark.parametrize("name", TIERS)
def test_every_tier_is_valid(name):
    tier = read_tier(name)
    assert tier.tier == name
    for method in tier.methods:
        tier.training_slice(method)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"completion": 3}}, "train: unknown key 'completion': did you mean 'completions'"),
        ({"tran": {}}, "top level: unknown key 'tran': did you mean 'train'"),
        ({"methods": {"ipo": None}}, "unknown method 'ipo': did you mean 'iapo'"),
        ({"methods": {"iapo": {"options": {"alfa": 1}}}}, "unknown option of iapo 'alfa': did you mean 'alpha'"),
        ({"methods": {"iapo": {"lrr": 1}}}, "methods.iapo: unknown key 'lrr': did you mean 'lr'"),
        ({"train": {"lora": {"rnk": 8}}}, "train.lora: unknown key 'rnk': did you mean 'rank'"),
        ({"tune": {"sampels": 8}}, "tune: unknown key 'sampels'"),
        ({"train": {"lora": {}, "sharded": True}}, "sharded and lora do not go together"),
        ({"methods": {"iapo": {"profile": "official"}}}, "methods.iapo.profile"),
        ({"train": {"group_size": 0}}, "train.group_size: Input should be greater than 0"),
        ({"train": {"lr": "fast"}}, "train.lr"),
        ({"world": {"name": "gsm9k"}}, "world.name"),
        ({"evaluate": {"n_samples": 16}}, "k=32 needs at least 32 samples a problem, n_samples is 16"),
        ({"tuned": "nowhere.yaml"}, "nowhere.yaml does not exist"),
    ],
)
def test_mistakes_are_one_clear_line(changes, message):
    with pytest.raises(UserError) as error:
        read_tier("micro", changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_tier_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="unknown tier 'mirco': did you mean 'micro'"):
        read_tier("mirco")
    with pytest.raises(UserError, match=r"gone\.yaml does not exist"):
        read_tier(tmp_path / "gone.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("tier: [micro")
    with pytest.raises(UserError, match=r"broken\.yaml is not YAML"):
        read_tier(broken)
    broken.write_text("")
    with pytest.raises(UserError, match="holds no settings"):
        read_tier(broken)


def test_yamls_scientific_notation_without_a_point():
    """YAML reads 1e-6 as a string; here it is the number that was meant."""
    assert read_tier("micro", {"train": yaml.safe_load("lr: 1e-6")}).train.lr == 1e-6


def test_a_change_to_one_method_is_in_no_other_slice():
    before, after = read_tier("micro"), read_tier("micro", {"methods": {"iapo": {"options": {"alpha": 0.5}}}})
    assert before.training_slice("iapo") != after.training_slice("iapo")
    for method in set(before.methods) - {"iapo"}:
        assert before.training_slice(method) == after.training_slice(method)


def test_own_settings_win_over_the_tuned_choice_and_that_over_the_tier():
    tier = read_tier("micro", {"tuned": None, "train": {"lr": 0.5}})
    assert tier.training_slice("iapo")["train"]["lr"] == 0.5
    trial = tier.training_slice("iapo", trial=0)
    assert trial["train"]["lr"] == search_space("iapo")[0]["lr"]
    own = read_tier("micro", {"tuned": None, "methods": {"iapo": {"lr": 0.25, "options": {"beta": 0.0}}}})
    mixed = own.training_slice("iapo", trial=0)
    assert mixed["train"]["lr"] == 0.25
    assert mixed["method"]["options"] == {**search_space("iapo")[0]["options"], "beta": 0.0}


def test_every_method_of_the_micro_tier_has_as_many_trials_and_each_is_valid():
    tier = read_tier("micro")
    sizes = {method: len(search_space(method)) for method in tier.methods}
    assert len(set(sizes.values())) == 1, sizes
    for method, size in sizes.items():
        for trial in range(size):
            settings = tier.training_slice(method, trial)
            load_method(method, **settings["method"]["options"])


def test_methods_without_trials_cannot_be_tuned():
    with pytest.raises(UserError, match="lists no trials"):
        search_space("dr_grpo")


def test_merge_lays_mappings_over_each_other():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_a_whole_tier_given_as_a_mapping():
    content = yaml.safe_load((ROOT / "configs" / "micro.yaml").read_text())
    assert parse_tier(content, source="here") == read_tier("micro")


def test_the_conda_environment_lists_the_projects_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "configs" / "environment.yaml").read_text())
    assert environment["dependencies"][-1]["pip"] == project["dependencies"]
