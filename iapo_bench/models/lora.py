"""LoRA (Hu et al. 2021) with peft: low-rank adapters trained beside frozen weights, for a model whose optimiser state
does not fit in memory.

The layers are wrapped in place, so all other code sees the same model. The base's weights never change: with the
adapters off, the model is the reference of a KL term.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from iapo_bench.config.lora import LoraConfig
from iapo_bench.seeds import torch_stream

ADAPTER = "default"


def add_lora(model: PreTrainedModel, settings: LoraConfig, seed: int) -> None:
    """Wrap every linear layer but the output layer, and freeze the model's own weights.

    A layer of weight W then computes with W + alpha / rank * B A, where A has `rank` rows. No dropout: the policy that
    is updated must be the one that sampled.

    A and B are float32 whatever the model's dtype, so that small steps are not rounded away. A is initialised as by
    peft, but from `seed`; B is zero, so that the model starts unchanged. Raises ValueError if it has adapters already.
    """
    import peft

    if _wrapped(model):
        raise ValueError("the model has adapters already")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    # On the meta device peft neither draws weights nor rounds them to the model's dtype.
    peft.inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
    generator = torch_stream(seed, "lora")
    for layer in _wrapped(model).values():
        device = layer.get_base_layer().weight.device
        a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        drawn = torch.empty(a.weight.shape, device="cpu")
        torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        a.weight = torch.nn.Parameter(drawn.to(device))
        b.weight = torch.nn.Parameter(torch.zeros(b.weight.shape, device=device))


@torch.no_grad()
def merged_weights(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight, tied ones too, under its name in a checkpoint, with its adapter added if it has one.

    The sum is computed in float32 and rounded once, to `dtype` or else the weight's own. Weights come one at a time, so
    that no second copy of the model is needed; those without an adapter are the model's own, not copies.
    """
    layers = {f"{name}.base_layer.weight": layer for name, layer in _wrapped(model).items()}
    for name, weight in model.state_dict().items():
        if layer := layers.get(name):
            weight = (weight.float() + layer.get_delta_weight(ADAPTER)).to(dtype or weight.dtype)
        if ".lora_A." not in name and ".lora_B." not in name:
            yield name.replace(".base_layer.", "."), weight


def merged_state(model: PreTrainedModel, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """`merged_weights` on the CPU, tied ones once: what `save_pretrained` takes to write a plain checkpoint."""
    merged = merged_weights(model, dtype)
    return {name: weight.cpu() for name, weight in merged if name not in model.all_tied_weights_keys}


def exact_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype in which merged weights equal those that were trained and sampled: the model's own, or float32 with
    adapters, because rounding to lower precision would lose their small steps."""
    return torch.float32 if _wrapped(model) else model.dtype


@contextmanager
def without_lora(model: PreTrainedModel) -> Iterator[None]:
    """The model as it was before `add_lora`, bit for bit, for passes without gradients; a no-op without adapters."""
    layers = [layer for layer in _wrapped(model).values() if not layer.disable_adapters]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def trainable_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights that training changes, by name: with adapters, only theirs. They are the model's own, not copies."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def load_trainable_state(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """The inverse of `trainable_state`. Raises ValueError or RuntimeError for the state of a different model."""
    if odd := state.keys() ^ trainable_state(model).keys():
        raise ValueError(f"the adapter state is another model's: only one of the two has {min(odd)}")
    model.load_state_dict(state, strict=False)


def _wrapped(model: PreTrainedModel) -> dict[str, Any]:
    """peft's layers around the model's own, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
