"""Small real models: the micro tokenizer with a decoder small enough for a test, never a mock."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import golden
import hypothesis
import pytest
import torch
from builders import any_problems
from stages import SMALL
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from iapo_bench.cli import main
from iapo_bench.config.tier_file import read_tier
from iapo_bench.models.checkpoints import build_micro
from iapo_bench.train.base import make_base
from iapo_bench.worlds.datasets.micro import MicroWorld, build_tokenizer
from iapo_bench.worlds.prepare import prepare

torch.set_num_threads(1)
# A shell's background job and nohup ignore these, and so would every command that a test stops with one.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)
# How long a case takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-dir", help="Directory with the datasets' JSON lines; tests that need it are skipped without."
    )


# The longest of the slower checks: begun last, one would run on alone. Three processes get two each to begin with.
LONGEST = ("slurm_jobs", "trial_compares", "those_of_trl", "dataset_dropped_in", "smoke_tier_and_then")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest go first."""
    items.sort(key=lambda item: [name not in item.name for name in LONGEST])


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def model(tokenizer) -> PreTrainedModel:
    """A Llama decoder of 40 thousand parameters, new for every test."""
    return build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1).eval()


@pytest.fixture(params=["llama", "qwen2", "gpt2"])
def any_model(request, tokenizer) -> PreTrainedModel:
    """Rotary and absolute positions, tied and untied output layers, grouped and plain attention."""
    torch.manual_seed(3)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    if request.param == "llama":
        return build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1).eval()
    if request.param == "qwen2":
        config = Qwen2Config(
            **size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
        )
        return Qwen2ForCausalLM(config).eval()
    return GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=2)).eval()


@pytest.fixture(scope="session")
def world() -> MicroWorld:
    return MicroWorld(n_train=40, n_validation=12, n_test=12)


@pytest.fixture
def small_datasets() -> Iterator[None]:
    """A few problems may stand under the name of a published dataset."""
    with any_problems():
        yield


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run a command of iapo-bench in this process; return its exit code and what went to standard error."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["iapo-bench", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Problems and a base, small."""
    folder, tier = tmp_path_factory.mktemp("made"), read_tier("smoke", SMALL)
    prepare(tier.prepare_job(), folder / "data")
    make_base(tier.base_job(), folder / "base" / "model")
    return folder


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """Problems and a model, made through the command line."""
    folder = tmp_path_factory.mktemp("speaking")
    with pytest.MonkeyPatch.context() as patch:

        def command(*arguments):
            patch.setattr("sys.argv", ["iapo-bench", *map(str, arguments)])
            main()

        golden.make_base(command, folder)
    return folder
