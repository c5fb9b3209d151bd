"""Fixtures of the tests that need a GPU."""

import pytest
import torch


@pytest.fixture
def device():
    """A GPU that computes float32 in float32, with no kernels of earlier tests and its memory free."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.compiler.reset()
    torch.cuda.empty_cache()
    yield "cuda"
    torch.set_float32_matmul_precision(precision)
