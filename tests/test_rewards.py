"""Rewards of your own: found by name, weighed, logged apart, and blamed by line."""

import json
from pathlib import Path

import pytest
import torch
from test_trainer import make_trainer  # noqa: F401

from iapo_bench import plugins
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.machine.code import code_digest
from iapo_bench.method import load_method
from iapo_bench.models.checkpoints import build_micro, save_model
from iapo_bench.plugins import ROOT
from iapo_bench.rollout import Completion
from iapo_bench.train.rewards import Rewards, load_reward
from iapo_bench.worlds import Problem
from iapo_bench.worlds.grading import Outcome

PROBLEMS = [Problem("a", "one?", "1"), Problem("b", "two?", "22")]


@pytest.fixture
def write_reward(tmp_path, monkeypatch):
    """Write the body of a reward of a name; it is found beside the project's own."""
    monkeypatch.setattr(plugins, "REWARD_DIRS", (tmp_path, *plugins.REWARD_DIRS))

    def write(name: str, body: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(f"def reward(problem, text, token_ids, outcome):\n    {body}\n")
        return str(path)

    return write


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


def test_rewards_see_problem_text_tokens_and_outcome(write_reward):
    write_reward(
        "sizes", "return [len(problem.answer), len(text), len(token_ids), outcome.value == 'WRONG'][int(text[0])]"
    )
    rewards = Rewards(PROBLEMS, {"correct": 1.0, "sizes": -0.5})
    outcomes = [Outcome.WRONG, Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG]
    paid = rewards.pay([1, 0, 0, 1], ["0", "1xx", "2", "3"], [(7,), (7,), (7, 7), (7,)], outcomes)
    assert paid == [
        {"correct": -1, "sizes": 2},
        {"correct": 1, "sizes": 3},
        {"correct": 1, "sizes": 2},
        {"correct": -1, "sizes": 1},
    ]
    assert [rewards.total(each) for each in paid] == [-2, -0.5, 0, -1.5]


def test_the_tasks_own_reward_is_plus_or_minus_one():
    correct = load_reward("correct")
    assert [correct(PROBLEMS[0], "", (), outcome) for outcome in Outcome] == [1, -1, -1, -1, -1]


def test_rewards_that_draw_draw_alike_in_every_run(make_trainer, write_reward, world):  # noqa: F811
    write_reward("noisy", "import random, numpy\n    return random.random() + numpy.random.rand()")
    drawn = [make_trainer(rewards=Rewards(world.load("train"), {"noisy": 1.0})).step()["rewards"] for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_reward_that_fails_is_blamed_by_file_and_line(write_reward):
    def pay(name):
        return Rewards(PROBLEMS, {name: 1.0}).pay([0], ["five"], [(1,)], [Outcome.CORRECT])

    path = write_reward("late", "pass\n    return 1 / (len(text) - 4)")
    assert message(pay, "late") == f"reward late ({path}:3): reward: ZeroDivisionError: division by zero"
    path = write_reward("endless", "return float('nan')")
    assert message(pay, "endless") == f"reward endless ({path}:1): reward: nan for 'five', must be finite in float32"
    path = write_reward("huge", "return -1e39")
    assert message(pay, "huge") == f"reward huge ({path}:1): reward: -1e+39 for 'five', must be finite in float32"
    path = write_reward("silent", "pass")
    said = message(pay, "silent")
    assert said.startswith(f"reward silent ({path}:1): reward: TypeError: float() argument must be")
    assert "needs" not in said
    path = write_reward("nameless", "pass").replace("nameless", "other")
    (plugins.REWARD_DIRS[0] / "other.py").write_text("def pay(): ...\n")
    assert message(pay, "other") == f"{path} has no function `reward`"
    path = write_reward("broken", "return (")
    assert message(pay, "broken").startswith(f"broken ({path}:2): import: SyntaxError: ")
    assert message(pay, "corect").startswith("unknown reward 'corect': did you mean 'correct'?")


def spy(method, seen: list):
    """Keep every batch of which `method` assigns credit."""
    credit = method.credit

    def call(batch, generator=None):
        seen.append(batch)
        return credit(batch, generator)

    method.credit = call
    return method


@pytest.mark.parametrize("method", ["grpo", "dapo"])
def test_training_on_rewards_logs_each_apart_beside_the_tasks_metric(make_trainer, write_reward, method, world):  # noqa: F811
    """Also where groups are dropped: what a completion is paid for must stay its own."""
    write_reward("answer_size", "return float(len(problem.answer) * 100 + len(token_ids))")
    write_reward("words", "return float(len(text.split()))")
    problems = world.load("train")
    weights = {"answer_size": 0.5, "correct": 2.0, "words": -1.0}
    trainer = make_trainer(method, options={}, rewards=Rewards(problems, weights))
    seen: list = []
    spy(trainer.method, seen)
    by_prompt = {tuple(prompt): problem for prompt, problem in zip(trainer.task.prompts, problems, strict=True)}
    row = trainer.step()
    batch = seen[0]  # later ones are the trial of the first step
    rows = [ids[mask].tolist() for ids, mask in zip(batch.completion_ids_BT, batch.completion_mask_BT, strict=True)]
    texts = trainer.task.texts([Completion(tuple(ids), (0.0,) * len(ids), "stop") for ids in rows])
    expected = []
    for i, text in enumerate(texts):
        problem = by_prompt[tuple(batch.prompt_ids_BP[i][batch.prompt_mask_BP[i]].tolist())]
        sizes = len(problem.answer) * 100 + int(batch.lengths_B[i])
        expected.append(0.5 * sizes + 2 * (1 if batch.correct_B[i] else -1) - len(text.split()))
    plain = load_method(method, overlong_cache=0) if method == "dapo" else load_method(method)
    extra = trainer.method.shape_rewards(batch) - plain.shape_rewards(batch)
    assert (batch.rewards_B - extra).tolist() == pytest.approx(expected)
    assert list(row["rewards"]) == list(weights)
    assert row["rewards"]["correct"] == pytest.approx(2 * row["correct"] - 1)
    assert row["rewards"]["words"] > 0
    assert json.loads(json.dumps(row))["rewards"] == row["rewards"]


def test_without_rewards_of_ones_own_training_is_on_the_tasks(make_trainer, world):  # noqa: F811
    plain = make_trainer()
    named = make_trainer(rewards=Rewards(world.load("train")))
    rows = [trainer.step() for trainer in (plain, named)]
    assert rows[0]["rewards"] == rows[1]["rewards"] == {"correct": pytest.approx(2 * rows[0]["correct"] - 1)}
    for a, b in zip(plain.model.parameters(), named.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rewards_that_a_method_would_not_see_are_refused_before_the_first_update(make_trainer, world):  # noqa: F811
    trainer = make_trainer("kimi", options={}, rewards=Rewards(world.load("train"), {"correct": 2.0}))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    assert "kimi makes its own reward, so train.rewards would change nothing" in message(trainer.step)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.fixture
def made(run, tmp_path, tokenizer) -> tuple:
    """Where an untrained model and the smoke tier's problems lie, as options of `train`."""
    save_model(build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1), tokenizer, tmp_path / "base", notes={})
    assert run("prepare", "--config", "smoke", "--out", tmp_path / "data")[0] == 0
    return ("--config", "smoke", "--base", tmp_path / "base", "--data", tmp_path / "data", "--out", tmp_path / "out")


def test_a_run_is_trained_on_the_rewards_of_its_settings(run, made, write_reward, tmp_path):
    path = write_reward("words", "return float(len(text.split()))")
    small = ("--set", "train.completions=16", "--set", "train.prompts_per_step=2", "--set", "train.group_size=4")
    rewards = ("--set", "train.rewards={correct: 1, words: -0.5}")
    code, err = run("train", *made, *small, *rewards, "--method", "gspo")
    assert code == 0, err
    assert (
        "warning: gspo: ratio, clip_low, clip_high of the loss change nothing with train.updates_per_rollout = 1" in err
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [list(row["rewards"]) for row in rows] == [["correct", "words"]] * 2
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["config"]["train"]["rewards"] == {"correct": 1, "words": -0.5}
    assert provenance["sources"][f"{tmp_path.name}/words.py"] == Path(path).read_text()
    code, err = run("train", *made, *small, "--set", "train.updates_per_rollout=2", "--method", "gspo")
    assert (code, "change nothing" in err) == (0, False)


def test_a_reward_that_does_not_exist_is_one_line(run, made):
    code, err = run("train", *made, "--set", "train.rewards={corect: 1}", "--method", "grpo")
    assert code == 2
    assert "train.rewards: unknown reward 'corect': did you mean 'correct'?" in err


def test_a_reward_that_is_no_python_is_one_line_with_its_place(run, made, write_reward):
    path = write_reward("broken", "return 1 +")
    code, err = run("train", *made, "--set", "train.rewards={broken: 1}", "--method", "grpo")
    assert (code, err.splitlines()[-1]) == (2, f"iapo-bench: broken ({path}:2): import: SyntaxError: invalid syntax")


def test_the_code_of_rewards_is_part_of_a_run(write_reward):
    path = write_reward("words", "return 1.0")
    job = read_tier("smoke", {"train": {"rewards": {"words": 1.0}}}).train_job("grpo", 0)
    assert [str(each) for each in job.plugins] == [str(ROOT / "baselines" / "grpo.py"), path]
    before = code_digest("iapo_bench.train.run", job.plugins)
    write_reward("words", "return 2.0")
    assert code_digest("iapo_bench.train.run", job.plugins) != before
