"""The rollout engine on a GPU: replayed graphs against the same steps launched one by one, and against the CPU."""

import copy

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from iapo_bench.rollout import Completion, Sampling, transformers_engine
from iapo_bench.rollout.decode_graph import EXACT, GRAPHS, PADDED, Schedule
from iapo_bench.rollout.draw import invert_cdf
from iapo_bench.rollout.transformers_engine import TransformersEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("error:generating without CUDA graphs"),
]

PROMPTS = [[7 + (i + j) % 20 for j in range(2 + 11 * i % 60)] for i in range(12)]


def generate(model, schedule: Schedule, prompts=PROMPTS, batch_size: int = 64, **changes) -> list[Completion]:
    sampling = Sampling(**{"max_tokens": 90, "eos_ids": (1, 9), "samples_per_prompt": 8, "seed": 3, **changes})
    return TransformersEngine(model, batch_size=batch_size, schedule=schedule).generate(prompts, sampling)


def tokens(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [c.token_ids for c in completions]


@pytest.fixture
def wide_model(device) -> Qwen2ForCausalLM:
    """Two layers of Qwen2.5-0.5B, with its vocabulary, in bfloat16, with weights that make draws differ."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=2,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    model.get_input_embeddings().weight.data.mul_(5)
    return model.to(device, torch.bfloat16).eval()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_float32_tokens_are_the_cpus(any_model, device, temperature):
    changes = {"temperature": temperature, "samples_per_prompt": 1 if temperature == 0 else 8}
    expected = generate(any_model, EXACT, **changes)
    completions = generate(copy.deepcopy(any_model).to(device), GRAPHS, **changes)
    alike = [a == b for a, b in zip(tokens(completions), tokens(expected), strict=True)]
    assert sum(alike) >= len(alike) - 1  # a tie, or a number a rounding off a boundary
    for mine, theirs, same in zip(completions, expected, alike, strict=True):
        if same:
            torch.testing.assert_close(torch.tensor(mine.logprobs), torch.tensor(theirs.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}, {"eos_ids": ()}])
def test_replays_are_the_steps_themselves(wide_model, changes):
    """The same kernels on the same shapes: equal to the last bit."""
    assert generate(wide_model, GRAPHS, **changes) == generate(wide_model, PADDED, **changes)


def test_graphs_are_replayed(wide_model, monkeypatch):
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph)))
    generate(wide_model, GRAPHS, eos_ids=(), batch_size=96)
    assert len(replays) >= 80
    assert len(set(map(id, replays))) <= 4


def test_new_weights_are_used(wide_model):
    engine = TransformersEngine(wide_model, batch_size=64)
    sampling = Sampling(max_tokens=30, eos_ids=(), samples_per_prompt=4, seed=1)
    before = engine.generate(PROMPTS, sampling)
    with torch.no_grad():
        for parameter in wide_model.parameters():
            parameter.mul_(1.1)
    after = engine.generate(PROMPTS, sampling)
    assert tokens(after) != tokens(before)
    assert after == TransformersEngine(copy.deepcopy(wide_model), batch_size=64).generate(PROMPTS, sampling)


def test_no_step_waits_for_the_device(wide_model, monkeypatch):
    step = transformers_engine._Run._step

    def watched(run, rows, span):
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(run, rows, span)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(transformers_engine._Run, "_step", watched)
    generate(wide_model, PADDED)


def test_memory_is_given_back(wide_model):
    generate(wide_model, GRAPHS)
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(3):
        generate(wide_model, GRAPHS)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.memory_reserved() <= reserved + 2**26


def test_a_capture_that_fails_is_survived(wide_model, monkeypatch):
    """A step that asks the device for a number cannot be captured, but taken."""
    step = transformers_engine._Run._step

    def asking(run, rows, span):
        step(run, rows, span)
        run.count_R.sum().item()

    expected = generate(wide_model, PADDED)
    monkeypatch.setattr(transformers_engine._Run, "_step", asking)
    with pytest.warns(UserWarning, match="generating without CUDA graphs"):
        assert generate(wide_model, GRAPHS) == expected


def test_draws_are_the_cpus(device):
    generator = torch.Generator().manual_seed(0)
    logp = torch.log_softmax(2 * torch.randn(64, 151_936, generator=generator), -1)
    uniforms = torch.rand(64, dtype=torch.float64, generator=generator)
    for top_p in (1.0, 0.9):
        mine = invert_cdf(logp.to(device), uniforms.to(device), top_p).cpu()
        assert (mine != invert_cdf(logp, uniforms, top_p)).sum() <= 1
