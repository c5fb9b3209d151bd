"""The trials of every method: as many for each, loadable, and none that makes the method another."""

import pytest

from iapo_bench.config.asked import check_methods
from iapo_bench.config.tier import read_candidates
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.method import load_method
from iapo_bench.plugins import ROOT, find_files
from iapo_bench.workflow import Workflow

MICRO = read_tier("micro")


@pytest.mark.parametrize("name", ["iapo", *find_files([ROOT / "baselines"])])
def test_every_method_has_three_trials_that_differ_and_train_it(name):
    jobs = [MICRO.train_job(name, 0, trial=trial) for trial in range(len(read_candidates(name)))]
    assert len(jobs) == 3
    assert len({job.model_dump_json() for job in jobs}) == 3
    for job in jobs:
        method = load_method(job.method.name, job.method.profile, **job.method.options)
        assert not {"objective", "ratio"} & set(method.loss.idle_choices(job.train.updates_per_rollout))
        assert 0.25 <= job.train.lr / MICRO.train.lr <= 1.5


def test_no_search_starts_from_the_choice_of_an_earlier_one():
    chosen = {"dapo": {"updates_per_rollout": 4, "lr": 0.5}, "gtpo": {"options": {"zeros": "exclude"}}}
    again = read_tier("micro", {"tuned": chosen})
    for name in chosen:
        for trial in range(3):
            assert again.train_job(name, 0, trial=trial) == MICRO.train_job(name, 0, trial=trial)
    assert again.train_job("dapo", 0).train.updates_per_rollout == 4


def test_the_search_is_among_methods_and_not_among_their_variants():
    tier = read_tier("micro", {"methods": ["iapo_ni", "grpo"]})
    assert tier.searched == ["iapo", "grpo"]
    assert tier.tune_job().trials.keys() == {"iapo", "grpo"}
    assert Workflow(tier).trials == [f"tune/{name}/trial{i}" for name in ("iapo", "grpo") for i in range(3)]
    with pytest.raises(UserError, match=r"--config: tune\.candidates\.iapo_ni: unknown method 'iapo_ni': did you mean"):
        read_tier("micro", {"tune": {"candidates": {"iapo_ni": [{}]}}})


def test_an_entry_that_the_choice_cannot_change_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tier = read_tier("qwen-0.5b", {"tuned": {"iapo": {"lr": 0.5, "options": {"alpha": 9.0, "beta": 9.0}}}})
    assert tier.method("iapo").options["alpha"] == 1.0, "entry > choice"
    assert tier.method("iapo").lr == 0.5
    assert tier.overruled("iapo") == ["alpha", "beta"]
    assert [name for name in MICRO.searched if MICRO.overruled(name)] == []
    Workflow(read_tier("micro", {"methods": {"iapo": {"options": {"alpha": 0.5}}}})).tune()
    told = "warning: --config sets alpha of iapo, so tables will keep that and not the search's choice\n"
    assert capsys.readouterr().err == told


def test_clipping_can_act_where_the_published_gains_came_through_it():
    for trial in range(3):
        assert MICRO.train_job("random_reward", 0, trial=trial).train.updates_per_rollout > 1


def test_a_grid_over_whole_numbers_trains_with_whole_numbers():
    """A float would be refused or, as a count, mean something else."""
    grid = {"a": [1, 2], "p": [0, 0.5]}
    tier = check_methods(read_tier("micro", {"sensitivity": {"method": "sgrpo", "grid": grid}}))
    assert [repr(point) for point in tier.sensitivity.points()][:2] == ["{'a': 1, 'p': 0}", "{'a': 1, 'p': 0.5}"]
    with pytest.raises(UserError, match=r"a of sgrpo must be int, is 1\.5"):
        check_methods(read_tier("micro", {"sensitivity": {"method": "sgrpo", "grid": grid | {"a": [1.5]}}}))
