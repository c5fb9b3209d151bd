"""Signals and gradients on a GPU against the plainest computation on a CPU."""

import pytest
import torch
from gpu import bodies

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("shape", bodies.SHAPES)
def test_signals_float32(shape, device):
    bodies.check_signals_float32(shape, device)


@pytest.mark.parametrize("shape", bodies.SHAPES)
def test_signals_bfloat16(shape, device):
    bodies.check_signals_bfloat16(shape, device)


@pytest.mark.parametrize("longest", [5, 129, 300])
@pytest.mark.parametrize("implementation", ["shared_kv", "kv_replicated"])
@pytest.mark.parametrize("shape", ["smollm2-135m", "micro"])
def test_answer_entropies(shape, implementation, longest, device):
    bodies.check_answer_entropies(shape, implementation, longest, device)


def test_shapes_share_kernels(device):
    bodies.check_shapes_share_kernels(device, (2, 3, 60, 61, 127, 128, 129, 200, 256, 300))


@pytest.mark.parametrize("shape", bodies.SHAPES)
def test_gradients_float32(shape, device):
    bodies.check_gradients_float32(shape, device)


@pytest.mark.parametrize("shape", bodies.SHAPES)
def test_gradients_bfloat16(shape, device):
    bodies.check_gradients_bfloat16(shape, device)


def test_a_step(device):
    bodies.check_step(device)
