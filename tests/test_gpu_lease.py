"""Leases of GPUs between real processes, with device ids that no machine has."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from iapo_bench.cli import main
from iapo_bench.errors import UserError
from iapo_bench.machine.gpu_lease import lease_gpus, require_usable, visible_devices

JOB = """
import sys, time
from pathlib import Path
from iapo_bench.machine.gpu_lease import lease_gpus
folder, name = Path(sys.argv[1]), sys.argv[2]
count, share, seconds = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
with lease_gpus(count, jobs_per_gpu=share, folder=folder / "locks") as devices:
    import os
    started = time.time()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(devices)
    (folder / f"{name}.started").write_text(",".join(devices))
    time.sleep(seconds)
    (folder / f"{name}.done").write_text(f"{started} {time.time()} {','.join(devices)}")
"""


def start(
    folder: Path, name: str, count: int = 1, share: int = 1, seconds: float = 0.7, **changes: str
) -> subprocess.Popen:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "fake-0,fake-1", **changes}
    command = [sys.executable, "-c", JOB, str(folder), name, str(count), str(share), str(seconds)]
    return subprocess.Popen(command, env=environment)


def wait_for(path: Path, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path.name} never came"
        time.sleep(0.05)
    return path.read_text()


def spans(folder: Path, names: list[str]) -> list[tuple[float, float, set[str]]]:
    rows = [(folder / f"{name}.done").read_text().split() for name in names]
    return [(float(begin), float(end), set(devices.split(","))) for begin, end, devices in rows]


def test_no_two_jobs_hold_a_device_at_a_time(tmp_path):
    names = [f"job{i}" for i in range(4)]
    jobs = [start(tmp_path, name, count=2 if name == "job2" else 1) for name in names]
    assert [job.wait(timeout=120) for job in jobs] == [0] * 4
    times = spans(tmp_path, names)
    assert all(devices <= {"fake-0", "fake-1"} for _, _, devices in times)
    for i, (begin, end, devices) in enumerate(times):
        for other_begin, other_end, other in times[i + 1 :]:
            if devices & other:
                assert end <= other_begin or other_end <= begin


def test_a_killed_job_leaves_its_devices_to_the_next(tmp_path):
    first = start(tmp_path, "first", count=2, seconds=600)
    wait_for(tmp_path / "first.started")
    second = start(tmp_path, "second", count=2, seconds=0)
    time.sleep(1)
    assert not (tmp_path / "second.started").exists()
    first.kill()
    first.wait()
    assert second.wait(timeout=60) == 0


def test_jobs_share_a_device_when_told_to_and_not_before_all_are_taken(tmp_path):
    names = [f"job{i}" for i in range(4)]
    jobs = []
    for name in names:
        jobs.append(start(tmp_path, name, share=2, seconds=600))
        wait_for(tmp_path / f"{name}.started")
    taken = [(tmp_path / f"{name}.started").read_text() for name in names]
    for job in jobs:
        job.kill()
        job.wait()
    assert set(taken[:2]) == set(taken[2:]) == {"fake-0", "fake-1"}


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_an_exclusive_lease_is_exclusive_beside_shared_ones(tmp_path, first, second):
    """Whatever came first; a third job that shares is let in only beside one that shares."""
    holder = start(tmp_path, "holder", count=2, share=first, seconds=600)
    wait_for(tmp_path / "holder.started")
    other = start(tmp_path, "other", share=second, seconds=0)
    third = start(tmp_path, "third", share=2, seconds=0)
    if first == 2:
        assert third.wait(timeout=60) == 0
    time.sleep(1)
    assert not (tmp_path / "other.started").exists()
    assert (tmp_path / "third.started").exists() == (first == 2)
    holder.kill()
    holder.wait()
    assert other.wait(timeout=60) == third.wait(timeout=60) == 0


def test_slurm_jobs_do_not_wait_for_each_others_number_0(tmp_path):
    """Slurm shows each job its own devices, numbered from 0; within a job they are leased as ever."""
    first = start(tmp_path, "first", seconds=600, CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID="7")
    wait_for(tmp_path / "first.started")
    same = start(tmp_path, "same", seconds=0, CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID="7")
    other = start(tmp_path, "other", seconds=0, CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID="8")
    assert other.wait(timeout=60) == 0
    assert not (tmp_path / "same.started").exists()
    first.kill()
    first.wait()
    assert same.wait(timeout=60) == 0


def test_the_environment_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "fake-3, fake-7")
    with lease_gpus(1, folder=tmp_path) as devices:
        assert devices == ["fake-3"]
        assert visible_devices() == ["fake-3"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "fake-3, fake-7"


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
        ("0,0", ["0"]),
        ("GPU-8932f937, 1,", ["GPU-8932f937", "1"]),
    ],
)
def test_the_list_of_devices_is_read_as_cuda_reads_it(tmp_path, monkeypatch, visible, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices() == devices
    with pytest.raises(UserError, match=f"this job sees {len(devices)}"), lease_gpus(len(devices) + 1, folder=tmp_path):
        pass


def test_a_device_has_one_lock_by_its_number_and_by_its_uuid(tmp_path, monkeypatch):
    lists_gpus(tmp_path, monkeypatch, "0, GPU-8932f937-d72c", "1, GPU-1f2e3d4c-aaaa")
    assert visible_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937,0")
    with pytest.raises(UserError, match="this job sees 1"), lease_gpus(2, folder=tmp_path):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with lease_gpus(1, folder=tmp_path):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937,GPU-1f2e3d4c")
        with lease_gpus(1, folder=tmp_path) as devices:
            assert devices == ["GPU-1f2e3d4c"]


def test_words_of_nvidia_smi_are_no_devices(tmp_path, monkeypatch):
    lists_gpus(tmp_path, monkeypatch, "No devices were found")
    assert visible_devices() == []


def lists_gpus(folder: Path, monkeypatch, *lines: str) -> None:
    """Put an nvidia-smi that says these lines before any other."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (folder / "nvidia-smi").write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_too_many_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "fake-0")
    with pytest.raises(UserError, match="2 GPUs were requested but this job sees 1"), lease_gpus(2, folder=tmp_path):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices() == []


def test_the_command_line_leases_before_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["iapo-bench", "--gpus", "1", "prepare", "--out", str(tmp_path / "data")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "1 GPUs were requested but this job sees 0" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def run(monkeypatch, tmp_path, *options: str) -> tuple[int, list[list[str]]]:
    """Exit code of `prepare`, and the GPUs that it saw."""
    seen: list[list[str]] = []
    monkeypatch.setattr("iapo_bench.worlds.prepare.prepare", lambda *arguments: seen.append(visible_devices()))
    monkeypatch.setattr(sys, "argv", ["iapo-bench", *options, "prepare", "--out", str(tmp_path / "data")])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0), seen
    return 0, seen


def test_gpus_that_nobody_asked_for_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "fake-0,fake-1")
    assert run(monkeypatch, tmp_path) == (0, [[]])
    assert visible_devices() == ["fake-0", "fake-1"]
    monkeypatch.setenv("LOCAL_RANK", "0")  # a launcher's process sees what the launcher shows it
    assert run(monkeypatch, tmp_path) == (0, [["fake-0", "fake-1"]])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_torch_cannot_use_is_an_error_and_not_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "fake-0")
    assert run(monkeypatch, tmp_path, "--gpus", "1") == (2, [])
    err = capsys.readouterr().err
    assert "1 GPUs were requested but torch cannot use them" in err
    monkeypatch.setenv("IAPO_BENCH_PRETEND_GPUS", "1")
    assert run(monkeypatch, tmp_path, "--gpus", "1") == (0, [["fake-0"]])


def test_the_reason_is_named(monkeypatch):
    def old_driver():
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 12040)", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match=r"is a build for CPUs: install one for CUDA"):
        require_usable(1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    with pytest.raises(UserError, match=r"for CUDA 13.0, says: .* driver on your system is too old"):
        require_usable(1)
