"""Processes that work as one: how they are started, share and talk, and what ends them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from project_copy import copy_project, snakemake
from ranks import SECONDS, become, run_ranks

from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.machine import parallel
from iapo_bench.machine.gpu_lease import PRETEND
from iapo_bench.models.checkpoints import load_model
from iapo_bench.train.base import make_base
from iapo_bench.worlds.prepare import prepare

SMALL_BASE = {"model": {"source": "taught", "sft": {"hidden": 32, "layers": 1, "heads": 2, "steps": 20}}}

# A launcher on a machine whose own name no resolver knows, as in some containers.
NAMELESS = """
import socket
socket.getfqdn = lambda *_: "no-such-host.invalid"
from iapo_bench.cli import main
main()
"""


def storm(rank: int, seconds: float, ports: tuple[int]) -> None:
    """Collectives as a sharded model makes them, but 32 at once."""
    become(rank, ports[0])
    with parallel.processes():
        collectives = torch.ops._c10d_functional  # those of DTensor
        part = torch.full([3], float(rank))
        end = time.monotonic() + seconds
        while all(parallel.gather([time.monotonic() < end])):
            wholes = [collectives.all_gather_into_tensor(part, 2, dist.group.WORLD.group_name) for _ in range(32)]
            assert all(collectives.wait_tensor(whole).sum() == 3 for whole in wholes)


@pytest.mark.slow
def test_many_collectives_at_once():
    """With two of gloo's threads one of these processes mostly aborts within ten seconds."""
    assert run_ranks(storm, 20, ports=1) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --nproc-per-node 2",
        "accelerate.commands.launch --multi_gpu --num_processes 2",  # of devices it sees to none itself
    ],
)
def test_launchers_from_the_command_line(tmp_path, launcher):
    """One result, made by two processes, and one line from each for a mistake."""
    tier = read_tier("smoke", SMALL_BASE)
    prepare(tier, tmp_path / "data")
    make_base(tier, tmp_path / "base")
    launch = (sys.executable, "-m", *launcher.split(), "-m", "iapo_bench", "train")
    files = ("--config", "smoke", "--base", tmp_path / "base", "--data", tmp_path / "data", "--out", tmp_path / "out")
    wrong = subprocess.run([*launch, *files, "--method", "grop"], capture_output=True, text=True, timeout=SECONDS)
    assert wrong.returncode
    assert "iapo-bench: unknown method 'grop'" in wrong.stderr
    subprocess.run([*launch, *files, "--method", "grpo"], check=True, timeout=SECONDS)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["processes"] == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model", "provenance.json", "train.jsonl"]


@pytest.mark.slow
def test_a_job_of_two_gpus_is_two_processes_of_a_sharded_model(tmp_path, monkeypatch):
    """From the workflow, with devices that no machine has: what comes out is a checkpoint like any other."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "fake-0,fake-1")
    monkeypatch.setenv(PRETEND, "1")
    folder = copy_project(tmp_path)
    settings = [
        "gpus=2",
        "train={sharded: true, gradient_checkpointing: true}",
        f"model={json.dumps(SMALL_BASE['model'])}",
    ]
    target = "results/smoke/grpo/seed0/model"
    done = snakemake(folder, "--config", "tier=smoke", *settings, "--resources", "gpu=2", "--", target)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / target).with_name("provenance.json").read_text())["processes"] == 2
    assert json.loads((folder / target / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    trained, base = (load_model(path) for path in (folder / target, folder / "results/smoke/base/model"))
    moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), base.parameters(), strict=True)]
    assert all(moved)


def test_fewer_gpus_than_the_tier_trains_on(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "fake-0")
    monkeypatch.setenv(PRETEND, "1")
    files = ("--base", tmp_path, "--data", tmp_path, "--out", tmp_path / "out")
    code, err = run("--gpus", 1, "train", "--config", "smoke", "--set", "gpus=2", "--method", "grpo", *files)
    assert code == 2
    assert "trains on 2 GPUs but the job got 1: run `iapo-bench --gpus 2 train" in err


@pytest.mark.slow
@pytest.mark.parametrize("start", [("-m", "iapo_bench"), ("-c", NAMELESS)], ids=["", "machine of no known name"])
def test_a_mistake_before_several_processes_start_is_one_line(tmp_path, start):
    command = (sys.executable, *start, "--gpus", "2", "train", "--config", "smoke", "--method", "grpo")
    files = ("--base", tmp_path, "--data", tmp_path / "daat", "--out", tmp_path / "out")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "fake-0,fake-1", PRETEND: "1"}
    wrong = subprocess.run([*command, *files], capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert wrong.returncode == 2
    assert set(wrong.stderr.splitlines()) == {f"iapo-bench: {tmp_path / 'daat' / 'train.jsonl'} does not exist"}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "to"), [("TERM", "launcher"), ("INT", "launcher"), ("KILL", "launcher"), ("KILL", "rank")]
)
def test_a_signal_to_one_of_several_processes_ends_all_in_a_line(tmp_path, sent, to):
    tier = read_tier("smoke", SMALL_BASE)
    prepare(tier, tmp_path / "data")
    make_base(tier, tmp_path / "base")
    command = [sys.executable, "-m", "iapo_bench", "--gpus", "2", "train", "--config", "smoke", "--method", "grpo"]
    files = ["--base", tmp_path / "base", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "fake-0,fake-1", PRETEND: "1"}
    budget = ["--set", "train.completions=1000000"]
    launcher = subprocess.Popen([*command, *files, *budget], stderr=subprocess.PIPE, text=True, env=environment)
    log = tmp_path / "out" / "train.jsonl"
    end = time.monotonic() + SECONDS
    while not (log.exists() and log.stat().st_size) and launcher.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    number = signal.Signals[f"SIG{sent}"]
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]) if to == "rank" else launcher.pid, number)
    said = launcher.communicate(timeout=SECONDS)[1]  # which ends when all of them have
    killed = (sent, to) == ("KILL", "launcher")
    assert launcher.returncode == (-number if killed else 128 + number)
    assert "Traceback" not in said
    told = (
        f"was killed by SIG{sent}: is there enough memory?" if to == "rank" else f"iapo-bench: stopped by SIG{sent}; "
    )
    words = "iapo-bench: stopped by SIGTERM; " if killed else told
    assert words in said
    assert all(line.startswith("iapo-bench: ") for line in said.splitlines() if "SIG" in line)


def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.processes():
        assert (parallel.rank(), parallel.size(), parallel.is_main()) == (0, 1, True)
        assert parallel.share(5) == slice(0, 5)
        assert parallel.gather([1, 2]) == [1, 2]
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("n", "expected"), [(7, [3, 2, 2]), (2, [1, 1, 0]), (0, [0, 0, 0])])
def test_shares_are_even_adjacent_and_complete(monkeypatch, n, expected):
    monkeypatch.setattr(parallel, "size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        shares.append(range(4 * n)[parallel.share(4 * n, 4)])
    assert [len(part) for part in shares] == [4 * groups for groups in expected]
    assert [i for part in shares for i in part] == list(range(4 * n))


def test_an_environment_that_is_incomplete(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK is not: start with torchrun"), parallel.processes():
        pass


def test_a_gpu_for_each_rank():
    assert [parallel._local_device(rank, 2) for rank in range(2)] == [0, 1]
    assert [parallel._local_device(rank, 1) for rank in range(2)] == [0, 0], "the one that a scheduler shows"
    with pytest.raises(UserError, match="2 GPUs are too few for process 3"):
        parallel._local_device(2, 2)
    parallel.require_own_gpus(["GPU-a", "GPU-b", "GPU-c"])
    with pytest.raises(UserError, match="processes 0 and 2 see the same single GPU"):
        parallel.require_own_gpus(["GPU-a", "GPU-b", "GPU-a"])
