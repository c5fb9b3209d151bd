"""The trials of every method: as many for each, loadable, and none that makes the method another."""

import pytest

from iapo_bench.config.tier import read_candidates
from iapo_bench.config.tier_file import read_tier
from iapo_bench.method import load_method
from iapo_bench.plugins import ROOT, find_files

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


def test_clipping_can_act_where_the_published_gains_came_through_it():
    for trial in range(3):
        assert MICRO.train_job("random_reward", 0, trial=trial).train.updates_per_rollout > 1
