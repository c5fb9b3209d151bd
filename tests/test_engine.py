"""The rollout engine: the same distribution as the model, whatever the schedule."""

import pytest
import torch

from iapo_bench.errors import UserError
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.draw import invert_cdf
from iapo_bench.rollout.transformers_engine import TransformersEngine

PROMPTS = [[7, 20, 8, 23, 25], [9, 20, 10, 22, 11, 21, 12, 23, 25], [13, 21, 7], [8, 22, 8, 23]]
EOS = 1


def settings(**changes) -> Sampling:
    return Sampling(**{"max_tokens": 12, "eos_ids": (EOS,), "samples_per_prompt": 5, "seed": 3, **changes})


def reference_logp(model, prompt: list[int], completion: tuple[int, ...], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities from one plain forward over prompt and completion."""
    ids = torch.tensor([prompt + list(completion)])
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0] / temperature, -1)
    return logp[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("batch_size", [2, 7, 64])
def test_log_probabilities_are_the_models_own(any_model, batch_size):
    completions = TransformersEngine(any_model, batch_size=batch_size).generate(PROMPTS, settings(temperature=0.7))
    for row, completion in enumerate(completions):
        expected = reference_logp(any_model, PROMPTS[row // 5], completion.token_ids, 0.7)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=2e-5, rtol=0)


def test_batch_size_does_not_change_a_draw(model):
    """Refilled, compacted or all at once: a row's tokens depend on its seed alone."""
    whole = TransformersEngine(model, batch_size=64).generate(PROMPTS, settings())
    for batch_size in (1, 3, 8):
        parts = TransformersEngine(model, batch_size=batch_size).generate(PROMPTS, settings())
        assert [c.token_ids for c in parts] == [c.token_ids for c in whole]
    assert len({len(c.token_ids) for c in whole}) > 1, "rows must end at different times for this test to mean anything"


def test_seed_decides(model):
    engine = TransformersEngine(model)
    first, again, other = (engine.generate(PROMPTS, settings(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert [c.token_ids for c in first] != [c.token_ids for c in other]
    assert len({c.token_ids for c in first[:5]}) > 1, "samples of one prompt must differ"


def test_greedy_is_generate(any_model):
    """At temperature 0 the ids are those of `model.generate`."""
    completions = TransformersEngine(any_model).generate(PROMPTS, settings(temperature=0.0, samples_per_prompt=1))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = torch.tensor([prompt])
        expected = any_model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=EOS,
            pad_token_id=0,
        )
        assert list(completion.token_ids) == expected[0, len(prompt) :].tolist()


def test_same_distribution_as_generate(model):
    """First two tokens of 4,000 draws: chi-square distance to the exact probabilities no larger than chance allows."""
    n, prompt = 4000, PROMPTS[0]
    completions = TransformersEngine(model, batch_size=500).generate(
        [prompt], settings(max_tokens=2, samples_per_prompt=n, eos_ids=())
    )
    with torch.no_grad():
        first = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1], -1)
        follow = [torch.tensor([[*prompt, token]]) for token in range(len(first))]
        second = torch.cat([torch.softmax(model(input_ids=ids).logits[:, -1], -1) for ids in follow])
    expected = n * first[:, None] * second
    observed = torch.zeros_like(expected)
    for completion in completions:
        observed[completion.token_ids] += 1
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    cells = expected.numel() - 1
    assert abs(chi_square - cells) < 5 * (2 * cells) ** 0.5


def test_finish_reasons_and_eos(model):
    completions = TransformersEngine(model).generate(PROMPTS, settings(samples_per_prompt=40))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        stopped = completion.finish_reason == "stop"
        assert (completion.token_ids[-1] == EOS) == stopped
        assert EOS not in completion.token_ids[:-1]
        assert stopped or len(completion.token_ids) == 12


def test_training_mode_is_restored(model):
    model.train()
    TransformersEngine(model).generate(PROMPTS[:1], settings())
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_prompt_beyond_the_context(model):
    with pytest.raises(UserError, match="exceed the model's context of 256"):
        TransformersEngine(model).generate([[7] * 250], settings())


def test_invert_cdf_picks_by_cumulative_probability():
    logp = torch.tensor([[0.2, 0.5, 0.3]]).log().expand(5, -1)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71], dtype=torch.float64)
    assert invert_cdf(logp, uniforms).tolist() == [0, 0, 1, 1, 2]


def test_top_p_keeps_the_smallest_nucleus():
    logp = torch.tensor([[0.2, 0.5, 0.3]]).log().expand(99, -1)
    uniforms = torch.linspace(0, 0.999, 99, dtype=torch.float64)
    assert set(invert_cdf(logp, uniforms, top_p=0.4).tolist()) == {1}
    assert set(invert_cdf(logp, uniforms, top_p=0.6).tolist()) == {1, 2}


def one_level(logp: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain inverse in float64, and how far each number is from the nearer end of its token's interval."""
    cdf = logp.double().exp().cumsum(-1)
    target = uniforms[:, None] * cdf[:, -1:]
    token = torch.searchsorted(cdf, target, right=True).clamp(max=logp.shape[1] - 1)
    edges = torch.nn.functional.pad(cdf, (1, 0)).gather(1, torch.cat([token, token + 1], dim=1))
    return token[:, 0], (edges - target).abs().min(dim=1).values


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_large_vocabulary_draws_are_those_of_one_sum(spread):
    """Two levels, at the size of Qwen's vocabulary: the same token, but where a number is a rounding off another."""
    generator = torch.Generator().manual_seed(int(spread))
    logp = torch.log_softmax(spread * torch.randn(4, 151_936, generator=generator), -1).repeat_interleave(40, 0)
    uniforms = torch.rand(160, dtype=torch.float64, generator=generator)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53])
    expected, distance = one_level(logp, uniforms)
    token = invert_cdf(logp, uniforms)
    differs = token != expected
    assert differs.sum() <= 2
    assert (distance[differs] < 1e-7).all()


@pytest.mark.parametrize("top_p", [0.3, 0.999])
def test_large_vocabulary_nucleus(top_p):
    """Summed by blocks, a token outside of the nucleus is never drawn, not even by the last number before 1."""
    generator = torch.Generator().manual_seed(2)
    logp = torch.log_softmax(3 * torch.randn(1, 151_936, generator=generator), -1)
    ordered, order = logp[0].double().exp().sort(descending=True)
    inside = order[ordered.cumsum(0) - ordered < top_p]
    uniforms = torch.cat([torch.rand(50, dtype=torch.float64, generator=generator), torch.tensor([0.0, 1 - 2**-53])])
    tokens = invert_cdf(logp.expand(52, -1), uniforms, top_p=top_p)
    assert torch.isin(tokens, inside).all()
    assert tokens[-1] == inside.max()
    assert tokens[-2] == inside.min()


def test_blocks_of_a_small_vocabulary(monkeypatch):
    """Any size of the last block, and blocks without probability, draw what one sum draws."""
    generator = torch.Generator().manual_seed(4)
    for V in (17, 31, 32, 33, 100):
        logp = torch.log_softmax(5 * torch.randn(64, V, generator=generator), -1)
        logp[:, 16:32] = float("-inf")
        uniforms = torch.rand(64, dtype=torch.float64, generator=generator)
        expected = invert_cdf(logp, uniforms)
        with monkeypatch.context() as patch:
            patch.setattr("iapo_bench.rollout.draw.BLOCK", 16)
            assert invert_cdf(logp, uniforms).tolist() == expected.tolist()
