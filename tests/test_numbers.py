# ruff: noqa: F811
"""Nothing silently wrong: what is not finite stops a run in one line, and steps that teach nothing say so."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from builders import make_batch, ragged_batch, write_grades
from safetensors.torch import load_file, save_file
from test_trainer import SETTINGS, coin_grade, make_trainer, untimed  # noqa: F401
from test_update import make_rollout

from baselines.sgrpo import SGRPO
from iapo_bench import plugins
from iapo_bench.batch import SIGNAL_NOISE
from iapo_bench.errors import UserError
from iapo_bench.files import to_json, write_json
from iapo_bench.method import (
    LossSpec,
    Method,
    assign,
    load_method,
)
from iapo_bench.models.checkpoints import build_micro, load_model, require_finite, save_model
from iapo_bench.report.rows import read_rows
from iapo_bench.report.table1 import table_blocks
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.signals.statistics import compute_signals
from iapo_bench.train.update import importance_weights, k3, surrogate, token_scales, update
from iapo_bench.worlds.grading import Outcome

NAN, INF = float("nan"), float("inf")


@dataclass
class Broken(Method):
    """Plain GRPO, but for what a test puts in its place from step `after` on."""

    name = "broken"
    after: int = 0
    steps = 0

    def observe(self, batch):
        self.steps += 1

    def credit(self, batch, generator=None):
        credit = super().credit(batch, generator)
        return credit if self.steps <= self.after else self.spoil(credit, batch)

    def spoil(self, credit, batch):
        return credit


def broken(after: int = 0, **hooks) -> Method:
    return type("Spoilt", (Broken,), hooks)(after=after)


SPOILT = {
    "advantages_BT contains NaN or infinity": lambda m, c, b: assign(b.rewards_B / 0 * 0, b),
    "weights_BT contains NaN or infinity": lambda m, c, b: replace(c, weights_BT=c.weights_BT * INF),
    "weights_BT holds a negative number": lambda m, c, b: replace(c, weights_BT=-c.weights_BT),
    "weights_BT is not 0 at padding": lambda m, c, b: replace(c, weights_BT=torch.ones_like(c.weights_BT)),
    "advantages_BT has shape": lambda m, c, b: replace(c, advantages_BT=c.advantages_BT[:, :1]),
    "advantages_BT must be torch.float32, is torch.float64": lambda m, c, b: replace(
        c, advantages_BT=c.advantages_BT.double()
    ),
    "weights_BT must be torch.float32, is torch.bool": lambda m, c, b: replace(c, weights_BT=c.weights_BT > 0),
    "advantages_BT must be torch.float32, is torch.int64": lambda m, c, b: replace(
        c, advantages_BT=c.advantages_BT.long()
    ),
    "advantages_BT must be a tensor, is float": lambda m, c, b: replace(c, advantages_BT=1.0),
    "advantages_BT has a gradient": lambda m, c, b: replace(c, advantages_BT=c.advantages_BT.clone().requires_grad_()),
    "advantages_BT is on meta": lambda m, c, b: replace(c, advantages_BT=c.advantages_BT.to("meta")),
    "counted_B must be torch.bool": lambda m, c, b: replace(c, counted_B=b.rewards_B),
    "counted_B is False for a row with non-zero weights": lambda m, c, b: replace(c, counted_B=b.correct_B & False),
    "the result must be a Credit, is Tensor": lambda m, c, b: c.advantages_BT,
}


@pytest.mark.parametrize("message", SPOILT)
def test_a_credit_of_another_kind_is_refused_with_method_and_file(make_trainer, message):
    trainer = make_trainer()
    trainer.method = broken(spoil=SPOILT[message])
    before = [weight.clone() for weight in trainer.model.parameters()]
    with pytest.raises(UserError, match=message) as refusal:
        trainer.run()
    assert "method broken" in str(refusal.value)
    assert Path(__file__).name in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_hook_that_writes_to_its_batch_changes_no_other(make_trainer):
    """Trained on padding, or logged NaN: a hook's batch is its own."""

    def overwrite(self, batch):
        batch.completion_mask_BT.fill_(True)
        batch.rewards_B.fill_(NAN)

    plain, writing = make_trainer(), make_trainer()
    plain.method, writing.method = broken(), broken(observe=overwrite)
    assert untimed(writing.run()) == untimed(plain.run())


def fail(*arguments):
    raise KeyError("bug")


HOOKS = {
    "observe: KeyError: 'bug'": {"observe": fail},
    "credit: KeyError: 'bug'": {"credit": fail},
    "shape_rewards: KeyError: 'bug'": {"shape_rewards": fail},
    "accept_group: KeyError: 'bug'": {"accept_group": fail},
    "accept_group: the result must be bool": {"accept_group": lambda self, correct_G: correct_G},
    "shape_rewards: the result contains NaN or infinity": {"shape_rewards": lambda self, b: b.rewards_B / 0},
    "shape_rewards: the result must be torch.float32": {"shape_rewards": lambda self, b: b.rewards_B.double()},
    "shape_rewards: the result has shape": {"shape_rewards": lambda self, b: b.rewards_B[:1]},
}


@pytest.mark.parametrize("message", HOOKS)
def test_whatever_fails_in_a_hook_is_one_line(make_trainer, message):
    trainer = make_trainer()
    trainer.method = broken(**HOOKS[message])
    with pytest.raises(UserError, match=f"(?s)method broken .*{Path(__file__).name}.*{message}"):
        trainer.run()


def test_the_batch_is_kept_and_the_last_checkpoint_stays(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.method = broken(after=1, spoil=SPOILT["advantages_BT contains NaN or infinity"])
    state, aside = tmp_path / "state.pt", tmp_path / "broken"
    with pytest.raises(UserError, match=r"step 1: .*step1\.pt"):
        trainer.run(state, aside)
    kept = torch.load(aside / "step1.pt", weights_only=True)
    assert len(kept["texts"]) == len(kept["rewards_B"]) == 16
    mended = make_trainer()
    mended.method = broken()
    rows = mended.run(state, aside)
    whole = make_trainer()
    whole.method = broken()
    assert untimed(rows) == untimed(whole.run())


@pytest.mark.parametrize("number", [NAN, INF, 1e30])
def test_a_gradient_that_is_not_finite_takes_no_step(make_trainer, number):
    """In the last update of all; the norm of a finite gradient may overflow too."""
    trainer = make_trainer()
    trainer.run()
    weights = [weight.clone() for weight in trainer.model.parameters()]
    batch, credit = make_rollout()
    handle = next(trainer.model.parameters()).register_hook(lambda gradient: gradient * number)
    with pytest.raises(UserError, match=r"the gradient norm of update 1 is (nan|inf), so the optimiser takes no step"):
        update(trainer.model, trainer.optimizer, batch, credit, LossSpec(), SETTINGS)
    handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.model.parameters(), strict=True))


def test_a_step_that_breaks_the_weights_is_never_saved(make_trainer, tmp_path):
    trainer = make_trainer()

    def overflow(*arguments):
        if len(trainer.rows) == 1:
            next(trainer.model.parameters()).data[3, 4] = INF

    trainer.optimizer.register_step_post_hook(overflow)
    with pytest.raises(UserError, match=r"after the update: model\.embed_tokens\.weight contains NaN or infinity"):
        trainer.run(tmp_path / "state.pt", tmp_path / "broken")
    assert len(json.loads(torch.load(tmp_path / "state.pt", weights_only=True)["rows"])) == 1
    assert (tmp_path / "broken" / "step1.pt").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_finite_numbers_may_have_a_sum_that_is_not(dtype):
    large = torch.full([8], 1).to(dtype) if not dtype.is_floating_point else torch.full([8], torch.finfo(dtype).max)
    require_finite({"large": large.to(dtype)}, "state")
    if dtype.is_floating_point:
        for bad in ([INF, 1.0], [INF, -INF], [float("nan"), 1.0], [-INF] * 4):
            with pytest.raises(UserError, match=r"state: nested\.0 contains NaN or infinity"):
                require_finite({"nested": [torch.tensor(bad, dtype=dtype)]}, "state")


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_a_broken_weight_is_found_when_loaded_and_never_saved(model, tokenizer, tmp_path, number):
    save_model(model, tokenizer, tmp_path / "good")
    file = tmp_path / "good" / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 4] = number
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} contains NaN or infinity"):
        load_model(tmp_path / "good")
    with torch.no_grad():
        model.get_parameter(name)[3, 4] = number
    with pytest.raises(UserError, match=name):
        save_model(model, tokenizer, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    with pytest.raises(UserError, match="NaN or infinity"):
        TransformersEngine(model).generate([[3, 4, 5]], Sampling(max_tokens=4, eos_ids=(1,)))


def test_logits_that_overflow_are_never_sampled(model):
    """Finite weights, and finite logits for a short prompt: only some tokens overflow."""
    engine = TransformersEngine(model)
    sampling = Sampling(max_tokens=8, eos_ids=(), seed=1)
    assert len(engine.generate([[3, 4, 5]], sampling)) == 1
    with torch.no_grad():
        model.get_input_embeddings().weight[20] = 3e38
    with pytest.raises(UserError, match="logits are not finite"):
        engine.generate([[3, 4, 5], [7, 20, 8]], sampling)


def test_settings_refuse_what_is_not_finite(run, tmp_path):
    for setting in (
        *("train.lr=.inf", "train.temperature=.nan", "train.clip_norm=.inf", "evaluate.top_p=.nan"),
        *("methods.iapo.options.alpha=.nan", "methods.grpo.options.loss={kl_coef: .inf}", "model.sft.lr=.inf"),
        *("tune={candidates: {iapo: [{options: {alpha: [0, .nan]}}]}}", "world.options.n_train=.nan"),
    ):
        code, err = run("prepare", "--config", "smoke", "--set", setting, "--out", tmp_path / "data")
        assert code == 2, setting
        assert f"{setting.partition('=')[0]}" in err
        assert "finite" in err
    for name, options in (
        ("iapo", {"alpha": NAN}),
        ("sgrpo", {"p": INF}),
        ("grpo", {"loss": {"kl_coef": NAN}}),
        ("dapo", {"loss": {"clip_high": INF}}),
    ):
        with pytest.raises(UserError, match="finite"):
            load_method(name, **options)
    assert not (tmp_path / "data").exists()


def test_json_is_strict(tmp_path):
    with pytest.raises(UserError, match=r"cells\.pass@1\.1 is not finite"):
        write_json(tmp_path / "summary.json", {"cells": {"pass@1": [0.1, NAN]}})
    with pytest.raises(UserError):
        to_json({"x": torch.tensor(INF).numpy()[()]})
    assert not list(tmp_path.iterdir())
    assert json.loads(to_json({"a": tmp_path, "b": torch.tensor(2).numpy()[()]})) == {"a": str(tmp_path), "b": 2}


IDLE = {
    "no group was accepted": ("dapo", lambda texts, golds: [Outcome.WRONG] * len(texts), {}),
    "the rewards of every group are all equal": ("dr_grpo", lambda texts, golds: [Outcome.CORRECT] * len(texts), {}),
    "every completion was cut at max_tokens = 2": ("dr_grpo", coin_grade, {"max_tokens": 2}),
    "every completion is a single token": ("dr_grpo", coin_grade, {"max_tokens": 1}),
}


@pytest.mark.parametrize("message", IDLE)
def test_steps_that_teach_nothing_say_so(make_trainer, capsys, message):
    method, grade, changes = IDLE[message]
    trainer = make_trainer(method, SETTINGS.model_copy(update=changes), grade)
    trainer.task = replace(trainer.task, eos_ids=()) if changes else trainer.task
    before = [weight.clone() for weight in trainer.model.parameters()]
    rows = trainer.run()
    moved = sum(row["updates_moved"] for row in rows)
    err = capsys.readouterr().err
    assert f"{method}: step 0: {message}" in err
    unmoved = all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert unmoved == (moved == 0)
    if not changes:
        assert unmoved
        assert f"{method}: 0 of {len(rows)} updates moved the weights" in err


def test_updates_are_counted_by_what_they_move(make_trainer, model):
    assert [row["updates_moved"] for row in make_trainer().run()] == [1, 1, 1]
    batch, credit = make_rollout(groups=4)
    settings = SETTINGS.model_copy(update={"updates_per_rollout": 4})
    trainer = make_trainer(settings=settings)
    half = replace(credit, advantages_BT=credit.advantages_BT * (torch.arange(8) >= 4)[:, None])
    stats = update(trainer.model, trainer.optimizer, batch, half, LossSpec(), settings)
    assert (stats["updates_moved"], stats["updates"]) == (2, 4)


def test_a_flat_signal_in_bfloat16_gets_no_credit(model):
    """Prefixes that tell nothing: uniform logits but for rounding."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-2)
    batch = ragged_batch(groups=2)
    for dtype in (torch.float32, torch.bfloat16):
        filled = compute_signals(
            model.to(dtype), batch, load_method("iapo").needs, temperature=1.0, micro_batch_tokens=200, postfix_ids=[4]
        )
        assert filled.signal_noise == SIGNAL_NOISE[str(dtype).removeprefix("torch.")]
        if dtype == torch.bfloat16:
            assert filled.answer_entropy_BS.std() > 0
            filled = replace(filled, rewards_B=torch.ones(4))
            credit = load_method("iapo", alpha=1.0, beta=1.0).credit(filled)
            assert (credit.advantages_BT == 0).all()
    rising = {"answer_entropy": [[3.0, 2.0, 2.0, 0.0]] * 2, "old_logp": [[-1.0] * 3] * 2}
    real = replace(make_batch([3, 3], [1, 0], **rising), signal_noise=SIGNAL_NOISE["bfloat16"])
    assert load_method("iapo").credit(real).advantages_BT.std() > 0.5, "what is larger than rounding stays"


def test_log_ratios_are_clamped():
    far = torch.tensor([89.0, 200.0, -200.0], requires_grad=True)
    losses, _ = surrogate(far, torch.zeros(3), torch.tensor([0.0, -1.0, 1.0]), LossSpec())
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(far.grad).all()
    assert losses[0] == 0
    assert torch.isfinite(k3(torch.tensor([100.0]), torch.zeros(1))).all()
    assert torch.isfinite(importance_weights(torch.tensor([200.0]), torch.zeros(1), INF)).all()


def test_an_empty_selection_counts_in_the_mean_and_a_dropped_row_does_not():
    weights = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    everyone = torch.ones(4, dtype=torch.bool)
    assert token_scales(weights, LossSpec(), 2, counted_B=everyone)[0, 0] == 1 / 8
    assert token_scales(weights, LossSpec(), 2)[0, 0] == 1 / 4
    batch = make_batch([3, 3, 3, 3], [1, 0, 1, 0])
    credit = SGRPO(a=0, k=2, p=0.3).credit(batch, torch.Generator().manual_seed(3))
    empty = credit.weights_BT.sum(1) == 0
    assert empty.any()
    assert not empty.all()
    scales = token_scales(credit.weights_BT, LossSpec(), 3, counted_B=credit.counted_B)
    row = int((~empty).nonzero()[0])
    assert float(scales[row].sum()) == pytest.approx(1 / 4)
    dropped = load_method("dapo", filter_truncated=True).credit(make_batch([2, 2], [1, 0], truncated=[1, 0]))
    assert dropped.counted_B is None


def test_the_row_says_how_many_updates_moved_the_weights(run, tmp_path):
    grades = {0: write_grades(tmp_path / "grades.parquet", 2, 9)}
    log = tmp_path / "train.jsonl"
    log.write_text("".join(to_json({"updates": 2, "updates_moved": moved}) + "\n" for moved in (2, 0, 1)))
    code, err = run(
        *("metrics", "--config", "smoke", "--method", "grpo", "--set", "evaluate.ks=[1, 2]"),
        *("--grades", grades[0], "--log", log, "--out", tmp_path / "grpo.json"),
    )
    assert code == 0, err
    (row,) = read_rows([tmp_path / "grpo.json"])
    assert (row.updates_moved, row.updates) == (3, 6)
    assert "grpo: 3 of 6 updates moved the weights" in str(table_blocks([row]))


NANNY = """
from dataclasses import dataclass
from iapo_bench.method import Method, assign

@dataclass
class Nanny(Method):
    name = "nanny"

    def credit(self, batch, generator=None):
        return assign(batch.rewards_B / 0 * 0, batch)
"""


def test_a_method_that_gives_nan_ends_the_command_in_one_line(run, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "nanny.py").write_text(NANNY)
    monkeypatch.setattr(plugins, "METHOD_DIRS", (tmp_path / "methods", *plugins.METHOD_DIRS))
    save_model(build_micro(tokenizer, hidden=32, layers=1, heads=2, seed=0), tokenizer, tmp_path / "base")
    tier = ("--config", "smoke", "--set", "train.completions=32", "--set", "methods={nanny: {}}")
    assert run("prepare", *tier, "--out", tmp_path / "data")[0] == 0
    code, err = run(
        *("train", *tier, "--method", "nanny", "--base", tmp_path / "base", "--data", tmp_path / "data"),
        *("--out", tmp_path / "out"),
    )
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert "method nanny" in last
    assert "nanny.py" in last
    assert "NaN or infinity" in last
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "model").exists()
    assert (tmp_path / "out" / "train.jsonl").read_text() == "", "it grows by whole steps"
    assert (tmp_path / "out" / "broken" / "step0.pt").is_file()


def test_rows_that_count_reach_the_loss(make_trainer):
    batch, credit = make_rollout(groups=4)
    kept = (torch.arange(8) > 0)[:, None]
    dropped = replace(credit, weights_BT=credit.weights_BT * kept)
    losses = []
    for counted_B in (None, torch.ones(8, dtype=torch.bool)):
        trainer = make_trainer()
        spoilt = replace(dropped, counted_B=counted_B)
        losses.append(update(trainer.model, trainer.optimizer, batch, spoilt, LossSpec(), SETTINGS)["loss"])
    assert losses[1] == pytest.approx(losses[0] * 7 / 8, rel=1e-5)
