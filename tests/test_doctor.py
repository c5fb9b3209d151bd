"""What `iapo-bench doctor` says of this machine, and how a missing engine is reported."""

import os
import re
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from iapo_bench import cli, doctor
from iapo_bench.errors import UserError
from iapo_bench.rollout.load import make_engine
from iapo_bench.rollout.transformers_engine import TransformersEngine

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
