# ruff: noqa: F811
"""Dropout is off: RL updates the policy that sampled, which had none."""

import json

import torch
from builders import ragged_batch
from test_informativeness import build
from test_trainer import make_trainer, untimed  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM, PhimoeConfig, PhimoeForCausalLM

from iapo_bench.models.checkpoints import build_micro, disable_dropout, load_model, save_model
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.signals.statistics import token_statistics


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
