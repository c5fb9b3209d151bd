"""Transcripts in, a table and a page out: values against the definition, mistakes, and what a page may hold."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from iapo_bench.models.checkpoints import save_model
from iapo_bench.models.token_texts import token_texts
from iapo_bench.signals.informativeness import answer_entropies
from iapo_bench.tokens.heatmap import ScoredTranscript, background, colour_scale, concentration, heatmap_page, visible
from iapo_bench.worlds import POSTFIX
from iapo_bench.worlds.datasets.micro import token_roles

ROWS = [
    {
        "id": "checked",
        "prompt": "7 + 8 = ?",
        "completion": "<think> so 7 + 8 = 1 5 ; check 7 + 8 = 1 5 ok ; we have 1 5 ; </think> <answer> 1 5 <eos>",
        "correct": True,
    },
    {"prompt": "3 * 3 - 4 = ?", "completion": "<think> 3 * 3 = 9 ;", "correct": False},
    {"prompt": "9 - 1 = ?", "completion": "8"},
]


@pytest.fixture
def run(run):
    return partial(run, "informativeness")


@pytest.fixture
def saved(model, tokenizer, tmp_path) -> Path:
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def written(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_table_holds_what_the_model_says(run, model, tokenizer, saved, tmp_path):
    """Entropies against one full forward a prefix, the rest against a plain forward of each transcript alone."""
    path = written(tmp_path / "in.jsonl", ROWS)
    code, printed = run("--model", saved, "--input", path, "--out", tmp_path / "out", "--temperature", 0.8)
    assert code == 0, printed
    table = pd.read_parquet(tmp_path / "out" / "tokens.parquet")
    assert table["transcript"].unique().tolist() == ["checked", "2", "3"]
    postfix = torch.tensor(tokenizer(POSTFIX, add_special_tokens=False).input_ids)
    for row, (_, part) in zip(ROWS, table.groupby("transcript", sort=False), strict=True):
        prompt, completion = (torch.tensor([tokenizer(row[key]).input_ids]) for key in ("prompt", "completion"))
        T = completion.shape[1]
        masks = [torch.ones_like(ids, dtype=torch.bool) for ids in (prompt, completion)]
        naive = answer_entropies(
            model, prompt, masks[0], completion, masks[1], postfix, temperature=0.8, implementation="naive"
        )[0]
        with torch.no_grad():
            logits = model(torch.cat([prompt, completion], dim=1)).logits[0, prompt.shape[1] - 1 : -1] / 0.8
        expected = torch.distributions.Categorical(logits=logits)
        columns = {
            "logp": expected.log_prob(completion[0]),
            "entropy": expected.entropy(),
            "answer_entropy_before": naive[:-1],
            "answer_entropy_after": naive[1:],
            "information": naive[:-1] - naive[1:],
        }
        for name, values in columns.items():
            torch.testing.assert_close(torch.tensor(part[name].to_numpy()).float(), values, atol=1e-5, rtol=1e-5)
        assert part["position"].tolist() == list(range(T))
        assert part["token_id"].tolist() == completion[0].tolist()
        assert "".join(part["token"]) == row["completion"]
        words = row["completion"].split()
        assert part["role"].tolist() == [role.value for role in token_roles(words)]
        first, last = part["answer_entropy_before"].iloc[0], part["answer_entropy_after"].iloc[-1]
        assert part["information"].sum() == pytest.approx(first - last, abs=1e-9)
    assert set(table["role"]) == {"needed", "filler", "check", "restatement"}
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["config"] == {"postfix": POSTFIX, "temperature": 0.8, "limit": None}
    assert str(path) in provenance["inputs"]
    assert provenance["tokens"] == len(table)


def test_ids_and_text_agree_and_the_limit_counts_transcripts(run, tokenizer, saved, tmp_path):
    ids = [{f"{key}_ids": tokenizer(row[key]).input_ids for key in ("prompt", "completion")} for row in ROWS]
    text = [{key: row[key] for key in ("prompt", "completion")} for row in ROWS]
    for name, rows in (("ids", ids), ("text", text)):
        path = written(tmp_path / f"{name}.jsonl", rows)
        assert run("--model", saved, "--input", path, "--out", tmp_path / name, "--limit", 2)[0] == 0
    tables = [pd.read_parquet(tmp_path / name / "tokens.parquet") for name in ("ids", "text")]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["transcript"].unique().tolist() == ["1", "2"]
    pages = [(tmp_path / name / "informativeness.html").read_text() for name in ("ids", "text")]
    assert pages[0] == pages[1]


def test_the_page_stands_alone(run, saved, tmp_path):
    path = written(tmp_path / "in.jsonl", ROWS)
    assert run("--model", saved, "--input", path, "--out", tmp_path / "out")[0] == 0
    page = (tmp_path / "out" / "informativeness.html").read_text()
    assert not re.search(r"""(src|srcset|action)\s*=|href="[^#]|@import|url\(|https?://""", page)
    for expected in (
        "&lt;think&gt;",
        "micro world",
        "answer entropy (nats)",
        "2602.19049",
        "3 * 3 - 4 = ?",
        "restatement",
    ):
        assert expected in page
    assert page.count("<section id=") == len(ROWS) == page.count("<polyline")
    tokens = sum(len(row["completion"].split()) for row in ROWS)
    assert page.count("<i class=") == tokens


BAD = {
    "no such field": ({"prompt": "7"}, "lacks the field 'completion'"),
    "ids by half": ({"prompt_ids": [7], "completion": "8"}, "lacks the field 'completion_ids'"),
    "empty completion": ({"prompt": "7", "completion": ""}, "the completion is empty"),
    "empty prompt": ({"prompt_ids": [], "completion_ids": [3]}, "the prompt is empty"),
    "id too large": ({"prompt_ids": [7], "completion_ids": [10**6]}, "the completion has token id 1000000"),
    "negative id": ({"prompt_ids": [-1], "completion_ids": [3]}, "the prompt has token id -1"),
    "ids that are none": (
        {"prompt_ids": [7], "completion_ids": [True]},
        "'completion_ids' must be a list of token ids",
    ),
    "text for ids": ({"prompt_ids": "7", "completion_ids": [3]}, "'prompt_ids' must be a list of token ids"),
    "no text": ({"prompt": 7, "completion": "8"}, "'prompt' must be text"),
    "half a surrogate pair": ({"prompt": "7", "completion": "\ud800"}, "contains a lone surrogate"),
    "too long": (
        {"prompt": "7", "completion": "8 " * 254},
        "have 255 tokens, but the context leaves 254 beside the postfix",
    ),
    "same id": ({"id": "checked", "prompt": "7", "completion": "8"}, "the id 'checked' occurs twice"),
    "bad id": ({"id": [1], "prompt": "7", "completion": "8"}, "'id' must be"),
    "bad verdict": ({"correct": "yes", "prompt": "7", "completion": "8"}, "'correct' must be true or false"),
    "no object": ([1], "is not a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_one_line_with_its_number_and_nothing_written(run, saved, tmp_path, name):
    row, message = BAD[name]
    path = written(tmp_path / "in.jsonl", [ROWS[0], row])
    mistake(run("--model", saved, "--input", path, "--out", tmp_path / "out"), f"{path}:2", message)
    assert not (tmp_path / "out").exists()


def test_other_mistakes(run, saved, tmp_path):
    path, out = written(tmp_path / "in.jsonl", ROWS), tmp_path / "out"
    (tmp_path / "cut.jsonl").write_text(path.read_text()[:50])
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    (tmp_path / "empty.jsonl").write_text("")
    for arguments, message in (
        (("--model", saved, "--input", tmp_path / "no.jsonl"), "no.jsonl does not exist"),
        (("--model", saved, "--input", tmp_path / "cut.jsonl"), "cut.jsonl:1 is not JSON"),
        (("--model", saved, "--input", tmp_path / "latin.jsonl"), "latin.jsonl:1 is not UTF-8"),
        (("--model", saved, "--input", tmp_path / "empty.jsonl"), "empty.jsonl is empty"),
        (("--model", tmp_path, "--input", path), str(tmp_path)),
        (("--model", saved, "--input", path, "--postfix", ""), "--postfix is empty"),
        (("--model", saved, "--input", path, "--temperature", "0"), "temperature"),
        (("--model", saved, "--input", path, "--limit", "0"), "limit"),
    ):
        mistake(run(*arguments, "--out", out), "iapo-bench: ", message)
        assert not out.exists()
    mistake(run("--model", saved, "--input", path, "--out", path), f"{path} is what this command reads")
    file = tmp_path / "cut.jsonl"
    mistake(run("--model", saved, "--input", path, "--out", file), f"{file} is a file")
    (saved / "tokenizer.json").unlink()
    (saved / "tokenizer_config.json").unlink()
    mistake(run("--model", saved, "--input", path, "--out", out), "tokenizer")
    assert not out.exists()
    assert len(path.read_text().splitlines()) == len(ROWS)


def mistake(result: tuple[int, str], *messages: str) -> None:
    code, printed = result
    lines = [line for line in printed.splitlines() if line.startswith("iapo-bench: ")]
    assert code == 2
    assert len(lines) == 1
    assert all(message in lines[0] for message in messages), lines[0]
    assert "Traceback" not in printed


def scored(**changes) -> ScoredTranscript:
    fields = {
        "id": "1",
        "prompt": "p",
        "tokens": ("a", " b"),
        "token_ids": (1, 2),
        "roles": None,
        "logp": (-1.0, -0.5),
        "entropy": (1.0, 0.5),
        "answer_entropy": (2.0, 2.5, 1.0),
    }
    return ScoredTranscript(**(fields | changes))


def test_everything_from_a_transcript_is_escaped():
    evil = "<script>alert(1)</script>\"'><img src=x>"
    shown = scored(id=evil, prompt=evil, tokens=(evil, f" {evil}\n"), roles=(evil, evil))
    page = heatmap_page([shown], model=evil, postfix=evil, temperature=1.0)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 7
    assert page.count("<script>") == 1  # its own
    assert "src=x&gt;↵\n</i>" in page
    assert "alert(1)" not in page.replace("&lt;script&gt;alert(1)", "").replace("\\u003cscript\\u003ealert(1)", "")


def test_a_page_says_what_it_shows():
    page = heatmap_page([scored(correct=False), scored(prompt="long " * 100)], model="m", postfix="P", temperature=0.7)
    assert "information in total</dt><dd>+1.000 nats" in page
    assert "answer entropy at the start</dt><dd>2.000 nats" in page
    assert "at the end</dt><dd>1.000 nats" in page
    assert "positive information</dt><dd>50.0%" in page
    assert "· wrong" in page
    assert page.count("<details>") == 1
    assert "<table>" not in page
    assert 'data-answer="2 2.5 1" data-logp="-1 -0.5" data-entropy="1 0.5"' in page
    assert "<i class=n5>a</i> <i class=p16>b</i>" in page
    assert '<a href="#t1">✗ 1</a>' in page
    assert '<a href="#t2">· 1</a>' in page
    flat = heatmap_page([scored(answer_entropy=(1.0, 1.0, 1.0))], model="m", postfix="P", temperature=1.0)
    assert "positive information</dt><dd>none" in flat
    assert flat.count("<i class=p0>") == 2


def test_many_long_transcripts_make_a_page_that_loads():
    """Two hundred of 500 tokens: 28.5 MB once. All but the first 20 are folded."""
    generator = np.random.default_rng(0)
    many = []
    for i in range(200):
        values = tuple(generator.random(501) * 3)
        tokens = tuple(generator.choice(["<think>", " the", " 12", " answer", " is", ";"], 500))
        signals = {"logp": tuple(-generator.random(500)), "entropy": tuple(generator.random(500))}
        roles = tuple(generator.choice(["needed", "filler"], 500))
        many.append(
            scored(id=str(i), tokens=tokens, token_ids=(1,) * 500, answer_entropy=values, roles=roles, **signals)
        )
    page = heatmap_page(many, model="m", postfix="P", temperature=1.0)
    assert len(page.encode()) < 6_000_000
    folded = page.index("180 more transcripts")
    assert page.index('<section id="t20"') < folded < page.index('<section id="t21"')


def test_the_share_that_carries_the_information():
    assert concentration([5.0, 3.0, 1.0, 1.0, -4.0, 0.0, 0.0, 0.0, 0.0, 0.0]) == pytest.approx(0.3)
    assert concentration([0.1] * 10) == pytest.approx(0.9)
    assert concentration([10.0, -20.0]) == pytest.approx(0.5)
    assert concentration([-1.0, 0.0]) is None


def test_colours_are_white_at_zero_and_stop_at_the_scale():
    assert background(0.0, 1.0) == "#ffffff"
    assert background(1.0, 1.0) == background(9.0, 1.0) != background(0.5, 1.0)
    red, _, blue = (int(background(1.0, 1.0)[i : i + 2], 16) for i in (1, 3, 5))
    assert blue > red
    red, _, blue = (int(background(-1.0, 1.0)[i : i + 2], 16) for i in (1, 3, 5))
    assert red > blue
    assert colour_scale([0.1] * 99 + [50.0]) == pytest.approx(0.1, rel=0.1)
    assert colour_scale([0.0, 1e-7]) == 1e-3
    assert visible("a\n\r\tb") == "a↵\n␍\tb"


def byte_level() -> PreTrainedTokenizerFast:
    """One token a byte, like the byte-level vocabularies of Qwen and SmolLM2 at their most broken."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="!", pad_token="!")


def test_a_character_of_several_tokens_is_shown_by_its_last():
    bytes_ = byte_level()
    text = "é 🙂 ok\n"
    tokens = token_texts(bytes_, bytes_(text).input_ids)
    assert tokens == ["\ufffd", "é", " ", "\ufffd", "\ufffd", "\ufffd", "🙂", " ", "o", "k", "\n"]
    lead = bytes_("é").input_ids[0]
    assert token_texts(bytes_, [lead, *bytes_("a").input_ids, *bytes_("b").input_ids]) == ["\ufffd", "a", "b"]
    assert token_texts(bytes_, [lead] * 6 + bytes_("a").input_ids) == ["\ufffd"] * 6 + ["a"]


def test_other_vocabularies_have_no_roles(run, tmp_path):
    torch.manual_seed(0)
    size = {"vocab_size": 256, "n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2}
    tokenizer = byte_level()
    save_model(GPT2LMHeadModel(GPT2Config(**size, eos_token_id=0, bos_token_id=0)), tokenizer, tmp_path / "model")
    path = written(tmp_path / "in.jsonl", [{"prompt": "Wie?", "completion": "<think>\nSchön 🙂\n"}])
    assert run("--model", tmp_path / "model", "--input", path, "--out", tmp_path / "out")[0] == 0
    table = pd.read_parquet(tmp_path / "out" / "tokens.parquet")
    assert table["role"].isna().all()
    assert len(table) == len("<think>\nSchön 🙂\n".encode())
    page = (tmp_path / "out" / "informativeness.html").read_text()
    assert "↵" in page
    assert "🙂" in page
    assert "<table>" not in page
