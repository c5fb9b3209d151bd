"""A profile is a bundle of settings: it reaches the training job, and what is said later wins."""

from dataclasses import replace

import pytest
import torch

from iapo_bench.config.profiles import TRAIN_OF_PROFILE
from iapo_bench.config.tier_file import read_tier
from iapo_bench.config.train import TrainConfig
from iapo_bench.method import RELEASED_READING, LossSpec, load_method
from iapo_bench.models.checkpoints import build_micro
from iapo_bench.report.departures import COMPARED, departures_of
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.train.task import Task
from iapo_bench.train.trainer import Trainer
from iapo_bench.worlds import POSTFIX
from iapo_bench.worlds.exact import is_formatted_on_one_line
from iapo_bench.worlds.grading import Outcome


def training(name: str, given: dict | None = None) -> dict:
    job = read_tier("micro", given or {}).train_job(name, 0)
    return {key: getattr(job.train, key) for key in TRAIN_OF_PROFILE["released"]}


@pytest.mark.parametrize(
    ("tier", "chunk", "ranks", "local_rows"), [("qwen-0.5b", 16, 4, 4), ("qwen-1.5b", 36, 4, 4), ("qwen-7b", 16, 1, 2)]
)
def test_the_released_profile_of_each_size_is_that_of_its_run(tier, chunk, ranks, local_rows):
    chosen = read_tier(tier).train_job("iapo_released", 0).method
    method = load_method(chosen.name, chosen.profile, **chosen.options)
    assert method.reading == replace(RELEASED_READING, postfix_chunk=chunk, ranks=ranks)
    assert method.loss == LossSpec(clip_high=0.28, kl_coef=0.001, reduction="token_mean", local_rows=local_rows)


def test_the_released_profile_reaches_the_training():
    assert training("dapo_released") == TRAIN_OF_PROFILE["released"]
    assert training("grpo") == {
        **{"updates_per_rollout": 1, "lr_schedule": "constant"},
        **{"grader": "world", "format_rule": "tags"},
    }


def test_the_profile_wins_over_the_tuned_choice_and_loses_to_what_is_said_of_the_entry():
    tuned = {"tuned": {"dapo": {"updates_per_rollout": 4}}}
    assert training("dapo", tuned)["updates_per_rollout"] == 4
    assert training("dapo_released", tuned)["updates_per_rollout"] == 1
    said = {"ablations": {"dapo_released": {"lr_schedule": "constant", "updates_per_rollout": 2}}}
    found = training("dapo_released", said)
    assert (found["lr_schedule"], found["updates_per_rollout"]) == ("constant", 2)
    assert found["grader"] == "exact"


def test_a_variant_can_go_back_to_the_paper():
    given = {
        "methods": {"dapo": {"profile": "released"}},
        "ablations": {"dapo_paper": {"method": "dapo", "profile": "paper"}},
    }
    assert training("dapo", given)["lr_schedule"] == "linear"
    assert training("dapo_paper", given)["lr_schedule"] == "constant"
    assert training("dapo_paper", given)["grader"] == "world"


def test_one_departure_of_the_training_alone():
    given = {"ablations": {"falling": {"method": "grpo", "lr_schedule": "linear"}}}
    assert training("falling", given) == {**training("grpo"), "lr_schedule": "linear"}


@pytest.mark.parametrize("name", COMPARED)
def test_the_departures_make_up_the_profiles_training(name):
    train: dict = {}
    for departure in departures_of(name):
        train |= departure.train
    assert train == TRAIN_OF_PROFILE["released"]


@pytest.fixture
def make_trainer(tokenizer, world):
    def make(**changes) -> Trainer:
        config = TrainConfig(
            **{"completions": 48, "prompts_per_step": 4, "group_size": 4, "max_tokens": 10, "lr": 1e-3} | changes
        )
        problems = world.load("train")
        model = build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1)
        task = Task(
            prompts=[world.encode_prompt(problem, tokenizer) for problem in problems],
            golds=[problem.answer for problem in problems],
            grade=lambda texts, golds: [Outcome.CORRECT if len(t) % 2 else Outcome.WRONG for t in texts],
            tokenizer=tokenizer,
            eos_ids=(1, 7, 8),
            postfix_ids=tokenizer(POSTFIX).input_ids,
        )
        method = load_method("grpo", loss={"kl_coef": 0.0})
        return Trainer(method, config, 0, task, model, TransformersEngine(model))

    return make


def test_the_learning_rate_falls_to_zero_over_the_run(make_trainer):
    rows = make_trainer(lr_schedule="linear").run()
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert [row["lr"] for row in make_trainer().run()] == [1e-3] * 3


def test_a_lower_learning_rate_moves_less(make_trainer):
    def moved(trainer: Trainer) -> list[float]:
        before = [weight.detach().clone() for weight in trainer.model.parameters()]
        sizes = []
        for _ in range(3):
            trainer.step()
            after = [weight.detach().clone() for weight in trainer.model.parameters()]
            sizes.append(float(sum((a - b).abs().sum() for a, b in zip(after, before, strict=True))))
            before = after
        return sizes

    constant, falling = moved(make_trainer()), moved(make_trainer(lr_schedule="linear"))
    assert falling[0] == pytest.approx(constant[0])
    assert falling[2] < 0.6 * constant[2]


def test_a_resumed_run_goes_on_at_its_learning_rate(make_trainer, tmp_path):
    whole = make_trainer(lr_schedule="linear", checkpoint_every=1)
    whole.run(tmp_path / "whole.pt")
    first = make_trainer(lr_schedule="linear", checkpoint_every=1)
    first.step()
    first._save(tmp_path / "state.pt")
    resumed = make_trainer(lr_schedule="linear", checkpoint_every=1)
    resumed.run(tmp_path / "state.pt")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_format_is_judged_by_the_tasks_rule(make_trainer):
    trainer = make_trainer()
    trainer.task = replace(trainer.task, formatted=lambda text: True)
    assert trainer.step()["formatted"] == 1
    trainer.task = replace(trainer.task, formatted=is_formatted_on_one_line)
    assert trainer.step()["formatted"] == 0
