"""LoRA: the base to begin with, small matrices to train, a plain checkpoint at the end."""

import copy
import json

import pytest
import torch
from builders import ragged_batch
from test_signals import plain_statistics
from test_update import make_rollout
from transformers.pytorch_utils import Conv1D

from iapo_bench.config.lora import LoraConfig
from iapo_bench.config.train import TrainConfig
from iapo_bench.method import LossSpec, Signal
from iapo_bench.models.checkpoints import load_model, save_model
from iapo_bench.models.lora import (
    add_lora,
    load_trainable_state,
    merged_state,
    merged_weights,
    trainable_state,
    without_lora,
)
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.signals.statistics import compute_signals, token_statistics
from iapo_bench.train.optimizer import make_optimizer
from iapo_bench.train.update import backward, update

LORA = LoraConfig(rank=4, alpha=8.0)
STEP = TrainConfig(completions=8, max_tokens=9, lr=0.01, micro_batch_tokens=60)
IDS = torch.arange(3, 33)[None]
EVERY = frozenset({Signal.OLD_LOGP, Signal.TOKEN_ENTROPY, Signal.ANSWER_ENTROPY})


@pytest.fixture
def any_model(any_model):
    """Without GPT-2's dropout, so that two passes in training mode can be compared."""
    for module in any_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return any_model


def adapted(model, size: float = 0.3):
    """The model with adapters as training may leave them: B is no longer zero."""
    add_lora(model, LORA, seed=0)
    generator = torch.Generator().manual_seed(5)
    for name, weight in trainable_state(model).items():
        if ".lora_B." in name:
            weight.copy_(size * torch.randn(weight.shape, generator=generator))
    return model


def plain(model):
    """A model without adapters that has the merged weights."""
    other = type(model)(copy.deepcopy(model.config)).to(model.dtype)
    other.load_state_dict(dict(merged_weights(model)))
    return other.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def signals(model, reference=None):
    return compute_signals(
        model,
        ragged_batch(),
        EVERY,
        temperature=0.8,
        micro_batch_tokens=60,
        postfix_ids=[5, 6, 7],
        reference=reference,
    )


def train(model, steps: int = 3, optimizer=None) -> list[dict]:
    batch, credit = make_rollout()
    optimizer = optimizer or make_optimizer(model, STEP.lr)
    return [update(model, optimizer, batch, credit, LossSpec(), STEP) for _ in range(steps)]


def snapshot(state) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_starts_as_the_base(any_model, dtype):
    any_model.to(dtype)
    before, weights = logits(any_model), snapshot(any_model.state_dict())
    add_lora(any_model, LORA, seed=0)
    assert torch.equal(logits(any_model), before)
    assert any_model.dtype == dtype
    merged = dict(merged_weights(any_model))
    assert list(merged) == list(weights)
    assert all(torch.equal(merged[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_linear_layer_of_the_decoder_has_an_adapter_and_nothing_else_is_trained(any_model, dtype):
    any_model.to(dtype)
    decoder = any_model.get_decoder()
    names = {name for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    add_lora(any_model, LORA, seed=0)
    prefix = any_model.base_model_prefix
    expected = {f"{prefix}.{name}.lora_{part}.default.weight" for name in names for part in "AB"}
    state = trainable_state(any_model)
    assert state.keys() == expected
    assert {weight.dtype for weight in state.values()} == {torch.float32}
    assert all(min(weight.shape) == LORA.rank for weight in state.values())
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(any_model, LORA, seed=0)


def test_the_adapters_come_from_the_seed_and_from_nothing_else(model):
    first, second, other = (copy.deepcopy(model) for _ in range(3))
    torch.manual_seed(1)
    add_lora(first, LORA, seed=0)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    add_lora(second, LORA, seed=0)
    add_lora(other, LORA, seed=1)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)
    drawn = [trainable_state(m) for m in (first, second, other)]
    for name, weight in drawn[0].items():
        assert torch.equal(weight, drawn[1][name])
        assert torch.equal(weight, drawn[2][name]) == (".lora_B." in name)
        assert weight.any() == (".lora_A." in name)
    assert torch.equal(logits(first), logits(other))
    assert train(first) == train(second)
    train(other)
    assert torch.equal(logits(first), logits(second))
    assert not torch.allclose(logits(first), logits(other), atol=1e-4)


def test_the_merged_model_computes_the_same(any_model):
    base = logits(any_model)
    adapted(any_model)
    assert (logits(any_model) - base).abs().max() > 0.05
    torch.testing.assert_close(logits(plain(any_model)), logits(any_model), atol=1e-5, rtol=0)


def test_the_scale_is_alpha_over_rank(model):
    weight = model.get_decoder().layers[0].mlp.up_proj.weight.detach().clone()
    adapted(model)
    layer = model.get_decoder().layers[0].mlp.up_proj
    product = layer.lora_B["default"].weight.detach() @ layer.lora_A["default"].weight.detach()
    merged = dict(merged_weights(model))["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(merged, weight + 8 / 4 * product)


def test_in_bfloat16_the_sum_is_rounded_once(any_model):
    exact = copy.deepcopy(any_model).to(torch.bfloat16)
    adapted(exact, size=0.01)
    weights, wide = dict(merged_weights(exact)), copy.deepcopy(exact).float()
    for name, weight in merged_weights(wide):
        assert torch.equal(weights[name], weight.to(torch.bfloat16))
    assert any(not torch.equal(weights[name], w.to(torch.bfloat16)) for name, w in any_model.state_dict().items())
    torch.testing.assert_close(logits(plain(exact)), logits(exact), atol=0.05, rtol=0)


def test_without_it_the_base_is_back_bit_for_bit(any_model):
    base = logits(any_model)
    with without_lora(any_model):
        assert torch.equal(logits(any_model), base)
    adapted(any_model)
    changed, trained = logits(any_model), trainable_state(any_model).keys()
    with without_lora(any_model):
        with without_lora(any_model):
            pass
        assert torch.equal(logits(any_model), base)
    assert torch.equal(logits(any_model), changed)
    assert trainable_state(any_model).keys() == trained


def test_the_reference_of_a_kl_term_needs_no_second_model(any_model):
    base = copy.deepcopy(any_model)
    adapted(any_model)
    expected = signals(any_model, base)
    got = signals(any_model, any_model)
    assert torch.equal(got.ref_logp_BT, expected.ref_logp_BT)
    assert torch.equal(got.old_logp_BT, expected.old_logp_BT)
    assert not torch.allclose(expected.old_logp_BT, expected.ref_logp_BT, atol=1e-2)


def test_signals_are_those_of_the_merged_model(any_model):
    adapted(any_model)
    ours, theirs = signals(any_model), signals(plain(any_model))
    for signal in EVERY:
        torch.testing.assert_close(getattr(ours, signal.value), getattr(theirs, signal.value), atol=1e-5, rtol=0)
    batch = ragged_batch()
    logp, _ = plain_statistics(plain(any_model), batch, 0.8)
    torch.testing.assert_close(ours.old_logp_BT[batch.completion_mask_BT], logp.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engine_generates_with_the_adapters_on(any_model, dtype):
    adapted(any_model.to(dtype))
    sampling = Sampling(max_tokens=12, eos_ids=(1,), samples_per_prompt=3, temperature=1.0, seed=4)
    prompts = [[7, 20, 8, 23, 25], [9, 20, 10], [13, 21, 7, 8, 9, 10]]
    ours = TransformersEngine(any_model, batch_size=4).generate(prompts, sampling)
    if dtype == torch.float32:
        theirs = TransformersEngine(plain(any_model), batch_size=4).generate(prompts, sampling)
        assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    with without_lora(any_model):
        base = TransformersEngine(any_model, batch_size=4).generate(prompts, sampling)
    assert [c.token_ids for c in ours] != [c.token_ids for c in base]
    assert train(any_model, steps=1)[0]["grad_norm"] > 0, "generation must not leave weights that cannot be trained"


def test_gradients_reach_the_adapters_alone_and_are_those_of_the_merged_weights(any_model):
    """d/dA = s B' G and d/dB = s G A', where G is the gradient of the whole weight."""
    adapted(any_model)
    merged = plain(any_model)
    batch = ragged_batch()
    for model in (any_model, merged):
        logp, entropy = token_statistics(model, batch, temperature=0.8, entropy=True)
        (torch.linspace(-1, 1, len(logp)) * logp + 0.1 * entropy).sum().backward()
    whole = dict(merged.named_parameters())
    state = trainable_state(any_model)
    for name, weight in any_model.named_parameters():
        assert (weight.grad is not None) == (name in state), name
        if ".lora_A." in name:
            path = name.partition(".lora_A.")[0]
            gradient = whole[f"{path}.weight"].grad
            if isinstance(merged.get_submodule(path), Conv1D):
                gradient = gradient.T
            b = state[f"{path}.lora_B.default.weight"]
            torch.testing.assert_close(weight.grad, 2 * b.T @ gradient, atol=1e-4, rtol=1e-4)
            got = dict(any_model.named_parameters())[f"{path}.lora_B.default.weight"].grad
            torch.testing.assert_close(got, 2 * gradient @ state[name].T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_moves_the_adapters_alone_and_keeps_nothing_for_frozen_weights(any_model, dtype):
    add_lora(any_model.to(dtype), LORA, seed=0)
    before, state = snapshot(any_model.state_dict()), trainable_state(any_model)
    optimizer = make_optimizer(any_model, STEP.lr)
    rows = train(any_model, optimizer=optimizer)
    assert all(0 < row["grad_norm"] < 1e3 for row in rows)
    for name, weight in any_model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in state), name
    kept = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert {weight.data_ptr() for weight in kept} == {weight.data_ptr() for weight in state.values()}
    moments = [value for entry in optimizer.state.values() for value in entry.values() if value.ndim]
    assert sum(map(torch.numel, moments)) == 2 * sum(map(torch.numel, state.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_a_plain_checkpoint(any_model, tmp_path, dtype):
    plain_files = tmp_path / "plain"
    any_model.to(dtype).save_pretrained(plain_files)
    add_lora(any_model, LORA, seed=0)
    train(any_model)
    any_model.save_pretrained(tmp_path / "model", state_dict=merged_state(any_model))
    loaded = load_model(tmp_path / "model", dtype=dtype)
    expected = dict(merged_weights(any_model))
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())
    if dtype == torch.float32:
        torch.testing.assert_close(logits(loaded), logits(any_model.eval()), atol=1e-5, rtol=0)
    for file in plain_files.iterdir():
        ours = tmp_path / "model" / file.name
        if file.suffix == ".json":
            assert ours.read_text() == file.read_text()
        else:
            assert ours.stat().st_size == file.stat().st_size, "a tied weight is written once"
    assert len(list((tmp_path / "model").iterdir())) == len(list(plain_files.iterdir()))


def test_merging_makes_one_weight_at_a_time(model):
    """The rest is the model's own: vLLM takes a weight and is done with it."""
    adapted(model)
    own = {weight.data_ptr() for weight in model.state_dict().values()}
    for name, weight in merged_weights(model):
        assert (weight.data_ptr() in own) == ("proj" not in name)
        assert not weight.requires_grad
    tied = dict(merged_weights(model))
    assert tied["lm_head.weight"].data_ptr() == tied["model.embed_tokens.weight"].data_ptr()


def test_a_resumed_run_is_the_same_run_from_the_adapters_alone(any_model, tmp_path):
    def fresh():
        network = copy.deepcopy(any_model)
        add_lora(network, LORA, seed=0)
        return network, make_optimizer(network, STEP.lr)

    whole, optimizer = fresh()
    train(whole, 4, optimizer)
    stopped, optimizer = fresh()
    train(stopped, 2, optimizer)
    torch.save([trainable_state(stopped), optimizer.state_dict()], tmp_path / "state.pt")
    assert len(trainable_state(stopped)) < len(stopped.state_dict())
    resumed, optimizer = fresh()
    weights, moments = torch.load(tmp_path / "state.pt", weights_only=True)
    load_trainable_state(resumed, weights)
    optimizer.load_state_dict(moments)
    train(resumed, 2, optimizer)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_of_another_model_is_refused(model):
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match="another model"):
        load_trainable_state(adapted(model), trainable_state(other))
    add_lora(other, LORA.model_copy(update={"rank": 1}), seed=0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_trainable_state(model, trainable_state(other))


def test_gradient_checkpointing_changes_nothing(any_model):
    adapted(any_model)
    batch, credit = make_rollout()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            any_model.gradient_checkpointing_enable({"use_reentrant": False})
        any_model.train().zero_grad()
        backward(any_model, batch, credit, LossSpec(), temperature=1.0, micro_batch_tokens=60)
        gradients.append([w.grad.clone() for w in any_model.parameters() if w.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    signals(any_model)
    TransformersEngine(any_model).generate([[7, 20, 8]], Sampling(max_tokens=4, eos_ids=(1,), seed=0))
    assert train(any_model, steps=1)[0]["grad_norm"] > 0


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
