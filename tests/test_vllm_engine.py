"""The vLLM engine against the transformers engine: the same model, tokens and probabilities; no stale weight unseen.

Run where vLLM is installed: `bash scripts/vllm_env.sh`, then `.bench/vllm/bin/pytest -m vllm`.
"""

import copy
import importlib.util
import json

import pytest
import torch

from iapo_bench.config.lora import LoraConfig
from iapo_bench.config.tier_file import read_tier
from iapo_bench.config.train import TrainConfig
from iapo_bench.errors import UserError
from iapo_bench.evaluate.sample import sample
from iapo_bench.method import load_method
from iapo_bench.models.checkpoints import build_micro, save_model
from iapo_bench.models.lora import add_lora
from iapo_bench.rollout import Sampling, vllm_engine
from iapo_bench.rollout.load import make_engine
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.train.task import Task
from iapo_bench.train.trainer import Trainer
from iapo_bench.worlds import POSTFIX, write_problems
from iapo_bench.worlds.grading import Outcome

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed here"),
]
PROMPTS = [[7, 20, 8, 23, 25], [9, 20, 10, 22, 11, 21, 12, 23, 25], [13, 21, 7], [8, 22, 8, 23]]
EOS = 1
CONTEXT = 64


def build(tokenizer, heads: int = 2):
    """Heads of 32 dimensions: the least that vLLM's attention for CPUs takes."""
    return build_micro(tokenizer, hidden=64, layers=2, heads=heads, seed=1).eval()


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("vllm") / "model"
    save_model(build(tokenizer), tokenizer, path)
    return path


@pytest.fixture(scope="module")
def started(checkpoint, tokenizer):
    """One engine for all tests: it takes half a minute to start."""
    return make_engine("vllm", checkpoint, build(tokenizer), width=CONTEXT, batch_size=256, gpu_memory=0.3)


@pytest.fixture
def model(tokenizer):
    return build(tokenizer)


@pytest.fixture
def engine(started, model):
    """The engine with the weights of `model`."""
    started.sync(model)
    return started


def settings(**changes) -> Sampling:
    return Sampling(**{"max_tokens": 12, "eos_ids": (EOS,), "samples_per_prompt": 5, "seed": 3, **changes})


def ids(completions) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def moved(model, by: float):
    """A copy of `model` with noise in its embedding, which is its output layer, too."""
    other = copy.deepcopy(model)
    weight = other.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    weight.data += by * torch.randn(weight.shape, generator=generator)
    return other


@pytest.fixture
def no_checkpoint(checkpoint):
    """As if the checkpoint had gone from the disk once the engine was up."""
    aside = checkpoint.rename(checkpoint.with_name("aside"))
    yield
    aside.rename(checkpoint)


@pytest.mark.usefixtures("no_checkpoint")
@pytest.mark.parametrize("adapters", [False, True])
def test_training_keeps_engine_and_trainer_together(engine, model, tokenizer, world, adapters):
    """Several steps of GRPO, all in memory; afterwards both engines say the same, greedily and in every probability."""
    if adapters:
        add_lora(model, LoraConfig(rank=4, alpha=16.0), seed=0)
    problems = world.load("train")
    task = Task(
        prompts=[world.encode_prompt(problem, tokenizer) for problem in problems],
        golds=[problem.answer for problem in problems],
        grade=lambda texts, golds: [Outcome.WRONG if len(t.split()) % 2 else Outcome.CORRECT for t in texts],
        tokenizer=tokenizer,
        eos_ids=(EOS, 7, 8),  # an untrained model must end sometimes
        postfix_ids=tokenizer(POSTFIX).input_ids,
    )
    budget = TrainConfig(
        completions=96,
        prompts_per_step=4,
        group_size=4,
        max_tokens=10,
        temperature=0.9,
        max_draws=3,
        checkpoint_every=1,
        lr=1e-2 if adapters else 1e-3,
        importance_cap=2.0,
    )
    before = copy.deepcopy(model)
    rows = Trainer(load_method("grpo", loss={"kl_coef": 0.0}), budget, 0, task, model, engine).run()
    assert len(rows) == 6
    assert max(row["logp_gap"] for row in rows) < 1e-3
    assert any(row["grad_norm"] > 0 for row in rows)
    assert engine.check(model) < 1e-3
    with pytest.raises(UserError, match="stale or incomplete"):
        engine.check(before)

    greedy = settings(temperature=0.0, samples_per_prompt=1, max_tokens=30)
    ours, theirs = engine.generate(task.prompts, greedy), TransformersEngine(model).generate(task.prompts, greedy)
    assert ids(ours) == ids(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.finish_reason == b.finish_reason
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_the_models_own(engine, model, temperature):
    completions = engine.generate(PROMPTS, settings(temperature=temperature))
    for row, completion in enumerate(completions):
        prompt = PROMPTS[row // 5]
        inputs = torch.tensor([prompt + list(completion.token_ids)])
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=inputs).logits[0, len(prompt) - 1 : -1] / temperature, -1)
        expected = logp.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_draws_follow_the_probabilities(engine, model):
    """First tokens of 4,000 draws: chi-square distance to the exact probabilities no larger than chance allows."""
    n, prompt = 4000, PROMPTS[0]
    first = [c.token_ids[0] for c in engine.generate([prompt], settings(max_tokens=1, samples_per_prompt=n))]
    with torch.no_grad():
        expected = n * torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1], -1)
    observed = torch.bincount(torch.tensor(first), minlength=len(expected))
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    cells = len(expected) - 1
    assert abs(chi_square - cells) < 5 * (2 * cells) ** 0.5


def test_top_p_keeps_the_nucleus(engine, model):
    with torch.no_grad():
        probability = torch.softmax(model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1], -1)
    ordered, order = probability.sort(descending=True)
    nucleus = order[ordered.cumsum(0) - ordered < 0.3].tolist()
    drawn = engine.generate(PROMPTS[:1], settings(max_tokens=1, samples_per_prompt=500, top_p=0.3))
    assert {c.token_ids[0] for c in drawn} == set(nucleus)


def test_seed_decides(engine):
    """Every completion has its own: neither the other prompts nor what was asked before changes a draw."""
    first, again, other = (engine.generate(PROMPTS, settings(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert ids(first) != ids(other)
    assert len(set(ids(first)[:5])) > 1, "samples of one prompt must differ"
    assert ids(engine.generate(PROMPTS[:1], settings(seed=1))) == ids(first)[:5]


def test_more_than_is_under_way_at_once(engine):
    """400 completions wait for 256 places, and more prompt tokens than one step prefills: a prompt is never cut, which
    generators of a CPU would not survive."""
    prompts = [(prompt * 16)[:44] for prompt in PROMPTS]
    completions = engine.generate(prompts, settings(samples_per_prompt=100))
    assert len(completions) == 400
    assert ids(engine.generate(prompts, settings(samples_per_prompt=100))) == ids(completions)


def test_finish_reasons_and_eos(engine):
    completions = engine.generate(PROMPTS, settings(samples_per_prompt=40))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        stopped = completion.finish_reason == "stop"
        assert (completion.token_ids[-1] == EOS) == stopped
        assert EOS not in completion.token_ids[:-1]
        assert stopped or len(completion.token_ids) == 12
        assert len(completion.logprobs) == len(completion.token_ids)
    endless = engine.generate(PROMPTS, settings(samples_per_prompt=40, eos_ids=()))
    assert {len(c.token_ids) for c in endless} == {12}, "the checkpoint's own end of sequence must not count"


def test_a_stale_engine_is_caught(engine, model):
    other = moved(model, 0.05)
    with pytest.raises(UserError, match=r"differ by .* nats .* stale or incomplete"):
        engine.check(other)
    engine.sync(other)
    assert engine.check(other) < 1e-5


def test_an_incomplete_sync_is_caught(engine, model, monkeypatch):
    """Without the output layer, tied as it is, vLLM keeps the old one."""
    complete = vllm_engine.merged_weights
    assert "lm_head.weight" in dict(complete(model))
    monkeypatch.setattr(
        vllm_engine, "merged_weights", lambda m: [(k, v) for k, v in complete(m) if k != "lm_head.weight"]
    )
    with pytest.raises(UserError, match="stale or incomplete"):
        engine.sync(moved(model, 0.05))


def test_a_sync_that_does_nothing_is_caught_below_the_tolerance(engine, model, monkeypatch):
    other = moved(model, 3e-5)
    monkeypatch.setattr(engine.llm, "collective_rpc", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="vllm not at all"):
        engine.sync(other)


def test_syncs_that_do_nothing_are_caught_though_each_step_is_tiny(engine, model, monkeypatch):
    monkeypatch.setattr(engine.llm, "collective_rpc", lambda *args, **kwargs: None)
    steps = [moved(model, 1e-6 * step) for step in range(1, 40)]  # of some 2e-5 nats each
    for step in steps[:3]:
        engine.sync(step)
    with pytest.raises(UserError, match="vllm not at all"):
        [engine.sync(step) for step in steps]


def test_the_trainer_has_the_memory_between_a_rollout_and_the_next_sync(engine, model, monkeypatch):
    """What happens on a GPU, in its order: a CPU has no memory to hand over."""
    events = []
    for owner, name in (
        *((engine.llm, name) for name in ("generate", "sleep", "wake_up", "collective_rpc")),
        (torch.cuda, "empty_cache"),
    ):
        call = getattr(owner, name) if name in ("generate", "collective_rpc") else lambda *args, **kwargs: None
        monkeypatch.setattr(owner, name, lambda *a, _call=call, _name=name, **k: events.append(_name) or _call(*a, **k))
    monkeypatch.setattr(engine, "sleep", True)
    engine.generate(PROMPTS, settings())
    engine.sync(model)
    engine.generate(PROMPTS, settings())
    engine.generate(PROMPTS, settings())  # dynamic sampling draws again, without an update
    engine.sync(model)
    woken = ["empty_cache", "wake_up"]
    synced = [*woken, "collective_rpc", "generate"]
    assert events == ["generate", "sleep", *synced, "generate", "sleep", *woken, "generate", "sleep", *synced]


def test_prompt_beyond_the_context(engine):
    with pytest.raises(UserError, match=f"exceed the engine's context of {CONTEXT}"):
        engine.generate([[7] * (CONTEXT - 1)], settings())


def test_nothing_to_generate(engine):
    assert engine.generate([], settings()) == []


def test_the_trainer_may_still_set_its_threads(engine):
    """vLLM's worker for CPUs puts a function that does nothing in its place."""
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a limit of the attention for CPUs")
def test_heads_that_vllm_cannot_take_are_named(tokenizer, tmp_path):
    other = build(tokenizer, heads=8)
    save_model(other, tokenizer, tmp_path / "model")
    with pytest.raises(UserError, match="heads of 8 dimensions; on a CPU vllm needs one of 32, 64"):
        make_engine("vllm", tmp_path / "model", other, width=CONTEXT, batch_size=4, gpu_memory=0.3)


def test_sampling_with_the_configured_engine(started, checkpoint, world, tmp_path, monkeypatch):
    """`sample` makes one engine for all problems, samples and seeds, asks it once a seed, and says which it was."""
    made, asked, generate = [], [], started.llm.generate
    monkeypatch.setattr(
        started.llm, "generate", lambda rows, *a, **k: asked.append(len(rows)) or generate(rows, *a, **k)
    )
    monkeypatch.setattr(
        "iapo_bench.evaluate.sample.make_engine", lambda name, *args, **kwargs: made.append(name) or started
    )
    write_problems(tmp_path / "test.jsonl", world.load("test"))
    tier = read_tier("smoke", {"evaluate": {"engine": "vllm", "max_tokens": 20}})
    evaluate = tier.evaluate.model_copy(update={"seeds": [42, 142], "n_samples": 4})
    job = tier.sample_job("test").model_copy(update={"evaluate": evaluate})
    sample(job, model=checkpoint, data=tmp_path, out=tmp_path)
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert made == ["vllm"]
    assert asked == [8, 48, 48], "a warm-up of 8 problems, then 4 samples of 12 problems at once for each seed"
    assert timing["engine"] == "vllm"
    assert timing["completions"] == 2 * 4 * 12
