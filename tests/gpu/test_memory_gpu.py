"""Memory ceilings on a GPU, by what its allocator counts."""

import pytest
import torch
from gpu import bodies

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_answer_entropies_never_hold_the_scores(device):
    bodies.check_answer_memory(device, (1024, 2048), lambda T: bodies.dense_scores(T) / 3)


def test_statistics_never_hold_all_logits(device):
    bodies.check_logit_memory(device, tokens=16384, vocabulary=151_936, chunk_tokens=1024)
