"""The benchmarks at the size of real models, with random weights: time and memory do not depend on the values.

Meant for a GPU, where the models are bfloat16; on a CPU they run in float32, to try them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from iapo_bench.bench.informativeness import compare_implementations
from iapo_bench.bench.step import bench_step_at_size
from iapo_bench.models.architectures import ARCHITECTURES, Architecture
from iapo_bench.models.checkpoints import accelerator
from iapo_bench.plan.costs import LENGTHS, Lengths
from iapo_bench.worlds.datasets.micro import build_tokenizer

TINY = "tiny"
SIZES = {
    **ARCHITECTURES,
    TINY: Architecture(64, 2, 4, 2, 128, 300, tied=True, qkv_bias=False),  # to try the benchmarks
}
POSTFIX_TOKENS = LENGTHS["gsm8k"].postfix


def informativeness_at_size(
    name: str, *, pairs: int, lengths: tuple[int, ...], batch: int, prompt: int
) -> list[dict[str, Any]]:
    """`compare_implementations` for one batch size, a row for each length; `name` is a key of `SIZES`."""
    with random_model(name) as model:
        postfix_K = torch.arange(3, 3 + POSTFIX_TOKENS, device=model.device)
        rows = compare_implementations(model, postfix_K, pairs=pairs, lengths=lengths, batches=(batch,), prompt=prompt)
    return [{"model": name, **row} for row in rows]


def step_at_size(
    name: str, *, steps: int, prompt: int, length: int, prompts_per_step: int, group_size: int, micro_batch_tokens: int
) -> list[dict[str, Any]]:
    """`bench_step_at_size`, a row for each method; `name` is a key of `SIZES`."""
    with random_model(name) as model:
        rows = bench_step_at_size(
            model,
            SIZES[name],
            build_tokenizer(),
            steps=steps,
            lengths=Lengths(prompt, length, POSTFIX_TOKENS),
            prompts_per_step=prompts_per_step,
            group_size=group_size,
            micro_batch_tokens=micro_batch_tokens,
        )
    return [{"model": name, **row} for row in rows]


@contextmanager
def random_model(name: str) -> Iterator[PreTrainedModel]:
    """A model of a size of `SIZES` with random weights, on the GPU in bfloat16 if there is one.

    Code compiled for it is released at the end: torch limits how much a process keeps.
    """
    device = accelerator()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:  # filling 1.5 B weights takes a CPU a minute
        model = AutoModelForCausalLM.from_config(SIZES[name].config(), dtype=dtype).eval()
    model.config.name_or_path = name
    try:
        yield model
    finally:
        torch.compiler.reset()
