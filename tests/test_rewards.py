"""Rewards of your own: found by name, weighed, logged apart, and blamed by line."""

import json

import pytest
import torch
from test_trainer import SETTINGS, coin_grade, make_trainer  # noqa: F401

from iapo_bench import plugins
from iapo_bench.errors import UserError
from iapo_bench.method import load_method
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


def test_a_reward_that_fails_is_blamed_by_file_and_line(write_reward):
    def pay(name):
        return Rewards(PROBLEMS, {name: 1.0}).pay([0], ["five"], [(1,)], [Outcome.CORRECT])

    path = write_reward("late", "pass\n    return 1 / (len(text) - 4)")
    assert message(pay, "late") == f"reward late ({path}:3): reward: ZeroDivisionError: division by zero"
    path = write_reward("endless", "return float('nan')")
    assert message(pay, "endless") == f"reward endless ({path}): reward: nan for 'five', must be finite"
    path = write_reward("silent", "pass")
    assert message(pay, "silent").startswith(f"reward silent ({path}): reward: TypeError: float() argument must be")
    path = write_reward("nameless", "pass").replace("nameless", "other")
    (plugins.REWARD_DIRS[0] / "other.py").write_text("def pay(): ...\n")
    assert message(pay, "other") == f"{path} has no function `reward`"
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
