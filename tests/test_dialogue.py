"""Prompts and stops: a chat template carries the whole prompt or is refused; completions keep their tags."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from builders import PERFECT, open_world, perfect_base
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from iapo_bench.cli import main
from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import identity
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate.sample import sample
from iapo_bench.models.checkpoints import eos_ids, load_model, load_skeleton, load_tokenizer, save_model, stop_ids
from iapo_bench.models.sources import _byte_tokenizer, fetch_model
from iapo_bench.rollout.prompts import encode
from iapo_bench.train.base import make_base
from iapo_bench.train.run import train
from iapo_bench.worlds import TAGS, Problem
from iapo_bench.worlds.datasets.gsm8k import GSM8K
from iapo_bench.worlds.dialogue import Dialogue, completion_texts
from iapo_bench.worlds.grading import is_formatted

REASONING = "Two and two more make four: 2 + 2 = 4."
QUESTION = "How many legs have three cats?"
REPLY = "<think> 3 * 4 = 12 </think> <answer> 12 </answer>"

# Each kind of template by what is odd about it, in its shortest form. `{turns}` are plain turns.
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
STRIPPED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
SWITCHED = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)
CARRIED = {
    "plain": TURNS + OPEN,
    "drops reasoning": STRIPPED + OPEN,
    "drops reasoning and opens it": STRIPPED + OPEN.replace("assistant\n", "assistant\n<think>\n"),
    "opens the reasoning without a line break": TURNS + OPEN.replace("assistant\n", "assistant\n<think>"),
    "always opens the reasoning": TURNS + "<|im_start|>assistant\n<think>\n",
    "refuses a system message": NO_SYSTEM + TURNS + OPEN,
    "wants turns to alternate": ALTERNATING + TURNS + OPEN,
    "drops a system message silently": TURNS.replace("in messages", "in messages if m.role != 'system'") + OPEN,
    "says the system text with the last question": (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + OPEN
    ),
    "reads the last message only": "<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n" + OPEN,
    "puts an empty reasoning before each reply": (
        TURNS.replace("{{ m.content }}", "{{ '<think>\n</think>' if m.role == 'assistant' }}{{ m.content }}") + OPEN
    ),
    "closes the reasoning unless it is switched on": TURNS + SWITCHED,
    "the same by another name": TURNS + SWITCHED.replace("enable_thinking", "thinking"),
    "never opens the assistant's turn": TURNS,
    "fails without add_generation_prompt": TURNS
    + "{{ raise_exception('x') if add_generation_prompt is undefined }}"
    + OPEN,
    "takes a part of the tags for a switch": (
        TURNS.replace("m.content", "(m.content.replace('/think', '') if m.role != 'assistant' else m.content)") + OPEN
    ),
    "trims": TURNS.replace("m.content", "m.content | trim") + OPEN,
    "has lists of parts only": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content if part.type == 'text' %}"
        "{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}" + OPEN
    ),
    "changes white space": TURNS.replace("m.content", "m.content.split() | join(' ')") + OPEN,
    "adds the date": "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y') }}.<|im_end|>\n" + TURNS + OPEN,
    "adds a system text where there is none": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + TURNS + OPEN
    ),
    "begins with the beginning of a sequence": "{{ bos_token }}" + TURNS + OPEN,
}
REFUSED = {
    "closes the reasoning": (
        TURNS + OPEN.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
        "closes the reas",
    ),
    "is no template": (TURNS + "{% if %}", "Expected an expression"),
    "leaves the question out": ("<|im_start|>{{ messages[0].role }}" + OPEN, "leaves out the"),
    "escapes": (TURNS.replace("m.content", "m.content | e") + OPEN, "leaves out the"),
    "drops backslashes": (TURNS.replace("m.content", "m.content | replace('\\\\', '')") + OPEN, "leaves out the"),
    "keeps a paragraph": (TURNS.replace("m.content", "m.content.split('\n\n')[-1]") + OPEN, "leaves out the"),
    "raises always": ("{{ raise_exception('tools only') }}", "tools only"),
}


def tokenizer_with(template: str | None, *special: str) -> PreTrainedTokenizerBase:
    tokenizer = _byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": list(special)})
    tokenizer.chat_template = template
    tokenizer.name_or_path = "some-model"
    return tokenizer


def chat(template: str, *special: str, prompt: PromptConfig | None = None) -> Dialogue:
    return open_world("gsm8k").dialogue(tokenizer_with(template, *special), prompt)


def save(tokenizer: PreTrainedTokenizerBase, folder: Path, **config: object) -> Path:
    """A model of some thousand weights with that tokenizer."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, **size, **ids, **config}
    save_model(LlamaForCausalLM(LlamaConfig(**options)), tokenizer, folder)
    return folder


@pytest.mark.parametrize("special", [(), TAGS], ids=["tags are text", "tags are special tokens"])
@pytest.mark.parametrize("kind", CARRIED)
def test_a_template_carries_the_whole_prompt_and_a_perfect_completion_is_read_as_one(kind, special):
    dialogue = chat(CARRIED[kind], *special)
    dialogue.check()
    text = dialogue.tokenizer.decode(dialogue.encode(QUESTION))
    assert text == dialogue.render(QUESTION)
    assert (
        text.count("Solve the problem that the user gives you.") == text.count(REASONING) == text.count(QUESTION) == 1
    )
    assert f"<think> {REASONING} </think> <answer> 4 </answer>" in text
    opened = "<|im_start|>assistant\n" + dialogue.prefill
    assert text.endswith(opened)
    assert dialogue.prefill.strip() in ("", "<think>")
    # The format's form in the system text, the worked example's reasoning, and the prefill, however it came about.
    assert text.count("<think>") == 2 + bool(dialogue.prefill)
    assert text.count("</think>") == 2
    completion = dialogue.encode_reply(REPLY)
    assert completion[-1] == dialogue.tokenizer.convert_tokens_to_ids("<|im_end|>")
    (read,) = completion_texts([completion], dialogue.tokenizer, stop_ids=completion[-1:], prefill=dialogue.prefill)
    assert is_formatted(read)
    assert read.split() == REPLY.split()
    assert not re.search(r"<think>\s\s", read)


def test_the_plain_conversation_is_kept_where_it_passes():
    dialogue = chat(CARRIED["plain"])
    tokenizer = dialogue.tokenizer
    assert dialogue.notes == ()
    system, question, reply = re.findall(r"<\|im_start\|>\w+\n(.*?)<\|im_end\|>", dialogue.render(QUESTION), re.DOTALL)[
        :3
    ]
    messages = [("system", system), ("user", question), ("assistant", reply), ("user", QUESTION)]
    chat_ids = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert dialogue.encode(QUESTION) == chat_ids
    assert question == "What is 2+2?"
    assert open_world("gsm8k").encode_prompt(Problem("p", QUESTION, "12"), tokenizer) == chat_ids


@pytest.mark.parametrize("kind", REFUSED)
def test_a_template_that_cannot_carry_it_is_refused_in_one_line(kind):
    template, reason = REFUSED[kind]
    with pytest.raises(UserError, match=r"^some-model: the chat template cannot carry this prompt \(") as error:
        chat(template)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert "prompt: FILE.jinja" in str(error.value)


def test_a_tokenizer_without_a_template_takes_one_from_the_settings(tmp_path):
    tokenizer = tokenizer_with(None)
    with pytest.raises(UserError, match="has no chat template"):
        open_world("gsm8k").dialogue(tokenizer)
    (tmp_path / "mine.jinja").write_text("{{ system }}\n\nQ: {{ question }} {{ instruction }}\nA: <think>")
    tier = read_tier("smollm2", {"prompt": str(tmp_path / "mine.jinja")})
    (tmp_path / "mine.jinja").unlink()  # its text was read, not its place
    dialogue = open_world("gsm8k").dialogue(tokenizer, tier.prompt)
    dialogue.check()
    text = dialogue.render(QUESTION)
    assert text.startswith("Solve the problem")
    assert text.endswith(f"\n\nQ: {QUESTION} \nA: <think>")
    assert dialogue.prefill == "<think>"
    assert dialogue.turn_ends == ()
    chat_model = GSM8K().dialogue(tokenizer_with(CARRIED["plain"]), tier.prompt)
    assert chat_model.render(QUESTION) == text
    assert chat_model.tokenizer.convert_ids_to_tokens(list(chat_model.turn_ends)) == ["<|im_end|>"]
    with pytest.raises(UserError, match=r"^the template in `prompt` cannot be used \(it leaves out the question\)"):
        GSM8K().dialogue(tokenizer, PromptConfig(template="{{ system }}"))


def test_a_date_is_the_same_every_day():
    assert "Today is 01 January 2025." in chat(CARRIED["adds the date"]).render(QUESTION)


def test_the_beginning_of_a_sequence_is_written_once():
    dialogue = chat(CARRIED["begins with the beginning of a sequence"])
    assert dialogue.encode(QUESTION).count(dialogue.tokenizer.bos_token_id) == 1


def test_parts_of_the_prompt_can_be_set():
    parts = {
        "system": "Answer briefly.",
        "example": {"question": "1+1?", "reply": "<think> two </think> <answer> 2 </answer>"},
        "instruction": "Think step by step.",
    }
    tier = read_tier("smollm2", {"prompt": parts})
    text = chat(CARRIED["plain"], prompt=tier.prompt).render(QUESTION)
    assert text == (
        "<|im_start|>system\nAnswer briefly.<|im_end|>\n"
        "<|im_start|>user\n1+1?\n\nThink step by step.<|im_end|>\n"
        "<|im_start|>assistant\n<think> two </think> <answer> 2 </answer><|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}\n\nThink step by step.<|im_end|>\n<|im_start|>assistant\n"
    )
    bare = chat(CARRIED["plain"], prompt=PromptConfig(system="", example="")).render(QUESTION)
    assert bare == f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    again = read_tier("smollm2", {"prompt": json.loads(json.dumps(tier.prompt.model_dump(mode="json")))})
    assert again.prompt == tier.prompt
    jobs = [read_tier("smollm2", {"prompt": p}).train_job("grpo", 0) for p in ({}, parts)]
    assert identity(jobs[0]) != identity(jobs[1])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("nowhere.jinja", "nowhere.jinja does not exist: give the path of"),
        ({"sytem": "x"}, "unknown key 'sytem'"),
        ({"example": {"question": "1+1?"}}, "prompt.example"),
    ],
)
def test_a_wrong_prompt_is_one_line(prompt, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_tier("smollm2", {"prompt": prompt})
    assert "\n" not in str(error.value)


def test_micro_has_no_prompt_to_change(world, tokenizer):
    with pytest.raises(UserError, match="leave 'prompt' out"):
        world.dialogue(tokenizer, PromptConfig(instruction="Please."))


def test_a_completion_ends_before_its_stop_and_keeps_tags_that_are_special():
    tokenizer = tokenizer_with(None, *TAGS)
    tokenizer.add_tokens(["[END]"])  # an ordinary token
    end = tokenizer.convert_tokens_to_ids("[END]")
    ids = tokenizer("<s><think> a </think> <answer> 1 </answer>[END]<|endoftext|><|endoftext|>").input_ids
    whole = "<think> a </think> <answer> 1 </answer>"
    assert completion_texts([ids, ids[:3]], tokenizer, stop_ids=[end]) == [whole, "<think> "]
    assert completion_texts([ids], tokenizer) == [whole + "[END]"]
    assert completion_texts([ids[2:]], tokenizer, stop_ids=[end], prefill="<think>") == [whole]
    assert completion_texts([], tokenizer) == []


def test_without_special_tags_the_text_is_what_the_tokenizer_decodes(world, tokenizer):
    rows = [tokenizer(trace).input_ids for _, trace in world.traces(20)]
    assert completion_texts(rows, tokenizer, stop_ids=[1]) == tokenizer.batch_decode(rows, skip_special_tokens=True)


def test_a_tokenizer_that_cannot_write_the_tags_is_refused(tokenizer):
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", unk_token="<unk>")
    tokenizer.add_special_tokens({"extra_special_tokens": []})
    dialogue = Dialogue(tokenizer, render=str)
    dialogue.check()
    with pytest.raises(UserError, match="a perfect completion would decode to"):
        Dialogue(tokenizer, render=str, prefill="<think>\n<think>\n").check()


# Stops


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


# Generation configs


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


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused(tmp_path):
    tokenizer = tokenizer_with(TURNS.replace("<|im_end|>", "<turn>") + OPEN, "<turn>")
    path = save(tokenizer, tmp_path / "model", vocab_size=tokenizer.convert_tokens_to_ids("<turn>"))
    with pytest.raises(UserError, match=r"token id 260 \('<turn>'\) but the weights have 260 embeddings"):
        encode([Problem("p", QUESTION, "12")], GSM8K().dialogue(tokenizer), path, 16)


def test_a_question_with_the_text_of_a_special_token_is_refused(tmp_path):
    path = save(tokenizer_with(TURNS + OPEN), tmp_path / "model")
    dialogue = GSM8K().dialogue(load_tokenizer(path))
    assert encode([Problem("p", "Is 1 < s > 2?", "12")], dialogue, path, 16)
    with pytest.raises(UserError, match="problem 'p' contains '<s>', a special token of the model"):
        encode([Problem("p", "What does <s> mean?", "12")], dialogue, path, 16)


# The commands


def gsm8k_tier(tmp_path: Path, source: Path) -> dict:
    return {"model": {"source": str(source), "sft": None}, "world": {"data_dir": str(tmp_path)}}


def test_a_base_is_not_made_of_a_model_that_cannot_be_asked(tmp_path):
    source = save(tokenizer_with(REFUSED["closes the reasoning"][0]), tmp_path / "source")
    with pytest.raises(UserError, match="closes the reasoning"):
        make_base(read_tier("smollm2", gsm8k_tier(tmp_path, source)).base_job(), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_perfect_base_is_trained_and_sampled_as_one(tmp_path):
    tier = perfect_base(tmp_path)
    train(tier.train_job("grpo", 0), base=tmp_path / "base", data=tmp_path / "data", out=tmp_path / "run")
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines())
    assert (row["correct"], row["formatted"], row["truncated"]) == (1, 1, 0)
    sample(tier.sample_job("test"), model=tmp_path / "base", data=tmp_path / "data", out=tmp_path)
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    assert samples["text"].tolist() == ["<think>\n" + PERFECT] * 3
    assert set(samples["finish_reason"]) == {"stop"}
    assert set(samples["n_tokens"]) == {len(load_tokenizer(tmp_path / "base")(PERFECT).input_ids) + 1}


def doctor(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `iapo-bench doctor`."""
    monkeypatch.setattr(sys, "argv", ["iapo-bench", "doctor", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("kind", ["drops reasoning and opens it", "refuses a system message"])
def test_doctor_shows_prompt_stops_and_verdict(tmp_path, monkeypatch, capsys, kind):
    path = save(tokenizer_with(CARRIED[kind], *TAGS), tmp_path / "model")
    code, out, _ = doctor(monkeypatch, capsys, "--model", path, "--dataset", "gsm8k")
    assert code == 0
    dialogue = open_world("gsm8k").dialogue(load_tokenizer(path))
    assert len(dialogue.notes) == 1
    question = re.search(r"A shelf holds .*\?", out)[0]
    assert dialogue.render(question) in out
    assert all(note in out for note in dialogue.notes)
    assert "258 <|im_end|>" in out
    assert re.search(r"graded +CORRECT", out)
    assert re.search(r"well formed +yes", out)


def test_doctor_refuses_what_a_run_refuses(tmp_path, monkeypatch, capsys):
    path = save(tokenizer_with(REFUSED["closes the reasoning"][0]), tmp_path / "model")
    code, out, err = doctor(monkeypatch, capsys, "--model", path, "--dataset", "gsm8k")
    assert (code, out) == (2, "")
    assert err.count("iapo-bench: ") == 1
    assert re.search(r"iapo-bench: [^\n]*closes the reasoning[^\n]*\n$", err)
    assert doctor(monkeypatch, capsys, "--model", path, "--dataset", "gms8k")[0] == 2
    assert doctor(monkeypatch, capsys, "--dataset", "gsm8k")[0] == 2


def test_doctor_fails_where_a_perfect_completion_would_not_be_right(tmp_path, monkeypatch, capsys, tokenizer):
    """The micro vocabulary has no word for 42."""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <eos> {% endfor %}"
    path = save(tokenizer, tmp_path / "model")
    tokenizer.chat_template = None
    code, out, _ = doctor(monkeypatch, capsys, "--model", path, "--dataset", "gsm8k")
    assert code == 1
    assert not re.search(r"graded +CORRECT", out)


def test_doctor_knows_micro(tmp_path, monkeypatch, capsys, tokenizer):
    path = save(tokenizer, tmp_path / "model")
    code, out, _ = doctor(monkeypatch, capsys, "--model", path)
    assert code == 0
    assert re.search(r"stops +1 <eos>", out)
    assert "the bare question: no chat template is used" in out


def test_doctor_knows_a_file_of_problems(tmp_path, monkeypatch, capsys, tokenizer):
    """Although the default tier's model answers only the micro world."""
    path = save(tokenizer_with(CARRIED["drops reasoning and opens it"], *TAGS), tmp_path / "model")
    rows = [{"question": f"What is {i} + 1?", "answer": i + 1} for i in range(12)]
    (tmp_path / "mine.csv").write_text(
        "\n".join(["question,answer", *(f"{r['question']},{r['answer']}" for r in rows)])
    )
    code, out, err = doctor(monkeypatch, capsys, "--model", path, "--set", f"world.file={tmp_path / 'mine.csv'}")
    assert code == 0, err
    assert f"{path} on mine" in out
    assert re.search(r"What is \d+ \+ 1\?", out)
    assert re.search(r"graded +CORRECT", out)
