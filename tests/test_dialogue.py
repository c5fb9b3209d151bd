"""Prompts: a chat template carries the whole prompt or is refused; completions keep their tags."""

import json
import re

import pandas as pd
import pytest
from builders import PERFECT, open_world, perfect_base
from chat_templates import CARRIED, OPEN, REFUSED, TURNS, chat, save, tokenizer_with

from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import identity
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.evaluate.sample import sample
from iapo_bench.models.checkpoints import load_tokenizer
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


def test_a_base_is_not_made_of_a_model_that_cannot_be_asked(tmp_path):
    source = save(tokenizer_with(REFUSED["closes the reasoning"][0]), tmp_path / "source")
    changes = {"model": {"source": str(source), "sft": None}, "world": {"data_dir": str(tmp_path)}}
    with pytest.raises(UserError, match="closes the reasoning"):
        make_base(read_tier("smollm2", changes).base_job(), tmp_path / "base")
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
