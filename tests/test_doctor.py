"""What `iapo-bench doctor` says of this machine and of a model, and how a missing engine is reported."""

import os
import re
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from builders import open_world
from chat_templates import CARRIED, REFUSED, save, tokenizer_with

from iapo_bench import cli, doctor
from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import load_tokenizer
from iapo_bench.rollout.load import make_engine
from iapo_bench.rollout.transformers_engine import TransformersEngine
from iapo_bench.worlds import TAGS

ENGINE = {"width": 64, "batch_size": 7, "gpu_memory": 0.5}


@pytest.fixture
def no_vllm(monkeypatch):
    """As where the package is not installed."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(doctor, "package_version", lambda name: None if "vllm" in name else "1.0")


def test_every_row_is_there(no_vllm, tmp_path):
    rows, works = doctor.examine(tmp_path)
    assert works
    found = {what: here for what, here, _ in rows}
    expected = ("python", "torch", "transformers", "lm-eval", "snakemake executors", "cores", "memory", "disk")
    assert set(expected) <= set(found)
    assert found["engine: transformers"] == "yes"
    assert found["engine: vllm"] == "not installed"
    assert str(tmp_path) in found["disk"]
    advice = {what: change for what, _, change in rows}
    assert "vllm_env.sh" in advice["engine: vllm"] or "pip install" in advice["engine: vllm"]


def test_the_command_prints_one_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["iapo-bench", "doctor"])
    cli.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["what", "here", "to", "change", "that"]
    assert any(line.startswith("engine: transformers") for line in printed)


def test_a_missing_package_fails_and_says_how_to_get_it(monkeypatch, capsys):
    version = doctor.package_version
    monkeypatch.setattr(doctor, "package_version", lambda name: None if name == "pyarrow" else version(name))
    rows, works = doctor.examine()
    assert not works
    assert ("pyarrow", "missing", "pip install pyarrow") in rows
    assert ("engines", "none", "see what is missing") in rows
    monkeypatch.setattr(sys, "argv", ["iapo-bench", "doctor"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1


def test_a_build_that_does_not_load_is_named(monkeypatch):
    """Installed, but for another torch: the reason is shown."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(doctor, "package_version", lambda name: "0.32.0")
    what, here, change = doctor._vllm()
    assert what == "engine: vllm"
    assert "does not load" in here
    assert "cannot be used" in change


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here")
def test_an_engine_that_works_is_named_with_its_device():
    rows, works = doctor.examine()
    assert works
    _, here, change = next(row for row in rows if row[0] == "engine: vllm")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert re.fullmatch(rf"yes, vllm(-cpu)? [\d.+a-z]+ on {device}", here)
    assert change == ""


def test_a_build_for_another_device_is_named(monkeypatch):
    """vllm for CUDA, say, where there is no GPU: it loads, and finds nothing to run on."""
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(device_type="")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr(doctor, "package_version", lambda name: "0.32.0" if name == "vllm" else None)
    _, here, change = doctor._vllm()
    assert here == "vllm 0.32.0, but it does not load"
    assert "finds no device here" in change
    assert "bash scripts/vllm_env.sh" in change


def test_an_absent_engine_is_one_line_that_says_how_to_install_it(no_vllm, model, tmp_path):
    with pytest.raises(UserError, match=r"cannot be used .*: install it with `.+`") as error:
        make_engine("vllm", tmp_path, model, **ENGINE)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a limit of CPUs")
def test_batch_invariance_is_refused_where_there_is_none(model, tmp_path, monkeypatch):
    """And the next engine, of this process or of one that it starts, is not told to have it."""
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")
    with pytest.raises(UserError, match=r"needs a GPU of compute capability 9.0 or more, here is a CPU"):
        make_engine("vllm", tmp_path, model, **ENGINE, deterministic=True)
    assert os.environ["VLLM_BATCH_INVARIANT"] == "0"


def test_the_default_engine_generates_with_the_model_itself(model, tmp_path):
    engine = make_engine("transformers", tmp_path, model, **ENGINE)
    assert isinstance(engine, TransformersEngine)
    assert engine.model is model
    assert engine.batch_size == 7


# A model.


def examined(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `iapo-bench doctor`."""
    monkeypatch.setattr(sys, "argv", ["iapo-bench", "doctor", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("kind", ["drops reasoning and opens it", "refuses a system message"])
def test_doctor_shows_prompt_stops_and_verdict(tmp_path, monkeypatch, capsys, kind):
    path = save(tokenizer_with(CARRIED[kind], *TAGS), tmp_path / "model")
    code, out, _ = examined(monkeypatch, capsys, "--model", path, "--dataset", "gsm8k")
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
    code, out, err = examined(monkeypatch, capsys, "--model", path, "--dataset", "gsm8k")
    assert (code, out) == (2, "")
    assert err.count("iapo-bench: ") == 1
    assert re.search(r"iapo-bench: [^\n]*closes the reasoning[^\n]*\n$", err)
    assert examined(monkeypatch, capsys, "--model", path, "--dataset", "gms8k")[0] == 2
    assert examined(monkeypatch, capsys, "--dataset", "gsm8k")[0] == 2


def test_doctor_fails_where_a_perfect_completion_would_not_be_right(tmp_path, monkeypatch, capsys, tokenizer):
    """The micro vocabulary has no word for 42."""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <eos> {% endfor %}"
    path = save(tokenizer, tmp_path / "model")
    tokenizer.chat_template = None
    code, out, _ = examined(monkeypatch, capsys, "--model", path, "--dataset", "gsm8k")
    assert code == 1
    assert not re.search(r"graded +CORRECT", out)


def test_doctor_knows_micro(tmp_path, monkeypatch, capsys, tokenizer):
    path = save(tokenizer, tmp_path / "model")
    code, out, _ = examined(monkeypatch, capsys, "--model", path)
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
    code, out, err = examined(monkeypatch, capsys, "--model", path, "--set", f"world.file={tmp_path / 'mine.csv'}")
    assert code == 0, err
    assert f"{path} on mine" in out
    assert re.search(r"What is \d+ \+ 1\?", out)
    assert re.search(r"graded +CORRECT", out)
