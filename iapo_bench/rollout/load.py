"""The rollout engine that a configuration asks for."""

from pathlib import Path

from transformers import PreTrainedModel

from iapo_bench.config.model import Engine
from iapo_bench.models.lora import exact_dtype
from iapo_bench.rollout import RolloutEngine
from iapo_bench.rollout.transformers_engine import TransformersEngine


def make_engine(
    name: Engine,
    path: Path,
    model: PreTrainedModel,
    *,
    width: int,
    batch_size: int,
    gpu_memory: float,
    sleep: bool = False,
    deterministic: bool = False,
    progress: bool = False,
) -> RolloutEngine:
    """The engine `name` for the checkpoint `path`, from which `model` was loaded.

    `transformers` generates with `model` itself. `vllm` loads the checkpoint, takes over the weights of `model` and
    checks that the two agree; `width` (the longest prompt and completion together, tokens), `gpu_memory`, `sleep` and
    `deterministic` apply to it alone.

    Raises UserError if vllm is missing, cannot be deterministic on this device, or disagrees with `model`.
    """
    if name == "transformers":
        return TransformersEngine(model, batch_size=batch_size, progress=progress)
    from iapo_bench.rollout.vllm_engine import VllmEngine

    engine = VllmEngine(
        path,
        context=width,
        dtype=exact_dtype(model),
        batch_size=batch_size,
        gpu_memory=gpu_memory,
        sleep=sleep,
        deterministic=deterministic,
        progress=progress,
    )
    engine.sync(model)
    return engine
