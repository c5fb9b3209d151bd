"""Where a completion ends: at the end of a turn, as the template writes it, and where the model's files say."""

import json

import pytest
from builders import open_world
from chat_templates import OPEN, TURNS, chat, save, tokenizer_with

from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import eos_ids, load_model, load_skeleton, load_tokenizer, save_model, stop_ids
from iapo_bench.models.sources import fetch_model
from iapo_bench.worlds import TAGS
from iapo_bench.worlds.datasets.gsm8k import GSM8K


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (TURNS + OPEN, ["<|im_end|>"]),
        (TURNS.replace("<|im_end|>", "<end_of_turn>") + OPEN, ["<end_of_turn>"]),
        # no mark at the end, but one at the beginning of what follows
        (TURNS.replace("<|im_end|>\n", "").replace("<|im_start|>", "<|turn|>") + OPEN, ["<|turn|>"]),
        # the last turn ends in another way
        (
            "{% for m in messages %}{{ m.content }}{{ '<|return|>' if loop.last else '<end_of_turn>' }}{% endfor %}",
            ["<|return|>", "<end_of_turn>"],
        ),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", ["<|im_end|>"]),
        ("{{ messages[-1].content }}<end_of_turn>" + OPEN, ["<end_of_turn>"]),
        # neither white space nor a tag ends a turn, though it be a token of its own
        (TURNS.replace("<|im_end|>", "\t<end_of_turn>") + OPEN, ["<end_of_turn>"]),
        ("{% for m in messages %}## {{ m.role }}: {{ m.content }}\n{% endfor %}<think>", []),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(template, ends):
    dialogue = chat(template, "<end_of_turn>", "<|turn|>", "<|return|>", "\t", *TAGS)
    assert dialogue.tokenizer.convert_ids_to_tokens(list(dialogue.turn_ends)) == ends


def test_a_reply_needs_an_end():
    tokenizer = tokenizer_with("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="some-model: the tokenizer has no end-of-sequence token"):
        GSM8K().dialogue(tokenizer).check()


def test_an_end_of_turn_that_is_no_token_is_said():
    dialogue = chat(TURNS.replace("<|im_end|>", "<stop>").replace("<|im_start|>", "## ") + OPEN)
    assert dialogue.turn_ends == ()
    assert "a turn ends with '<stop>', which is no token" in dialogue.notes[-1]


def test_stops_are_every_end_of_sequence_and_the_end_of_turn(tmp_path, capsys):
    tokenizer = tokenizer_with(TURNS.replace("<|im_end|>", "<turn>") + OPEN, "<turn>", "<a>", "<b>", "<c>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<turn>", "<a>", "<b>", "<c>", "<|im_end|>")}
    path = save(tokenizer, tmp_path / "model", eos_token_id=ids["<a>"])
    generation = {"eos_token_id": [ids["<b>"], ids["<c>"], 10**6]}
    (path / "generation_config.json").write_text(json.dumps(generation))
    dialogue = open_world("gsm8k").dialogue(load_tokenizer(path))
    for model in (load_model(path), load_skeleton(path)):
        assert stop_ids(model, dialogue) == tuple(sorted(ids.values()))
        assert model.generation_config.eos_token_id == [ids["<b>"], ids["<c>"]]
        assert set(ids.values()) - set(eos_ids(model, dialogue.tokenizer)) == {ids["<turn>"]}
    warning = f"warning: {path}: generation_config.json ends a sequence with 1000000, which is no token of a vocabulary"
    assert capsys.readouterr().err.count(warning) == 2


@pytest.mark.parametrize(
    "content",
    [
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 258},
        {"num_beams": 1, "length_penalty": 2.0, "eos_token_id": 258},
        {"output_scores": True, "eos_token_id": 258},
        {"pad_token_id": -1, "eos_token_id": 258},
    ],
)
def test_a_generation_config_that_cannot_be_saved_is_mended_when_it_is_loaded(tmp_path, capsys, content):
    path = save(tokenizer_with(TURNS + OPEN), tmp_path / "model")
    (path / "generation_config.json").write_text(json.dumps(content))
    model, tokenizer = load_model(path), load_tokenizer(path)
    warning = capsys.readouterr().err
    assert f"warning: {path}: the generation config contradicts itself" in warning
    assert any(f"({name}" in warning for name in content)
    save_model(model, tokenizer, tmp_path / "saved")
    fetch_model(str(path), tmp_path / "fetched")
    for folder in ("saved", "fetched"):
        assert eos_ids(load_model(tmp_path / folder), tokenizer) == (258,)
        kept = json.loads((tmp_path / folder / "generation_config.json").read_text())
        assert not kept.keys() & (content.keys() - {"eos_token_id"})


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[1]", "null", "\udcff"),
        *('{"eos_token_id": "x"}', '{"eos_token_id": [[258]]}'),
        *('{"max_new_tokens": -1}', '{"watermarking_config": 3}', '{"num_return_sequences": 4}'),
    ],
)
def test_one_that_cannot_be_read_is_refused_before_the_weights_are(tmp_path, content):
    path = save(tokenizer_with(TURNS + OPEN), tmp_path / "model")
    (path / "generation_config.json").write_text(content, errors="surrogateescape")
    for load in (load_model, load_skeleton):
        with pytest.raises(UserError, match=r"generation_config.json.*(correct or remove|as UTF-8)") as error:
            load(path)
        assert "\n" not in str(error.value)
