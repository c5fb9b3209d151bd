"""The training loop on real small models: seeds, resumption, budgets, what a step reports."""

import json
import math
from dataclasses import replace

import pytest
import torch

from iapo_bench.config.tier_file import read_tier
from iapo_bench.config.train import TrainConfig
from iapo_bench.errors import UserError
from iapo_bench.method import load_method
from iapo_bench.models.checkpoints import build_micro
from iapo_bench.plugins import ROOT, find_files
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.signals.informativeness import AnswerReading
from iapo_bench.train.run import answer_reading
from iapo_bench.train.task import Task, Validation
from iapo_bench.train.trainer import Trainer
from iapo_bench.train.validation import validate
from iapo_bench.worlds import POSTFIX
from iapo_bench.worlds.grading import Outcome, make_grader

SETTINGS = TrainConfig(
    completions=48,
    prompts_per_step=4,
    group_size=4,
    max_tokens=10,
    max_draws=3,
    checkpoint_every=1,
    lr=1e-3,
    micro_batch_tokens=200,
)
METHODS = {
    "grpo": {},
    "dr_grpo": {},
    "dapo": {},
    "gfpo": {"k": 2, "adaptive": (2, 3)},
    "gtpo": {},
    "sgrpo": {"a": 2, "k": 4},
    "iapo": {"alpha": 0.1, "beta": 0.1},
    "random_reward": {},
}


def coin_grade(texts, golds):
    """Right when the text has an even number of words: a verdict that an untrained model sometimes earns."""
    return [Outcome.CORRECT if len(text.split()) % 2 == 0 else Outcome.WRONG for text in texts]


def rare_grade(texts, golds):
    """Right for one text in several, so that most groups are all wrong."""
    return [Outcome.CORRECT if len(text.split()) == 4 else Outcome.WRONG for text in texts]


@pytest.fixture
def make_trainer(tokenizer, world):
    def make(method="grpo", settings=SETTINGS, grade=coin_grade, options=None, rewards=None, seed=0) -> Trainer:
        model = build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1)
        problems = world.load("train")
        task = Task(
            prompts=[world.encode_prompt(problem, tokenizer) for problem in problems],
            golds=[problem.answer for problem in problems],
            grade=grade,
            tokenizer=tokenizer,
            eos_ids=(1, 7, 8),  # an untrained model must end sometimes, too
            postfix_ids=tokenizer(POSTFIX).input_ids,
            rewards=rewards,
        )
        reference = build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1).eval()
        loaded = load_method(method, **(METHODS[method] if options is None else options))
        return Trainer(loaded, settings, seed, task, model, TransformersEngine(model), reference)

    return make


def untimed(rows: list[dict]) -> str:
    """`train.jsonl` without what a clock wrote."""
    timed = ("seconds_", "tokens_per_second")
    return "\n".join(json.dumps({k: v for k, v in row.items() if not k.startswith(timed)}) for row in rows)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_run_bit_for_bit(make_trainer, method):
    first, second = make_trainer(method), make_trainer(method)
    assert untimed(first.run()) == untimed(second.run())
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other = make_trainer(method, seed=1)
    assert untimed(other.run()) != untimed(first.rows)


def test_every_stream_is_of_the_runs_seed_and_of_its_step(make_trainer):
    """Any one stream that differs makes two runs differ: here each is looked at alone."""

    def streams(seed: int) -> dict[str, list]:
        trainer = make_trainer("sgrpo", seed=seed)
        seen: dict[str, list] = {"problems": [], "sampling": [], "coins": []}
        generate, credit = trainer.engine.generate, trainer.method.credit

        def watched_generate(prompts, sampling):
            seen["problems"].append(str(prompts))
            seen["sampling"].append(sampling.seed)
            return generate(prompts, sampling)

        def watched_credit(batch, generator=None):
            seen["coins"].append(generator.initial_seed())
            return credit(batch, generator)

        trainer.engine.generate, trainer.method.credit = watched_generate, watched_credit
        assert len(trainer.run()) == 3
        return seen

    one, other = streams(0), streams(1)
    for name in one:
        assert len(set(one[name])) >= 3, f"{name}: another at every step"
        assert not set(one[name]) & set(other[name]), f"{name}: another with every seed"


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_same_run(make_trainer, method, tmp_path):
    """Stopped after every step in turn; nothing is replayed and nothing is skipped."""
    whole = make_trainer(method)
    whole.run()
    state = tmp_path / "state.pt"
    for _ in range(len(whole.rows)):
        stopped = make_trainer(method)
        if state.exists():
            stopped._load(state)
        stopped.step()
        stopped._save(state)
    resumed = make_trainer(method)
    resumed.run(state)
    assert untimed(resumed.rows) == untimed(whole.rows)
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(make_trainer, method):
    trainer = make_trainer(method)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    rows = trainer.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.generated <= SETTINGS.completions < trainer.generated + SETTINGS.group_size
    assert rows[-1]["completions_total"] == trainer.generated


@pytest.mark.parametrize("method", [name for name in find_files([ROOT / "baselines"]) if name not in METHODS])
def test_every_baseline_trains_in_several_updates(make_trainer, method):
    trainer = make_trainer(
        method, SETTINGS.model_copy(update={"updates_per_rollout": 2, "completions": 32}), options={}
    )
    rows = trainer.run()
    assert sum(row["updates_moved"] for row in rows) == 4
    assert all(math.isfinite(row[key]) for row in rows for key in ("loss", "grad_norm", "reward", "clip_fraction"))


def test_what_a_row_reports(make_trainer):
    row = make_trainer(options={"loss": {"kl_coef": 0.1}}).step()
    for key in (
        *("reward", "correct", "formatted", "length", "truncated", "zero_variance_groups", "entropy", "kl"),
        *("clip_fraction", "logp_gap", "grad_norm", "tokens", "tokens_per_second", "completions_total"),
        *("seconds_rollout", "seconds_grade", "seconds_signals", "seconds_update", "seconds_other"),
    ):
        assert isinstance(row[key], int | float), key
    assert row["logp_gap"] < 1e-5
    assert sum(row["outcomes"].values()) == row["completions"] == 16
    assert 1 <= row["length"] <= 10
    assert make_trainer(options={"loss": {"kl_coef": 0.0}}).step()["kl"] is None


def test_no_reference_is_run_at_zero_kl(make_trainer, monkeypatch):
    trainer = make_trainer(options={"loss": {"kl_coef": 0.0}})

    def fail(*args, **kwargs):
        raise AssertionError("the reference model was run")

    monkeypatch.setattr(trainer.reference.model, "forward", fail)
    trainer.step()
    costly = make_trainer(options={"loss": {"kl_coef": 0.1}})
    monkeypatch.setattr(costly.reference.model, "forward", fail)
    with pytest.raises(AssertionError, match="reference"):
        costly.step()


def test_a_method_observes_each_group_once(make_trainer):
    trainer = make_trainer("gfpo")
    rows = trainer.run()
    assert sum(trainer.method.counts) == sum(row["groups"] for row in rows) > 0


def test_the_engine_has_the_weights_of_the_checkpoint_before_it_draws(make_trainer, monkeypatch, tmp_path):
    """An engine with weights of its own would sample from the base."""
    state = tmp_path / "state.pt"
    make_trainer(settings=SETTINGS.model_copy(update={"completions": 16})).run(state)
    resumed, told = make_trainer(), []
    sync, generate = resumed.engine.sync, resumed.engine.generate
    monkeypatch.setattr(resumed.engine, "sync", lambda model: told.append("sync") or sync(model))
    monkeypatch.setattr(resumed.engine, "generate", lambda *given: told.append("draw") or generate(*given))
    resumed.run(state)
    assert len(resumed.rows) > 1
    assert told[:2] == ["sync", "draw"]


def test_every_method_sees_the_same_problems_in_the_same_order(make_trainer):
    def seen(method):
        trainer = make_trainer(method)
        asked = []
        generate = trainer.engine.generate
        trainer.engine.generate = lambda prompts, sampling: (asked.extend(prompts), generate(prompts, sampling))[1]
        trainer.run()
        return asked

    order = {method: seen(method) for method in METHODS}
    assert all(order[method] == order["grpo"] for method in METHODS)
    assert len({tuple(prompt) for prompt in order["grpo"]}) == 12, "no problem comes twice within an epoch"


def test_an_epoch_holds_every_problem_once_and_then_another_order(make_trainer):
    trainer = make_trainer()
    n = len(trainer.task.prompts)
    epochs = [[trainer._next_problem() for _ in range(n)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(n))
    assert epochs[0] != epochs[1]


def test_dynamic_sampling_is_bounded_and_pays_for_what_it_throws_away(make_trainer):
    """A grader that never says yes: every group is dropped, the draws are used up, and nothing is trained."""
    never = {"method": "dapo", "grade": lambda texts, golds: [Outcome.WRONG] * len(texts)}
    rich = make_trainer(settings=SETTINGS.model_copy(update={"completions": 10**4, "max_draws": 2}), **never)
    assert rich.step()["draws"] == 2, "the draws end it, where the budget does not"
    assert not rich.finished
    trainer = make_trainer(**never)
    row = trainer.step()
    assert row["draws"] == 3
    assert row["groups"] == 0
    assert row["completions"] == trainer.generated == 48
    assert "loss" not in row
    assert trainer.finished


def test_dynamic_sampling_fills_the_batch(make_trainer):
    row = make_trainer(
        "dapo", SETTINGS.model_copy(update={"completions": 10**4, "max_draws": 50}), grade=rare_grade
    ).step()
    assert row["groups"] == 4
    assert row["draws"] > 1
    assert row["zero_variance_groups"] == 0


def test_lengths_are_reported_before_any_masking(make_trainer):
    """Dropped groups and filtered truncations count in `length`, `truncated` and `correct`."""
    once = {"settings": SETTINGS.model_copy(update={"max_draws": 1}), "grade": rare_grade}
    plain, masked = make_trainer("grpo", **once).step(), make_trainer("dapo", **once).step()
    assert masked["groups"] < plain["groups"]
    assert plain["truncated"] > 0
    for key in ("length", "truncated", "correct", "tokens"):
        assert plain[key] == masked[key]


def test_a_linear_rate_falls_with_the_budget(make_trainer):
    trainer = make_trainer(settings=SETTINGS.model_copy(update={"lr_schedule": "linear"}))
    used = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: used.append(trainer.optimizer.param_groups[0]["lr"]) or step()
    rates = [row["lr"] for row in trainer.run()]
    assert rates == used == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])


def test_the_last_step_takes_the_groups_that_the_budget_has_left(make_trainer):
    rows = make_trainer(settings=SETTINGS.model_copy(update={"completions": 23})).run()
    assert [row["completions"] for row in rows] == [16, 4]


def test_what_a_step_reports_is_that_of_all_its_draws(make_trainer):
    """Completions that were cut count in every draw; the entropy is that of real tokens."""
    trainer = make_trainer(
        "dapo", SETTINGS.model_copy(update={"completions": 10**4, "max_draws": 50}), grade=rare_grade
    )
    seen = []
    generate = trainer.engine.generate
    trainer.engine.generate = lambda *asked: seen.append(generate(*asked)) or seen[-1]
    row = trainer.step()
    drawn = [completion for completions in seen for completion in completions]
    assert row["draws"] == len(seen) > 1
    assert 0 < row["truncated"] == sum(c.finish_reason == "length" for c in drawn) / len(drawn)
    plain = make_trainer()
    generate = plain.engine.generate
    plain.engine.generate = lambda *asked: seen.append(generate(*asked)) or seen[-1]
    row = plain.step()
    logps = [logp for completion in seen[-1] for logp in completion.logprobs]
    assert row["tokens"] == len(logps) < 16 * 10
    assert row["entropy"] == pytest.approx(-sum(logps) / len(logps), rel=1e-5)


def test_groups_of_one_are_refused(make_trainer):
    with pytest.raises(UserError, match="group_size must be at least 2"):
        make_trainer("grpo", SETTINGS.model_copy(update={"group_size": 1}))


def test_the_real_grader_in_the_loop(make_trainer):
    row = make_trainer(grade=make_grader("digits").grade).step()
    assert row["correct"] == 0.0
    assert row["zero_variance_groups"] == 1.0
    assert row["outcomes"]["UNPARSEABLE"] > 0


def test_the_reading_of_answers_reaches_the_method(make_trainer, monkeypatch):
    """Between the prefixes that are read the entropy runs straight, so information comes in equal parts."""
    trainer = make_trainer("iapo")
    trainer.task = replace(trainer.task, reading=AnswerReading(stride=3))
    seen = []
    credit = trainer.method.credit
    monkeypatch.setattr(trainer.method, "credit", lambda batch, *rest: seen.append(batch) or credit(batch, *rest))
    trainer.step()
    batch = seen[0]
    information_BT = batch.answer_entropy_BS[:, :-1] - batch.answer_entropy_BS[:, 1:]
    row = int(batch.lengths_B.argmax())
    assert batch.lengths_B[row] > 3
    torch.testing.assert_close(information_BT[row, :3], information_BT[row, :1].expand(3), atol=1e-6, rtol=0)
    assert information_BT[row, 0] != information_BT[row, 3]


def test_what_the_settings_say_of_the_reading(tokenizer):
    config = read_tier("smoke").train
    assert answer_reading(config, tokenizer) == AnswerReading()
    changed = config.model_copy(update={"answer_stride": 4, "skip_answer": True})
    close = tuple(tokenizer("</think>", add_special_tokens=False).input_ids)
    assert answer_reading(changed, tokenizer) == AnswerReading(stride=4, stop_ids=close)


def test_checkpoints_wait_for_their_minutes(make_trainer, tmp_path, monkeypatch):
    clock = [0.0]
    saved = []
    monkeypatch.setattr("iapo_bench.train.trainer.time.monotonic", lambda: clock[0])
    trainer = make_trainer(settings=SETTINGS.model_copy(update={"checkpoint_minutes": 2, "completions": 96}))
    monkeypatch.setattr(trainer, "_save", lambda path: saved.append(len(trainer.rows)))
    step = trainer.step

    def minute_later():
        clock[0] += 60.0
        return step()

    monkeypatch.setattr(trainer, "step", minute_later)
    rows = trainer.run(tmp_path / "state.pt")
    assert saved == list(range(2, len(rows) + 1, 2)), "every second step, though each could be one"
    assert len(saved) > 1


def test_validation_samples_as_training_does_and_from_the_same_numbers_each_time(make_trainer):
    trainer = make_trainer(settings=SETTINGS.model_copy(update={"temperature": 0.5, "max_tokens": 7}))
    task, asked = trainer.task, []
    looked = Validation(task.prompts[:8], task.golds[:8], coin_grade)
    generate = trainer.engine.generate
    trainer.engine.generate = lambda prompts, sampling: asked.append(sampling) or generate(prompts, sampling)
    first, again, other = (validate(looked, task, trainer.engine, trainer.config, seed) for seed in (0, 0, 1))
    assert (asked[0].temperature, asked[0].max_tokens, asked[0].eos_ids) == (0.5, 7, task.eos_ids)
    assert asked[0] == asked[1] != asked[2]
    assert first["validation_length"] == again["validation_length"] != other["validation_length"]
    drawn = generate(looked.prompts, asked[0])
    right = coin_grade(task.texts(drawn), looked.golds)
    assert 0 < first["validation_correct"] == right.count(Outcome.CORRECT) / 8 < 1
    assert first["validation_length"] == sum(len(completion.token_ids) for completion in drawn) / 8
