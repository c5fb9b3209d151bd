"""On one GPU in deterministic mode the same seed gives the same training."""

import pytest
import torch
from gpu.determinism import check_determinism

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_the_same_seed_trains_the_same(tmp_path):
    check_determinism("cuda", tmp_path)
