"""Architectures: sizes that are facts, sources that name theirs, and random models of them."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.models.architectures import ARCHITECTURES, Architecture, build_random, qwen_config
from iapo_bench.models.checkpoints import build_micro, load_model, load_tokenizer
from iapo_bench.models.sources import fetch_model
from iapo_bench.plan.show import architecture

QWEN = {"qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-7b": 7_615_616_512}
SMALL = Architecture(32, 2, 4, 2, 64, 300, tied=True)


@pytest.mark.parametrize(("name", "parameters"), QWEN.items())
def test_the_table_of_architectures_has_the_published_sizes(name, parameters):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(qwen_config(name))
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert ARCHITECTURES[name].parameters == parameters


def test_smollm2_has_its_published_size():
    assert ARCHITECTURES["smollm2-135m"].parameters == 134_515_008


def test_the_micro_model_has_the_size_that_is_built(tokenizer):
    model = build_micro(tokenizer, hidden=64, layers=2, heads=4, seed=0)
    assert architecture(read_tier("smoke")).parameters == sum(weight.numel() for weight in model.parameters())


def test_sources_name_their_architecture(tmp_path):
    for tier, name in (("qwen-1.5b", "qwen2.5-1.5b"), ("smollm2", "smollm2-135m"), ("smoke-0.5b", "qwen2.5-0.5b")):
        assert architecture(read_tier(tier)) == ARCHITECTURES[name]
    (tmp_path / "config.json").write_text(json.dumps(qwen_config("qwen2.5-7b").to_dict()))
    assert architecture(read_tier("smollm2", {"model": {"source": str(tmp_path)}})) == ARCHITECTURES["qwen2.5-7b"]
    with pytest.raises(UserError, match="the sizes of nobody/nothing are not known"):
        architecture(read_tier("smollm2", {"model": {"source": "nobody/nothing"}}))


def test_a_random_model_is_whole_and_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "qwen2.5-0.5b", SMALL)
    assert fetch_model("random:qwen2.5-0.5b", tmp_path / "model") is None
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    assert model.get_input_embeddings().weight.shape == (300, 32)
    assert tokenizer.decode(tokenizer("2 + 2 = é").input_ids) == "2 + 2 = é"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith(
        "<|im_start|>user"
    )
    assert load_model(tmp_path / "model", dtype=torch.bfloat16).dtype == torch.bfloat16
    for left, right in zip(build_random("qwen2.5-0.5b").parameters(), model.parameters(), strict=True):
        assert torch.equal(left, right)
    with pytest.raises(UserError, match=r"unknown architecture 'qwen2.5-0.6b': did you mean 'qwen2.5-0.5b'"):
        fetch_model("random:qwen2.5-0.6b", tmp_path / "other")
    assert not (tmp_path / "other").exists()
