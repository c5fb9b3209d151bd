# ruff: noqa: F811
"""Nothing silently wrong: what is not finite stops a run in one line, and steps that teach nothing say so."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from builders import make_batch, ragged_batch, write_grades
from safetensors.torch import load_file, save_file
from test_informativeness import build, rows_of
from test_trainer import SETTINGS, coin_grade, make_trainer, untimed  # noqa: F401
from test_update import make_rollout
from transformers import LlamaConfig, LlamaForCausalLM, PhimoeConfig, PhimoeForCausalLM

from baselines.sgrpo import SGRPO
from iapo_bench import plugins
from iapo_bench.batch import SIGNAL_NOISE, as_mask
from iapo_bench.config.train import LoraConfig
from iapo_bench.errors import UserError
from iapo_bench.files import to_json, write_json
from iapo_bench.informativeness import answer_entropies
from iapo_bench.method import (
    LossSpec,
    Method,
    Signal,
    assign,
    load_method,
    masked_moments,
    masked_normalise,
    padded_widths,
)
from iapo_bench.models.checkpoints import build_micro, disable_dropout, load_model, require_finite, save_model
from iapo_bench.models.lora import add_lora, merged_weights, trainable_state
from iapo_bench.report.rows import read_rows
from iapo_bench.report.table1 import table_blocks
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.signals.packed import packed_blocks
from iapo_bench.signals.statistics import compute_signals, left_align, token_statistics
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
    "advantages_BT holds a number that is not finite": lambda m, c, b: assign(b.rewards_B / 0 * 0, b),
    "weights_BT holds a number that is not finite": lambda m, c, b: replace(c, weights_BT=c.weights_BT * INF),
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
    "counted_B leaves out a row that has weights": lambda m, c, b: replace(c, counted_B=b.correct_B & False),
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
    "shape_rewards: the result holds a number that is not finite": {"shape_rewards": lambda self, b: b.rewards_B / 0},
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
    trainer.method = broken(after=1, spoil=SPOILT["advantages_BT holds a number that is not finite"])
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
    with pytest.raises(UserError, match=r"after the update: model\.embed_tokens\.weight holds a number that is not"):
        trainer.run(tmp_path / "state.pt", tmp_path / "broken")
    assert len(json.loads(torch.load(tmp_path / "state.pt", weights_only=True)["rows"])) == 1
    assert (tmp_path / "broken" / "step1.pt").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_finite_numbers_may_have_a_sum_that_is_not(dtype):
    large = torch.full([8], 1).to(dtype) if not dtype.is_floating_point else torch.full([8], torch.finfo(dtype).max)
    require_finite({"large": large.to(dtype)}, "state")
    if dtype.is_floating_point:
        for bad in ([INF, 1.0], [INF, -INF], [float("nan"), 1.0], [-INF] * 4):
            with pytest.raises(UserError, match=r"state: nested\.0 holds a number that is not finite"):
                require_finite({"nested": [torch.tensor(bad, dtype=dtype)]}, "state")


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_a_broken_weight_is_found_when_loaded_and_never_saved(model, tokenizer, tmp_path, number):
    save_model(model, tokenizer, tmp_path / "good")
    file = tmp_path / "good" / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 4] = number
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds a number that is not finite"):
        load_model(tmp_path / "good")
    with torch.no_grad():
        model.get_parameter(name)[3, 4] = number
    with pytest.raises(UserError, match=name):
        save_model(model, tokenizer, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    with pytest.raises(UserError, match="not finite"):
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


def noisy_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=42, num_key_value_heads=2, attention_dropout=0.1, **size))


def test_dropout_is_off_in_modules_and_configuration_in_any_mode(make_trainer):
    moe = PhimoeForCausalLM(
        PhimoeConfig(
            **{"vocab_size": 42, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2},
            **{"attention_dropout": 0.3, "hidden_dropout": 0.3, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
        )
    )
    for network in (noisy_model(), build("gpt2"), moe):
        disable_dropout(network.train())
        batch = ragged_batch(vocabulary=42)
        one, two = (token_statistics(network, batch, temperature=1.0, entropy=False)[0] for _ in range(2))
        assert torch.equal(one, two)
        told = network.config.to_dict()
        assert not [name for name, value in told.items() if ("drop" in name or "jitter" in name) and value]
        assert network.training


def test_a_checkpoint_with_dropout_trains_without(make_trainer, tokenizer, tmp_path):
    """The same run as of the same weights without it."""
    folder = tmp_path / "base"
    save_model(build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1), tokenizer, folder)
    trainers = []
    for dropout in (0.0, 0.1):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": dropout}))
        trainer = make_trainer()
        other = type(trainer)(
            *(trainer.method, trainer.config, 0, trainer.task, model := load_model(folder)),
            *(TransformersEngine(model), trainer.reference),
        )
        other.run()
        trainers.append(other)
    assert untimed(trainers[0].rows) == untimed(trainers[1].rows)
    assert trainers[1].model.config.attention_dropout == 0


def test_masks_of_integers_are_masks():
    model, batch = build("llama"), ragged_batch()
    prompt, prompt_mask, ids, mask = rows_of(batch)
    postfix = torch.tensor([4, 5])
    for implementation in ("shared_kv", "kv_replicated", "naive"):
        expected = answer_entropies(model, *rows_of(batch), postfix, implementation=implementation)
        for dtype in (torch.long, torch.int32, torch.uint8):
            got = answer_entropies(
                *(model, prompt, prompt_mask.to(dtype), ids, mask.to(dtype), postfix), implementation=implementation
            )
            assert torch.equal(got, expected)
    for one, other in zip(
        packed_blocks(*rows_of(batch), 60), packed_blocks(prompt, prompt_mask.long(), ids, mask.long(), 60), strict=True
    ):
        assert [part.tolist() for part in one.completions] == [part.tolist() for part in other.completions]
    ours, theirs = left_align(*rows_of(batch)), left_align(prompt, prompt_mask.long(), ids, mask.long())
    assert torch.equal(ours[0], theirs[0])
    for wrong in (mask.float(), mask.long() * 2, mask[:, :-1], mask.tolist()):
        with pytest.raises(ValueError, match="completion_mask_BT"):
            answer_entropies(model, prompt, prompt_mask, ids, wrong, postfix)
        with pytest.raises(ValueError, match="completion_mask_BT"):
            next(packed_blocks(prompt, prompt_mask, ids, wrong, 60))
    with pytest.raises(ValueError, match="right-padded"):
        answer_entropies(model, prompt, prompt_mask, ids, mask.flip(1), postfix)
    with pytest.raises(ValueError, match="what prompt_mask_BP masks must be a tensor, is list"):
        left_align(prompt.tolist(), prompt_mask, ids, mask)
    assert as_mask(torch.tensor([1, 0]), "mask").dtype == torch.bool


def test_a_batch_turns_masks_of_integers_into_bool_and_refuses_what_is_none():
    model, batch = build("llama"), ragged_batch()
    mask = batch.completion_mask_BT
    settings = {"temperature": 1.0, "micro_batch_tokens": 60, "postfix_ids": [4, 5]}
    expected = compute_signals(model, batch, frozenset(Signal), **settings)
    for dtype in (torch.long, torch.uint8):
        other = replace(batch, completion_mask_BT=mask.to(dtype), prompt_mask_BP=batch.prompt_mask_BP.to(dtype))
        assert other.completion_mask_BT.dtype == torch.bool
        got = compute_signals(model, other.validate(), frozenset(Signal), **settings)
        for signal in Signal:
            assert torch.equal(getattr(got, signal.value), getattr(expected, signal.value))
        values = batch.sampler_logp_BT
        assert torch.equal(masked_normalise(values, mask.to(dtype)), masked_normalise(values, mask))
        assert torch.equal(padded_widths(mask.to(dtype), 2, 1), padded_widths(mask, 2, 1))
        assert torch.equal(assign(values, batch, mask.to(dtype)).weights_BT, mask.float())
    for wrong in (mask.float(), mask.long() - 1, mask.tolist()):
        with pytest.raises(ValueError, match="completion_mask_BT must"):
            replace(batch, completion_mask_BT=wrong)
        with pytest.raises(ValueError, match="mask_RM must"):
            masked_moments(batch.sampler_logp_BT, wrong)


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


@pytest.mark.parametrize("size", [1e-4, 1e-3])
def test_what_adapters_learnt_beside_bfloat16_is_saved_whole(model, tokenizer, tmp_path, size):
    """The checkpoint that is evaluated holds the sum that was trained and sampled, not its rounding."""
    model.to(torch.bfloat16)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    add_lora(model, LoraConfig(rank=4, alpha=8.0), seed=0)
    generator = torch.Generator().manual_seed(5)
    for name, weight in trainable_state(model).items():
        if ".lora_B." in name:
            weight.copy_(size * torch.randn(weight.shape, generator=generator))
    save_model(model, tokenizer, tmp_path / "model", notes={"a": 1})
    loaded = load_model(tmp_path / "model", dtype=torch.bfloat16)
    exact = dict(merged_weights(model, torch.float32))
    lost, kept = 0.0, 0.0
    for name, weight in loaded.state_dict().items():
        wanted = exact[name].float() - base[name].float()
        lost += float((weight.float() - exact[name].float()).abs().sum())
        kept += float(wanted.abs().sum())
    assert kept > 0
    assert lost < 1e-3 * kept
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.float()(ids).logits, atol=1e-5, rtol=0)


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
    assert "not finite" in last
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
