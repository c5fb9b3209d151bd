"""Answer entropies, against one separate forward for each prefix, and what the shared cache saves."""

import copy
from itertools import pairwise

import pytest
import torch
from builders import ragged_batch
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from iapo_bench.errors import UserError
from iapo_bench.method import Signal
from iapo_bench.signals import packed as packed_module
from iapo_bench.signals.informativeness import AnswerReading, answer_entropies, next_token_statistics, pass_tokens
from iapo_bench.signals.packed import PackedBatch, packed_blocks
from iapo_bench.signals.statistics import compute_signals

SHAPE = {
    "vocab_size": 42,
    "max_position_embeddings": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SLIDING = {**SHAPE, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "num_key_value_heads": 1})),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=8)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SLIDING, sliding_window=64)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=42, n_positions=128, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.2, attn_pdrop=0.2)
    ),
}


def build(family: str):
    """A model whose distributions differ: freshly initialised ones are nearly uniform, and would hide errors."""
    torch.manual_seed(5)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


def rows_of(batch) -> tuple[torch.Tensor, ...]:
    return batch.prompt_ids_BP, batch.prompt_mask_BP, batch.completion_ids_BT, batch.completion_mask_BT


def separate_forwards(model, batch, postfix: list[int], temperature: float = 1.0) -> torch.Tensor:
    """The definition, by the model's own call and nothing of ours."""
    out = torch.zeros(batch.completion_ids_BT.shape[0], batch.completion_ids_BT.shape[1] + 1)
    for row in range(len(out)):
        prompt = batch.prompt_ids_BP[row][batch.prompt_mask_BP[row]]
        completion = batch.completion_ids_BT[row][batch.completion_mask_BT[row]]
        for t in range(len(completion) + 1):
            ids = torch.cat([prompt, completion[:t], torch.tensor(postfix)])[None]
            with torch.no_grad():
                logp = torch.log_softmax(model(input_ids=ids).logits[0, -1].float() / temperature, -1)
            out[row, t] = -(logp.exp() * logp).sum()
    return out


@pytest.mark.parametrize("implementation", ["shared_kv", "kv_replicated", "naive"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_one_forward_for_each_prefix(family, attention, implementation):
    model = build(family)
    model.set_attn_implementation(attention)
    batch = ragged_batch(vocabulary=42)
    expected = separate_forwards(model, batch, [4, 5, 6], 0.9)
    assert expected[batch.completion_mask_BT.new_ones(expected.shape) & (expected > 0)].std() > 0.05
    for chunk in (None, 1, 3):
        ours = answer_entropies(
            model, *rows_of(batch), torch.tensor([4, 5, 6]), temperature=0.9, chunk=chunk, implementation=implementation
        )
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("K", range(1, 9))
def test_postfixes_of_any_length(K):
    model, batch = build("qwen2"), ragged_batch(seed=K)
    postfix = list(range(7, 7 + K))
    ours = answer_entropies(model, *rows_of(batch), torch.tensor(postfix))
    torch.testing.assert_close(ours, separate_forwards(model, batch, postfix), atol=1e-4, rtol=0)


@pytest.mark.parametrize("implementation", ["shared_kv", "kv_replicated"])
def test_bfloat16(implementation):
    model, batch = build("llama").to(torch.bfloat16), ragged_batch()
    ours = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]), implementation=implementation)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, separate_forwards(model, batch, [4, 5]), atol=0.08, rtol=0)


def test_one_token_and_none():
    model, batch = build("llama"), ragged_batch()
    prompt, mask, ids, _ = rows_of(batch)
    lengths = torch.tensor([1, 0, 1, 1, 0, 1])
    ours = answer_entropies(model, prompt, mask, ids[:, :1], lengths[:, None] > 0, torch.tensor([4, 5]))
    full = separate_forwards(model, batch, [4, 5])[:, :2]
    torch.testing.assert_close(ours, full * (torch.arange(2) <= lengths[:, None]), atol=1e-4, rtol=0)


def test_more_left_padding_and_more_right_padding_change_nothing():
    model, batch = build("gpt2"), ragged_batch()
    prompt, prompt_mask, ids, mask = rows_of(batch)
    wide = (
        torch.nn.functional.pad(prompt, (5, 0), value=9),
        torch.nn.functional.pad(prompt_mask, (5, 0)),
        torch.nn.functional.pad(ids, (0, 3), value=9),
        torch.nn.functional.pad(mask, (0, 3)),
    )
    narrow = answer_entropies(model, *rows_of(batch), torch.tensor([4]))
    padded = answer_entropies(model, *wide, torch.tensor([4]))
    assert (padded[:, narrow.shape[1] :] == 0).all()
    torch.testing.assert_close(padded[:, : narrow.shape[1]], narrow)


def test_rows_longer_than_a_span(monkeypatch):
    """Spans cut a row's queries; here into threes."""
    model, batch = build("llama"), ragged_batch()
    monkeypatch.setattr(packed_module, "SPAN", 3)
    ours = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]))
    (block,) = packed_blocks(*rows_of(batch), 10**6)
    with torch.no_grad():
        spans = PackedBatch(model, block)._spans([(row, t) for row in range(2) for t in range(6)])
    assert [span.count for span in spans] == [3] * 4
    torch.testing.assert_close(ours, separate_forwards(model, batch, [4, 5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_block_sparse_mask_of_a_gpu(family, monkeypatch):
    """The GPU's path, with the same kernel's plain version."""
    model, batch = build(family), ragged_batch()
    monkeypatch.setattr(packed_module, "_attend_flash", packed_module._attend_flex)
    monkeypatch.setattr(packed_module, "_compiled_flex", lambda: flex_attention)
    ours = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]), chunk=7, reading=AnswerReading(stride=2))
    monkeypatch.undo()
    theirs = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]), reading=AnswerReading(stride=2))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_information_adds_up():
    model, batch = build("llama"), ragged_batch()
    filled = compute_signals(
        model, batch, frozenset({Signal.ANSWER_ENTROPY}), temperature=1.0, micro_batch_tokens=99, postfix_ids=[4, 5]
    )
    e_BS = filled.answer_entropy_BS
    information_BT = (e_BS[:, :-1] - e_BS[:, 1:]) * batch.completion_mask_BT
    last_B = e_BS.gather(1, batch.lengths_B[:, None])[:, 0]
    torch.testing.assert_close(information_BT.sum(1), e_BS[:, 0] - last_B)
    torch.testing.assert_close(e_BS, separate_forwards(model, batch, [4, 5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("implementation", ["shared_kv", "kv_replicated", "naive"])
def test_a_model_in_training_is_read_without_dropout_and_left_as_it_was(implementation):
    model, batch = build("gpt2"), ragged_batch()
    expected = separate_forwards(model, batch, [4, 5])
    model.train()
    model.transformer.h[0].eval()  # a caller may have frozen a part
    model.gradient_checkpointing_enable()
    modes = {name: module.training for name, module in model.named_modules()}
    config = copy.deepcopy(model.config.to_dict())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    ours = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]), implementation=implementation)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert config == model.config.to_dict()
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_failure_leaves_the_model_as_it_was():
    model, batch = build("gemma3").train(), ragged_batch()
    model.config.sliding_window = 8
    with pytest.raises(UserError, match="window of 8 tokens"):
        answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]))
    assert model.training
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8)), "final_logit_softcapping"),
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=42, hidden_size=32, n_layer=1, n_head=2)), "custom attention"),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
            ),
            "dynamic",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(model, message):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=message):
        answer_entropies(model().eval(), *rows_of(ragged_batch()), torch.tensor([4, 5]))


def test_soft_capped_attention_is_refused():
    config = Gemma2Config(**{**SLIDING, "layer_types": ["full_attention"] * 2}, final_logit_softcapping=None)
    with pytest.raises(UserError, match="more than plain attention"):
        answer_entropies(Gemma2ForCausalLM(config).eval(), *rows_of(ragged_batch()), torch.tensor([4, 5]))


def test_bad_arguments():
    model, batch = build("llama"), ragged_batch()
    with pytest.raises(UserError, match="unknown implementation 'nave': did you mean 'naive'"):
        answer_entropies(model, *rows_of(batch), torch.tensor([4]), implementation="nave")
    with pytest.raises(ValueError, match="postfix"):
        answer_entropies(model, *rows_of(batch), torch.tensor([], dtype=torch.long))
    prompt, mask, *rest = rows_of(batch)
    with pytest.raises(ValueError, match="prompt"):
        answer_entropies(model, prompt, mask & False, *rest, torch.tensor([4]))


class _Fed:
    """Tokens that went through a decoder, a number for each pass, padding included."""

    def __init__(self, model) -> None:
        self.passes: list[int] = []
        model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs) -> None:
        self.passes.append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel())


def test_no_token_is_fed_twice_and_no_padding_ever():
    model, batch = build("llama"), ragged_batch(groups=4)
    fed = _Fed(model)
    signals = compute_signals(
        model, batch, frozenset(Signal), temperature=1.0, micro_batch_tokens=10**6, postfix_ids=[4, 5, 6]
    )
    prompts = int(batch.prompt_mask_BP[:: batch.group_size].sum())  # once for all completions of a group
    tokens = int(batch.lengths_B.sum())
    assert fed.passes[0] == prompts + tokens  # log-probabilities, entropies and the cache alike
    assert sum(fed.passes[1:]) == 3 * (tokens + len(batch.lengths_B))
    assert signals.old_logp_BT is not None


def test_passes_stay_within_the_automatic_size(monkeypatch):
    model, batch = build("llama"), ragged_batch(groups=4)
    longest = int((batch.prompt_mask_BP.sum(1) + batch.lengths_B).max())
    monkeypatch.setattr("iapo_bench.signals.informativeness.PASS_BYTES", int(longest * 1.5) * 4 * (8 * 32 + 3 * 64))
    assert longest < pass_tokens(model) < 2 * longest
    fed = _Fed(model)
    ours = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]))
    assert max(fed.passes) <= pass_tokens(model)
    torch.testing.assert_close(ours, separate_forwards(model, batch, [4, 5]), atol=1e-4, rtol=0)


def test_memory_that_torch_has_cached_on_a_gpu_is_free(monkeypatch):
    model = build("llama")
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    free, cached, used = 2**27, 2**26, 2**30
    sizes = []
    for left, reserved in ((free, used), (free - cached, used + cached)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, left=left: (left, 2**32))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, reserved=reserved: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)
        sizes.append(pass_tokens(model))
    assert sizes == [free // 16 // (4 * (8 * 32 + 3 * 64))] * 2


def test_the_cache_holds_each_token_once_and_is_never_written_to():
    model, batch = build("llama"), ragged_batch(groups=2)
    (block,) = packed_blocks(*rows_of(batch), 10**6)
    with torch.no_grad():
        packed = PackedBatch(model, block)
        before = {layer: (keys.clone(), values.clone()) for layer, (keys, values) in packed.cache.items()}
        packed.read_postfix(torch.tensor([4, 5]), [(0, 0), (1, 1), (1, 2)])
    places = int((batch.prompt_mask_BP.sum(1) + batch.lengths_B).sum())
    assert len(packed.cache) == 2
    for layer, (keys, values) in packed.cache.items():
        assert keys.shape == (2, places, 8)
        assert torch.equal(keys, before[layer][0])
        assert torch.equal(values, before[layer][1])


def test_all_logits_never_exist_at_once(monkeypatch):
    monkeypatch.setattr("iapo_bench.signals.informativeness.HEAD_ELEMENTS", 3 * 42)
    model = build("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape[0]))
    hidden, targets = torch.randn(8, 32), torch.arange(8)
    with torch.no_grad():
        logp, entropy = next_token_statistics(model.lm_head, hidden, 0.7, targets)
        expected = torch.log_softmax(model.lm_head(hidden) / 0.7, -1)
    assert seen[:3] == [3, 3, 2]
    torch.testing.assert_close(logp, expected.gather(1, targets[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1), atol=1e-5, rtol=0)


def test_every_few_prefixes_runs_straight_between_them():
    model, batch = build("llama"), ragged_batch()
    exact = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]))
    for implementation in ("shared_kv", "kv_replicated", "naive"):
        coarse = answer_entropies(
            model, *rows_of(batch), torch.tensor([4, 5]), reading=AnswerReading(stride=4), implementation=implementation
        )
        for row, length in enumerate(batch.lengths_B.tolist()):
            read = [*range(0, length, 4), length]
            torch.testing.assert_close(coarse[row, read], exact[row, read], atol=1e-4, rtol=0)
            for left, right in pairwise(read):
                line = torch.linspace(float(exact[row, left]), float(exact[row, right]), right - left + 1)
                torch.testing.assert_close(coarse[row, left : right + 1], line, atol=1e-4, rtol=0)
            assert (coarse[row, length + 1 :] == 0).all()


def test_reading_stops_where_the_answer_begins():
    model, batch = build("llama"), ragged_batch()
    row = int(batch.lengths_B.argmax())
    completion = batch.completion_ids_BT[row][batch.completion_mask_BT[row]]
    stop = tuple(completion[3:5].tolist())
    reading = AnswerReading(stop_ids=stop)
    first = next(i for i in range(len(completion)) if tuple(completion[i : i + 2].tolist()) == stop)
    assert reading.prefixes(completion) == list(range(first + 1))
    assert reading.prefixes(torch.cat([completion, completion])) == list(range(first + 1))
    assert AnswerReading(stop_ids=(99, 98)).prefixes(completion) == list(range(len(completion) + 1))
    exact = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]))
    short = answer_entropies(model, *rows_of(batch), torch.tensor([4, 5]), reading=reading)
    torch.testing.assert_close(short[row, : first + 1], exact[row, : first + 1], atol=1e-4, rtol=0)
    assert (short[row, first : len(completion) + 1] == short[row, first]).all()
    assert short[row, first] > 0
