"""Every causal architecture that transformers can build small: followed exactly, or refused in one line."""

import contextlib
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from iapo_bench.errors import UserError
from iapo_bench.informativeness import answer_entropies
from iapo_bench.models.checkpoints import disable_dropout
from iapo_bench.rollout import Completion, Sampling
from iapo_bench.rollout.collate import collate
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.signals.statistics import token_statistics

WINDOW = 8
SMALL = {
    **dict.fromkeys(("vocab_size",), 48),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"), 128),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **{"num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True},
}
WINDOWS = {"sliding_window": WINDOW, "attention_chunk_size": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
# Fields that must fit the others.
_LATENT = {
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **{"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
}
_LATENT["qk_head_dim"] = 16
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_state": 8}
_CHUNKED = {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]}
ALSO = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bamba": _MAMBA,
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "diffllama": {"attention_dropout": 0.0},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {
        **{"layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0]},
        **{"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 8},
    },
    "glm4_moe_lite": _LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "intermediate_size": 48},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "kimi_linear": {"num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": _CHUNKED,
    "longcat_flash": {**_LATENT, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 2, "state_size": 8},
    "minicpm3": _LATENT,
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 4},
    "xlm": {"emb_dim": 32},
    "youtu": _LATENT,
    "zaya": {"num_experts_per_tok": 1},
}


def small_config(kind: str):
    """A configuration of a few thousand weights, windows of 8 tokens, and every dropout at .3."""
    cls = CONFIG_MAPPING[kind]
    return cls(**_fields(cls()) | ALSO.get(kind, {}))


def _fields(config) -> dict:
    stated = config.to_dict()
    fields = {name: value for name, value in SMALL.items() if stated.get(name) is not None}
    fields |= {name: value for name, value in WINDOWS.items() if name in stated}
    fields |= {name: 0.3 for name, value in stated.items() if "drop" in name and isinstance(value, float)}
    for part in getattr(config, "sub_configs", {}):
        inner = getattr(config, part, None)
        if inner is not None and not isinstance(inner, dict):
            fields[part] = {**inner.to_dict(), **_fields(inner)}
            for lists in ("layer_types", "mlp_layer_types", "no_rope_layers"):
                fields[part].pop(lists, None)
            fields[part] |= ALSO.get(fields[part].get("model_type", ""), {})
    return fields


def build(kind: str) -> PreTrainedModel | None:
    """The model, its distributions far from uniform; None where transformers cannot build it small."""
    torch.manual_seed(7)
    with contextlib.suppress(Exception):
        config = small_config(kind)
        with torch.device("meta"):
            if AutoModelForCausalLM.from_config(config).num_parameters() > 4_000_000:
                return None
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6)
        ids = torch.arange(3, 25)[None]
        if bool(model.eval()(input_ids=ids, use_cache=False).logits.isfinite().all()):
            return model
    return None


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(3, 48, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def own_logp(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float(), -1)


def check_engine(model: PreTrainedModel, prompt: int, length: int) -> None:
    prompts = [ids(prompt, 1), ids(prompt + 2, 2)]
    sampling = Sampling(max_tokens=length, eos_ids=(), samples_per_prompt=2, seed=3)
    for i, completion in enumerate(TransformersEngine(model, batch_size=3).generate(prompts, sampling)):
        own = own_logp(model, prompts[i // 2] + list(completion.token_ids))[len(prompts[i // 2]) - 1 : -1]
        expected = own.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=2e-3, rtol=0)


def check_entropies(model: PreTrainedModel, prompt: int, length: int, implementation: str) -> None:
    batch, postfix = rollout(prompt, length), [4, 5, 6]
    ours = answer_entropies(
        model,
        *(batch.prompt_ids_BP, batch.prompt_mask_BP.long(), batch.completion_ids_BT, batch.completion_mask_BT.long()),
        torch.tensor(postfix),
        implementation=implementation,
    )
    for row in range(2):
        tokens = batch.prompt_ids_BP[row][batch.prompt_mask_BP[row]].tolist()
        for t in range(int(batch.lengths_B[row]) + 1):
            logp = own_logp(model, tokens + batch.completion_ids_BT[row][:t].tolist() + postfix)[-1]
            assert abs(float(ours[row, t]) + float((logp.exp() * logp).sum())) < 2e-3


def check_statistics(model: PreTrainedModel, prompt: int, length: int) -> None:
    """What the trainer differentiates, twice in training mode: dropout would show."""
    disable_dropout(model)
    batch = rollout(prompt, length)
    model.train()
    logp, again = (token_statistics(model, batch, temperature=1.0, entropy=False)[0].detach() for _ in range(2))
    model.eval()
    assert torch.equal(logp, again)
    expected = []
    for row in range(len(batch.rewards_B)):
        tokens = batch.prompt_ids_BP[row][batch.prompt_mask_BP[row]].tolist()
        completion = batch.completion_ids_BT[row][batch.completion_mask_BT[row]]
        own = own_logp(model, tokens + completion.tolist())[len(tokens) - 1 : -1]
        expected.append(own.gather(1, completion[:, None])[:, 0])
    torch.testing.assert_close(logp, torch.cat(expected), atol=2e-3, rtol=0)


def rollout(prompt: int, length: int):
    completions = [Completion(tuple(ids(n, n)), (-1.0,) * n, "stop") for n in (length, length - 2)]
    return collate([ids(prompt, 5)], completions, [True, False], [True] * 2, group_size=2, max_tokens=99, pad_id=0)


CHECKS = {
    "engine": check_engine,
    "shared_kv": lambda *a: check_entropies(*a, "shared_kv"),
    "kv_replicated": lambda *a: check_entropies(*a, "kv_replicated"),
    "naive": lambda *a: check_entropies(*a, "naive"),
    "statistics": check_statistics,
}


def outcome(check, model: PreTrainedModel, prompt: int, length: int) -> str:
    """ "exact", or the line of the refusal."""
    try:
        check(model, prompt, length)
    except UserError as refusal:
        line = str(refusal)
    else:
        return "exact"
    assert "\n" not in line
    return line


# What people train must stay exact below its window: a refusal of these would be a fault of ours.
FOLLOWED = (
    *("llama", "llama4_text", "qwen2", "qwen3", "mistral", "mixtral", "phi3", "starcoder2", "gemma", "gemma3", "olmo2"),
    "gpt2",
)


@pytest.mark.slow
def test_every_architecture_is_followed_exactly_or_refused():
    exact, built = set(), 0
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if (model := build(kind)) is None:
            continue
        built += 1
        # Within the windows of 8 tokens, and beyond.
        for prompt, length in ((2, 3), (6, 7)):
            for name, check in CHECKS.items():
                if outcome(check, model, prompt, length) == "exact":
                    exact.add((kind, length, name))
    assert built > 140, "transformers builds fewer architectures than it did"
    for kind in FOLLOWED:
        assert {name for name in CHECKS if (kind, 3, name) in exact} == set(CHECKS), kind


@pytest.mark.parametrize("kind", ["mistral", "mixtral", "phi3", "starcoder2", "gemma3", "llama4_text"])
def test_beyond_a_window_there_is_a_refusal(kind):
    model = build(kind)
    for name in ("engine", "shared_kv", "kv_replicated"):
        assert outcome(CHECKS[name], model, 2, 3) == "exact"
        assert "an attention window of 8 tokens" in outcome(CHECKS[name], model, 6, 7)
    assert outcome(CHECKS["naive"], model, 6, 7) == "exact"


@pytest.mark.parametrize("kind", ["mpt", "bloom", "gpt_oss", "granite", "xlnet", "mamba", "qwen3_next"])
def test_other_attention_is_exact_or_refused(kind):
    model = build(kind)
    assert model is not None
    for check in CHECKS.values():
        outcome(check, model, 6, 7)
