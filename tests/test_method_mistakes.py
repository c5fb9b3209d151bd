"""The common mistakes of a method of one's own: one line each, with file and line, before the first update."""

import json
import re
import shutil

import pytest
import torch
from builders import make_batch
from test_method_contract import SMALL, VARIANTS, batch_of, new
from test_rewards import made  # noqa: F401
from test_trainer import SETTINGS, coin_grade, make_trainer  # noqa: F401

from iapo_bench import plugins
from iapo_bench.errors import UserError
from iapo_bench.method import load_method
from iapo_bench.train.trial import more_padding, try_method
from iapo_bench.worlds.grading import Outcome

HEAD = """\
from dataclasses import dataclass
import torch
from iapo_bench.method import *
from iapo_bench.method import assign, group_normalise, per_group, signal

@dataclass
class Mine(Method):
    name = "mine"
"""
TOKEN_ENTROPY = "    needs = frozenset({Signal.TOKEN_ENTROPY})\n"
TAKES_STATE = "    def load_state_dict(self, state):\n        pass\n"
NO_GRAD = "    @torch.no_grad()\n"
REWARDS = "    def shape_rewards(self, batch):\n        return "
CREDIT = "    def credit(self, batch, generator=None):\n        return "


@pytest.fixture
def write_method(tmp_path, monkeypatch):
    """Write the body of the method `mine`, and return its path."""
    monkeypatch.setattr(plugins, "METHOD_DIRS", (tmp_path, *plugins.METHOD_DIRS))

    def write(body: str, head: str = HEAD) -> str:
        (tmp_path / "mine.py").write_text(head + body)
        return str(tmp_path / "mine.py")

    return write


MISTAKES = {
    "bool minus float": (CREDIT + "assign(batch.correct_B - 0.5, batch)\n", 10, "flags such as correct_B are bool"),
    "mean of a flag": (CREDIT + "assign(batch.correct_B.mean(), batch)\n", 10, "use per_group"),
    "needs forgotten": (CREDIT + "assign(batch.token_entropy_BT.exp(), batch)\n", 10, "`needs` does not name is None"),
    "needs forgotten, read with signal": (
        CREDIT + "assign(signal(batch, Signal.OLD_LOGP), batch)\n",
        10,
        "Signal.OLD_LOGP is missing from the method's needs",
    ),
    "advantages by group": (
        CREDIT + "assign(per_group(batch.rewards_B, batch), batch)\n",
        10,
        "advantages have shape (4, 4), expected (16,), one per row, or (16, ",
    ),
    "weights of another type": (
        CREDIT + "assign(batch.rewards_B, batch, batch.rewards_B > 0)\n",
        10,
        "weights have shape (16,), expected (16, 1) or (16, ",
    ),
    "rewards by group": (REWARDS + "per_group(batch.rewards_B, batch).float()\n", 9, "(4, 4), expected (16,)"),
    "rewards that are counts": (REWARDS + "batch.lengths_B\n", 9, "must be torch.float32, is torch.int64"),
    "advantages of numpy": (
        CREDIT + "assign(batch.rewards_B.numpy(), batch)\n",
        10,
        "advantages must be a tensor, is ndarray",
    ),
    "nothing returned": (CREDIT.replace("return", "assign") + "\n", 9, "the result must be a Credit, is NoneType"),
    "a credit of another shape": (
        CREDIT + "Credit(batch.rewards_B, batch.rewards_B)\n",
        9,
        "advantages_BT has shape (16,), expected (16, ",
    ),
    "mask forgotten in the credit": (
        TOKEN_ENTROPY + NO_GRAD + CREDIT + "assign(signal(batch, Signal.TOKEN_ENTROPY).mean(dim=1), batch)\n",
        10,
        "advantages_BT change with padding: reduce over real tokens, with batch.completion_mask_BT",
    ),
    "weights that are no mask": (
        CREDIT + "assign(batch.rewards_B, batch, batch.completion_mask_BT * 0.5)\n",
        10,
        "weights must be bool or integers of 0 and 1, is torch.float32",
    ),
    "a state that no checkpoint can hold": (
        "    def state_dict(self):\n        import numpy\n        return {'mean': numpy.float64(0.5)}\n" + TAKES_STATE,
        9,
        "state_dict: a checkpoint cannot hold numpy._core.multiarray.scalar: use only tensors, numbers and strings",
    ),
    "a state that it cannot take up itself": (
        "    def state_dict(self):\n        return {'mean': 0.5}\n"
        "    def load_state_dict(self, state):\n        self.mean = state['means']\n",
        12,
        "load_state_dict: KeyError: 'means'",
    ),
    "mask forgotten in what it observes": (
        TOKEN_ENTROPY
        + NO_GRAD
        + "    def observe(self, batch):\n        self.mean = float(signal(batch, Signal.TOKEN_ENTROPY).mean())\n"
        + CREDIT
        + "assign(batch.rewards_B - self.mean, batch)\n",
        13,
        "advantages_BT change with padding",
    ),
    "chance without the generator": (
        CREDIT + "assign(torch.rand(len(batch.rewards_B)), batch)\n",
        9,
        "advantages_BT differ from call to call: draw random numbers with `generator`",
    ),
    "a state changed outside observe": (
        "    def credit(self, batch, generator=None):\n        self.steps = getattr(self, 'steps', 0) + 1\n"
        "        return assign(batch.rewards_B / self.steps, batch)\n",
        9,
        "advantages_BT would differ after a resume: `observe` must make every change",
    ),
    "a state of which a checkpoint lacks a part": (
        "    def observe(self, batch):\n        self.steps = getattr(self, 'steps', 0) + 1\n"
        "    def state_dict(self):\n        return {}\n"
        + TAKES_STATE
        + CREDIT
        + "assign(batch.rewards_B / self.steps, batch)\n",
        15,
        "advantages_BT would differ after a resume",
    ),
    "width taken for the longest length": (
        REWARDS + "batch.lengths_B / batch.completion_mask_BT.shape[1]\n",
        9,
        "the rewards change with padding",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("updates", [1, 2])
def test_a_mistake_is_one_line_that_names_file_and_line(make_trainer, write_method, mistake, updates):  # noqa: F811
    body, line, words = MISTAKES[mistake]
    path = write_method(body)
    trainer = make_trainer("mine", SETTINGS.model_copy(update={"updates_per_rollout": updates}), options={})
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(UserError) as caught:
        trainer.step()
    message = str(caught.value)
    assert words in message
    assert f"{path}:{line}" in message
    assert ("`needs`" in message) == (mistake == "needs forgotten")
    for a, b in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)


LOADING = {
    "syntax": ("    def credit(self, batch:\n", HEAD, r"mine\.py:9\): import: SyntaxError: "),
    "import": (
        "",
        "import nothing_of_this_name\n" + HEAD,
        r"mine\.py:1\): import: .*No module named 'nothing_of_this_name'",
    ),
    "a hook misspelt": (
        REWARDS.replace("shape_rewards", "shape_reward") + "1\n",
        HEAD,
        r"mine\.py: Mine\.shape_reward is never called: did you mean 'shape_rewards'\?",
    ),
    "no @dataclass": (
        "    strength: float = 1.0\n" + CREDIT + "None\n",
        HEAD.replace("@dataclass\n", ""),
        r"mine\.py: Mine has options, so put @dataclass above the class",
    ),
    "needs that is no set": (
        "    needs = Signal.OLD_LOGP\n" + CREDIT + "None\n",
        HEAD,
        r"mine\.py\): needs: must be a set of Signal, is <Signal\.OLD_LOGP",
    ),
    "needs by name": (
        "    needs = {'old_logp_BT'}\n" + CREDIT + "None\n",
        HEAD,
        r"mine\.py\): needs: must be a set of Signal, is \{'old_logp_BT'\}",
    ),
    "a default of another type": (
        "    strength: float = 'much'\n",
        HEAD,
        r"method mine \(.*mine\.py\): defaults: strength of mine must be float, is 'much'",
    ),
    "a loss without its type": (
        "    loss = LossSpec(clip_high=0.28)\n",
        HEAD,
        r"mine\.py: Mine\.loss has no type and is ignored: write `loss: TYPE = \.\.\.`",
    ),
    "an option of its parent without its type": (
        "    ddof = 1\n",
        "from baselines.grpo import GRPO\n" + HEAD.replace("(Method)", "(GRPO)"),
        r"mine\.py: Mine\.ddof has no type",
    ),
    "a loss without its type in a parent": (
        "",
        HEAD.replace('    name = "mine"\n', "    loss = LossSpec(clip_high=0.28)\n")
        + "class Own(Mine):\n    name = 'mine'\n",
        r"mine\.py: Mine\.loss has no type",
    ),
    "an option of another type, unchecked by its class": (
        "    strength: float = 'much'\n    def __post_init__(self):\n        pass\n",
        HEAD,
        r"strength of mine must be float, is 'much'",
    ),
    "a state that is never taken up": (
        "    def state_dict(self):\n        return {'seen': 1}\n",
        HEAD,
        r"mine\.py: Mine must have both state_dict and load_state_dict",
    ),
    "no loss": ("    loss: LossSpec = None\n", HEAD, r"mine\.py\): defaults: loss of mine must be LossSpec, is None"),
    "another name": ("", HEAD.replace('"mine"', '"yours"'), r"mine\.py has no subclass of Method with name = 'mine'"),
}


@pytest.mark.parametrize("mistake", LOADING)
def test_a_file_that_is_no_method_is_named(write_method, mistake):
    body, head, words = LOADING[mistake]
    write_method(body, head)
    with pytest.raises(UserError) as caught:
        load_method("mine")
    assert re.search(words, str(caught.value)), caught.value


def test_a_class_with_slots_is_a_method_like_any(write_method):
    write_method("    strength: float = 2.0\n", HEAD.replace("@dataclass", "@dataclass(slots=True)"))
    assert load_method("mine").strength == 2


def test_a_helper_may_be_named_like_the_hook_that_it_helps(write_method):
    write_method(
        REWARDS + "self.shaped_rewards(batch)\n" + REWARDS.replace("shape_", "shaped_") + "batch.rewards_B * 2\n"
    )
    assert load_method("mine").shape_rewards(make_batch([1, 1], [1, 0])).tolist() == [2, -2]


def test_the_command_says_it_in_one_line_and_leaves_nothing_half_written(run, made, write_method, tmp_path):  # noqa: F811
    path = write_method(CREDIT + "assign(batch.correct_B - 0.5, batch)\n")
    code, err = run("train", *made, "--method", "mine")
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith(f"iapo-bench: step 0: method mine ({path}:10): credit: RuntimeError: Subtraction")
    assert "use per_group(batch.correct_B, batch), or .float()" in last
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "model").exists()
    assert not (tmp_path / "out" / "provenance.json").exists()


@pytest.mark.parametrize(("name", "profile", "options"), VARIANTS)
def test_no_method_here_fails_the_trial(name, profile, options):
    batch = batch_of([4, 1, 6, 2, 3, 3], [1, 0, 1, 0, 1, 0], group_size=3, truncated=[0, 0, 1, 0, 0, 0])
    try_method(new(name, profile, options), batch, seed=0)


def test_more_padding_leaves_real_tokens_alone():
    batch = make_batch(
        [2, 1], [1, 0], old_logp=[[-1, -2], [-3]], token_entropy=[[1, 2], [3]], answer_entropy=[[1, 2, 3], [4, 5]]
    )
    padded = more_padding(batch).validate()
    assert padded.old_logp_BT.tolist() == [[-1, -2, 9, 9, 9], [-3, 9, 9, 9, 9]]
    assert padded.answer_entropy_BS.tolist() == [[1, 2, 3, 9, 9, 9], [4, 5, 9, 9, 9, 9]]
    assert padded.lengths_B.tolist() == [2, 1]
    assert torch.equal(padded.rewards_B, batch.rewards_B)


@pytest.mark.parametrize("name", ["kimi", "alp", "gtpo", "random_reward", "gdpo"])
def test_rewards_of_ones_own_go_with_methods_that_read_them(name):
    batch = batch_of([4, 1, 6, 2, 3, 3], [1, 0, 1, 0, 1, 0], group_size=3)
    with pytest.raises(UserError, match=f"{name} makes its own reward, so train.rewards would change nothing"):
        try_method(load_method(name), batch, 0, own_rewards=True)
    for reading in ("grpo", "dapo", "iapo", "sgrpo", "gspo"):
        try_method(load_method(reading, **SMALL.get(reading, {})), batch, 0, own_rewards=True)


def test_a_mistake_is_found_in_the_first_batch_though_earlier_steps_accepted_no_group(make_trainer, write_method):  # noqa: F811
    write_method(
        "    def accept_group(self, correct_G):\n        return bool(correct_G.any())\n"
        + REWARDS
        + "batch.lengths_B / batch.completion_mask_BT.shape[1]\n"
    )
    calls = []

    def grade(texts: list[str], golds: list[str]) -> list[Outcome]:
        calls.append(texts)
        return coin_grade(texts, golds) if len(calls) > 1 else [Outcome.WRONG] * len(texts)

    trainer = make_trainer("mine", SETTINGS.model_copy(update={"max_draws": 1}), grade, options={})
    with pytest.raises(UserError, match=r"step 1: method mine .* the rewards change with padding"):
        trainer.run()


DRAFT = """\
    steps = 0
    def credit(self, batch, generator=None):
        type(self).steps += 1
        if type(self).steps > 6: raise RuntimeError("a bug")
        return assign(-50.0 * (batch.rewards_B * 0 + 1), batch)
"""
MENDED = CREDIT + "assign(group_normalise(batch.rewards_B, batch.group_size), batch)\n"


def test_a_mended_method_does_not_go_on_from_its_drafts_steps(run, made, write_method, tmp_path):  # noqa: F811
    several = ("--set", "train.completions=256", "--set", "train.checkpoint_every=1", "--method", "mine")
    write_method(DRAFT)
    code, err = run("train", *made, *several)
    assert code == 2
    assert "a bug" in err
    assert any((tmp_path / "out" / "resume").glob("state*"))
    write_method(MENDED)
    code, err = run("train", *made, *several)
    assert code == 0, err
    assert "starts anew, since code is " in err

    def rows() -> list[dict]:
        lines = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
        times = ("seconds", "tokens_per")
        return [{k: v for k, v in json.loads(line).items() if not k.startswith(times)} for line in lines]

    mended = rows()
    shutil.rmtree(tmp_path / "out")
    assert run("train", *made, *several)[0] == 0
    assert rows() == mended


def test_a_trial_leaves_no_trace_in_the_class_and_blames_the_methods_file(write_method):
    batch = batch_of([4, 1, 6, 2], [1, 0, 1, 0], group_size=2)
    write_method(
        "    calls = 0\n    def credit(self, batch, generator=None):\n        type(self).calls += 1\n"
        "        return assign(batch.rewards_B, batch)\n"
    )
    method = load_method("mine")
    try_method(method, batch, seed=0)
    assert type(method).calls == 0
    path = write_method("    def credit(self, batch, generator=None):\n        raise RuntimeError('a bug')\n")
    with pytest.raises(UserError, match=rf"method mine \({path}:10\): credit: RuntimeError: a bug"):
        try_method(load_method("mine"), batch, seed=0)
