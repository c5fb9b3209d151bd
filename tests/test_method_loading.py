"""Finding a method by name and giving it options."""

import pytest

from iapo_bench import plugins
from iapo_bench.errors import UserError
from iapo_bench.method import LossSpec, load_method
from iapo_bench.plugins import list_methods
from iapo_bench.worlds import datasets


def message(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_method(*args, **options)
    return str(caught.value)


def test_every_file_loads_in_both_profiles():
    names = {"grpo", "dr_grpo", "dapo", "gfpo", "gtpo", "sgrpo", "iapo"}
    names |= {"kimi", "efficient", "shorterbetter", "laser", "alp", "dler", "grpo_lead", "gdpo"}
    names |= {"gspo", "cispo", "random_reward"}
    assert names <= set(list_methods())
    for name in names:
        assert load_method(name).name == load_method(name, "released").name == name


def test_an_unknown_name_suggests_and_lists():
    assert message("dapoo").startswith("unknown method 'dapoo': did you mean 'dapo'? known: alp, cispo, dapo")
    assert "did you mean" not in message("xyz")


def test_an_unknown_profile_suggests_and_lists():
    assert message("dapo", "release") == ("unknown profile 'release': did you mean 'released'? known: paper, released")


def test_an_unknown_option_suggests_and_lists():
    assert message("iapo", alpa=1.0).startswith(
        "unknown option of iapo 'alpa': did you mean 'alpha'? known: alpha, beta"
    )
    assert "unknown option of gfpo 'counts'" in message("gfpo", counts=[])
    assert message("iapo", loss={"clip_hi": 0.3}).startswith(
        "unknown loss setting 'clip_hi': did you mean 'clip_high'?"
    )


def test_an_option_outside_its_choices_lists_them():
    assert message("gfpo", metric="lenght") == (
        "unknown metric of gfpo 'lenght': did you mean 'length'? known: length, token_efficiency"
    )
    assert "known: constant, sequence_mean, token_mean" in message("grpo", loss={"reduction": "mean"})


def test_a_number_that_yaml_read_as_text_is_refused():
    assert message("iapo", alpha="1e-6") == "alpha of iapo must be float, is '1e-6'"
    assert message("gfpo", k=4.0) == "k of gfpo must be int, is 4.0"
    assert message("grpo", loss={"kl_coef": "1e-3"}) == "kl_coef of the loss must be float, is '1e-3'"
    assert load_method("iapo", alpha=1).alpha == 1


def test_options_win_over_the_profile_and_keep_the_rest_of_its_loss():
    method = load_method("iapo", "released", loss={"kl_coef": 0.0}, smoothing=False)
    assert method.loss == LossSpec(clip_high=0.28, kl_coef=0.0, reduction="token_mean", local_rows=4)
    assert (method.smoothing, method.unit_norm) == (False, True)
    assert load_method("grpo", loss=LossSpec(clip_high=0.5)).loss.clip_high == 0.5


def test_any_method_takes_any_objective():
    method = load_method("iapo", loss={"objective": "cispo", "ratio": "sequence"})
    assert method.loss == LossSpec(kl_coef=0.001, objective="cispo", ratio="sequence")
    assert message("iapo", loss={"objective": "ppo"}) == "unknown objective of the loss 'ppo': known: cispo, clipped"


def test_a_method_dropped_in_is_found_and_wins(tmp_path, monkeypatch):
    (tmp_path / "grpo.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from iapo_bench.method import Method, Signal\n"
        "@dataclass\n"
        "class Mine(Method):\n"
        "    name = 'grpo'\n"
        "    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.OLD_LOGP})\n"
        "    strength: float = 2.0\n"
    )
    (tmp_path / "nameless.py").write_text("from baselines.dapo import DAPO\nclass Mine(DAPO): pass\n")
    monkeypatch.setattr(plugins, "METHOD_DIRS", (tmp_path, *plugins.METHOD_DIRS))
    method = load_method("grpo", strength=3.0)
    assert (type(method).__name__, method.strength, len(method.needs)) == ("Mine", 3.0, 1)
    assert message("nameless").endswith("has no subclass of Method with name = 'nameless'")


def test_a_file_means_its_own_class_and_not_the_baseline_that_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "METHOD_DIRS", (tmp_path, *plugins.METHOD_DIRS))
    mine = "from baselines.dapo import DAPO\nclass Mine(DAPO): dynamic = True\n"
    (tmp_path / "dapo.py").write_text(mine)
    assert type(load_method("dapo")).__name__ == "Mine"
    (tmp_path / "dapo.py").write_text(mine + "class Other(Mine): pass\n")
    assert "more than one subclass of Method with name = 'dapo' (Mine, Other): rename all but one" in message("dapo")


@pytest.mark.parametrize("text", ["import nothing_of_this_name\n", "class Sums(\n"])
def test_a_dataset_that_cannot_be_imported_is_one_line_with_its_place(tmp_path, monkeypatch, text):
    folder = tmp_path / "iapo_bench" / "worlds" / "datasets"
    folder.mkdir(parents=True)
    monkeypatch.setattr(plugins, "ROOT", tmp_path)
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(folder)])
    (folder / "broken.py").write_text(text)
    with pytest.raises(UserError, match=r"^broken \(.*broken\.py:1\): import: \w+Error: "):
        plugins.load_class(folder / "broken.py", object, "broken")
