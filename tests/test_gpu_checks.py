"""The GPU tests' checks on a CPU, where they must run too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu import bodies
from gpu.determinism import check_determinism

from iapo_bench.signals import packed

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("check", ["signals_float32", "signals_bfloat16", "gradients_float32", "gradients_bfloat16"])
def test_parity_checks_run(check):
    getattr(bodies, f"check_{check}")("micro", "cpu")


@pytest.mark.parametrize("implementation", ["shared_kv", "kv_replicated"])
def test_answer_checks_run(implementation):
    bodies.check_answer_entropies("micro", implementation, 30, "cpu")


def test_a_gpus_way_through_the_attention(monkeypatch):
    bodies.compile_without_kernels(monkeypatch)
    bodies.check_signals_float32("micro", "cpu")
    bodies.check_shapes_share_kernels("cpu", (2, 3, 61, 129))


def test_the_kernels_mask_reads_tensors_only():
    """torch 2.11 and 2.12 do not compile every mask that knows a number that changes from call to call."""
    keys = torch.zeros(1, 10, 4)
    passes = packed._Pass([packed._Span(0, 3, 0, 5)], 2, {0: (keys, keys)})
    read = [cell.cell_contents for cell in passes.block_mask.mask_mod.__closure__]
    assert read
    assert all(isinstance(value, torch.Tensor) for value in read)


def test_step_check_runs():
    bodies.check_step("cpu")


def test_memory_checks_run():
    """In a process of their own, where no other test's heap counts and large blocks go back to the kernel at once."""
    code = (
        "from gpu import bodies; "
        "bodies.check_answer_memory('cpu', (16, 32), lambda T: 2**28); "
        "bodies.check_logit_memory('cpu', tokens=4096, vocabulary=8192, chunk_tokens=64)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_determinism_check_runs(tmp_path):
    check_determinism("cpu", tmp_path)


def test_expected_gradients_stay_when_the_model_moves():
    model = bodies.build("micro")
    expected = bodies._plain_gradients(model, bodies.ragged(10, "cpu"))
    model.to(torch.float64)
    assert all(value.dtype == torch.float32 for value in expected.values())
