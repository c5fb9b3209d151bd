"""Cost of a run: arithmetic, seconds, memory and disk from a model's sizes, before anything runs.

With N weights that multiply every token (`Architecture.matrix_parameters`, the output layer included):

* a forward pass: 2 N a token, and 4 * layers * hidden for every position that a token attends to;
* generation: a step for all rows reads the weights and the cache (bandwidth) and multiplies (arithmetic), whichever
  takes longer, and launches its kernels; a prompt is read once for its group;
* signals: a forward pass of the policy where the method asks for one, one of the reference where it has a KL term, and
  K + 1 tokens of forward pass for every completion token where it reads the answer's entropy (K tokens of postfix);
* update: 6 N a token, forward and backward, and 2 * vocabulary * hidden more where the logits are computed twice;
  8 N with gradient checkpointing, 2 N less for frozen weights beside adapters (LoRA);
* the SFT of the base: 6 N a token.
"""

import math
from dataclasses import dataclass, replace

from iapo_bench.config.tier import TierConfig
from iapo_bench.method import Signal, load_method
from iapo_bench.models.architectures import Architecture
from iapo_bench.models.checkpoints import CHUNK_LOGITS
from iapo_bench.train.sft import SFT, TaughtSFT

GIB = 2**30
PHASES = ("rollout", "signals", "update")


@dataclass(frozen=True)
class Device:
    """Peak FLOP/s by dtype, bytes/s and bytes of memory."""

    flops: dict[str, float]
    bandwidth: float
    memory: float


DEVICES = {  # dense peaks without TF32, from NVIDIA's data sheets of the SXM boards
    "a100": Device({"bfloat16": 312e12, "float32": 19.5e12}, 2.04e12, 80e9),
    "h100": Device({"bfloat16": 989e12, "float32": 67e12}, 3.35e12, 80e9),
    "h200": Device({"bfloat16": 989e12, "float32": 67e12}, 4.8e12, 141e9),
    "cpu": Device({"bfloat16": 140e9, "float32": 140e9}, 20e9, 16e9),  # two cores, AVX-512; bandwidth assumed
}
FORWARD_UTILISATION = 0.4  # assumed: share of the peak that a forward pass over many tokens reaches
UPDATE_UTILISATION = 0.35  # assumed: the same, forward and backward
BANDWIDTH_UTILISATION = 0.6  # assumed: share of the peak bandwidth while generating
LAYER_SECONDS = {"transformers": 1e-4, "vllm": 5e-5}  # assumed: a layer's small kernels, ours and fused, in a graph
LONGEST = 4.0  # assumed: a batch's longest completion over its mean, up to the limit
ACTIVATION_BYTES = 34  # a token, layer and channel at 16 bits, without attention maps: Korthikanti et al. 2022
CHECKPOINTS = 3  # at most: the last two, and one that is being written
PROCESS_GIB = {"cpu": 0.5, "cuda": 4.0}  # of main memory: Python and torch; CUDA's context
VLLM_START_SECONDS = 180  # measured on a CPU: 35; on a GPU it compiles and captures graphs besides
SAMPLE_BYTES = 8  # assumed: a sampled token in parquet, id and text
LORA_RANK = 16


@dataclass(frozen=True)
class Lengths:
    """Tokens of a mean prompt, of a mean completion, and of the postfix that asks for the answer."""

    prompt: float
    completion: float
    postfix: int = 6  # of </think><answer> in a byte-level vocabulary: assumed


LENGTHS = {
    "micro": Lengths(10, 47, 2),  # results/reference/micro/table1.csv
    "gsm8k": Lengths(190, 160),  # completions: the base models of results/published/table1.csv; prompt assumed
    "math500": Lengths(200, 500),  # assumed
    "dapo": Lengths(220, 900),  # assumed
}
ASSUMED = Lengths(200, 500)  # for any other dataset


def lengths_of(dataset: str) -> Lengths:
    """Mean tokens of a dataset's prompts and completions: known, or assumed."""
    return LENGTHS.get(dataset, ASSUMED)


@dataclass(frozen=True)
class Work:
    """One method's work: completions in all, per step, per engine batch and per prompt (`group`), and whether it needs
    answer entropies, a pass of the policy and one of the reference."""

    completions: int
    step: int
    batch: int
    group: int
    lengths: Lengths
    max_tokens: int
    answer: bool = False
    policy: bool = False
    reference: bool = False
    passes: int = 3  # arithmetic of an update in forward passes: a backward pass counts two


def training_work(tier: TierConfig, method: str, lengths: Lengths) -> Work:
    """The training of one method. Groups that dynamic sampling drops are counted as if they were trained on."""
    job = tier.train_job(method, tier.train.seeds[0])
    train = job.train
    made = load_method(job.method.name, job.method.profile, **job.method.options)
    needs = made.needs | ({Signal.OLD_LOGP} if train.updates_per_rollout > 1 else set())
    step = train.prompts_per_step * train.group_size
    return Work(
        completions=train.completions,
        step=step,
        batch=min(step, train.rollout_batch_size),
        group=train.group_size,
        lengths=replace(lengths, completion=min(lengths.completion, train.max_tokens)),
        max_tokens=train.max_tokens,
        answer=Signal.ANSWER_ENTROPY in needs,
        policy=bool(needs),
        reference=bool(made.loss.kl_coef),
        # Checkpointing repeats the forward pass; frozen weights need no gradients.
        passes=3 + train.gradient_checkpointing - (train.lora is not None),
    )


def largest_share(work: Work, ranks: int) -> Work:
    """The work of the rank with the most groups of a step, which the others wait for."""
    own = math.ceil(work.step / work.group / ranks) * work.group
    return replace(work, completions=work.completions * own // work.step, step=own, batch=min(own, work.batch))


def sft_work(tier: TierConfig, lengths: Lengths) -> Work | None:
    """The SFT of the base, with worked solutions assumed as long as completions; None without SFT."""
    kind = TaughtSFT if tier.model.source == "taught" else SFT
    chosen = tier.model.sft
    if kind is SFT and not chosen:
        return None
    size = int(chosen.get("batch_size", kind.batch_size))
    examples = int(chosen.get("steps", kind.steps)) * size
    return Work(examples, step=size, batch=size, group=1, lengths=lengths, max_tokens=math.ceil(lengths.completion))


def sampling_work(tier: TierConfig, problems: int, lengths: Lengths) -> Work:
    """The sampling of one model on `problems` test problems, with all seeds."""
    evaluate = tier.evaluate
    completions = min(problems, evaluate.problems or problems) * evaluate.n_samples * len(evaluate.seeds)
    return Work(
        completions=completions,
        step=completions,
        batch=min(completions, evaluate.batch_size),
        group=evaluate.n_samples,
        lengths=replace(lengths, completion=min(lengths.completion, evaluate.max_tokens)),
        max_tokens=evaluate.max_tokens,
    )


def forward_flops(size: Architecture, context: float) -> float:
    """FLOPs of a forward pass for one token attending to `context` positions."""
    return 2 * size.matrix_parameters + 4 * size.layers * size.hidden * context


def flops(size: Architecture, work: Work) -> dict[str, float]:
    """FLOPs of one completion, by phase."""
    prompt, length = work.lengths.prompt, work.lengths.completion
    token = forward_flops(size, prompt + length / 2)
    passed = prompt / work.group + length  # a prompt is read once for its group
    passes = work.policy + work.reference
    answers = (work.lengths.postfix + 1) * length * token if work.answer else 0.0
    return {
        "rollout": passed * token,
        "signals": passes * passed * token + answers,
        "update": work.passes * (prompt + length) * token + 2 * size.vocabulary * size.hidden * length,
    }


def rollout_seconds(size: Architecture, work: Work, device: Device, dtype: str, engine: str) -> float:
    """Seconds to generate everything: prefill, then one decode step per token of each batch's longest completion."""
    prompt, length = work.lengths.prompt, work.lengths.completion
    width = bytes_of(dtype)
    steps = min(work.max_tokens, LONGEST * length)
    live = work.batch * length / steps  # finished rows leave
    cache = live * (prompt + length / 2) * size.cache_channels * width
    read = (size.matrix_parameters * width + cache) / (device.bandwidth * BANDWIDTH_UTILISATION)
    multiply = live * forward_flops(size, prompt + length / 2) / (device.flops[dtype] * FORWARD_UTILISATION)
    decode = steps * (max(read, multiply) + size.layers * LAYER_SECONDS[engine])
    prefill = work.batch / work.group * prompt * forward_flops(size, prompt / 2)
    batches = work.completions / work.batch
    return batches * (decode + prefill / (device.flops[dtype] * FORWARD_UTILISATION))


def update_seconds(size: Architecture, work: Work, device: Device, dtype: str) -> float:
    """Seconds to update on all completions (or SFT examples)."""
    return work.completions * flops(size, work)["update"] / (device.flops[dtype] * UPDATE_UTILISATION)


def seconds(size: Architecture, work: Work, device: Device, dtype: str, engine: str) -> dict[str, float]:
    """Training seconds by phase, on one device at the assumed utilisation, without waiting for others."""
    signals = flops(size, work)["signals"]
    return {
        "rollout": rollout_seconds(size, work, device, dtype, engine),
        "signals": work.completions * signals / (device.flops[dtype] * FORWARD_UTILISATION),
        "update": update_seconds(size, work, device, dtype),
    }


def bytes_of(dtype: str) -> int:
    """Bytes per element of `dtype`."""
    return 2 if dtype == "bfloat16" else 4


def memory(
    size: Architecture, tier: TierConfig, lengths: Lengths, device: Device, gpus: int
) -> list[dict[str, float | str]]:
    """Peak GiB of one GPU by strategy, a row each, for a training job.

    Generation, signals and update take turns: the peak is the largest of cache or engine (vLLM sleeps between), of
    weights gathered for signals, and of gradients with activations, on top of weights, optimiser and reference.
    Sharded, each of `gpus` holds its part, and gathers the policy to generate, the reference too for signals.
    """
    train, width = tier.train, bytes_of(tier.model.dtype)
    works = [training_work(tier, method, lengths) for method in tier.trained]
    whole = size.parameters * width / GIB
    rank = train.lora.rank if train.lora else LORA_RANK
    adapters = size.layers * sum(rank * (i + o) for i, o in size.linear_shapes) * 4 / GIB
    own = train.engine == "transformers"
    cache = works[0].batch * (lengths.prompt + train.max_tokens) * size.cache_channels * width / GIB if own else 0.0
    engine = 0.0 if own else train.engine_memory * device.memory / GIB
    reference = whole if any(work.reference for work in works) else 0.0
    state = _optimiser_state(width)
    strategies = {  # GPUs, weights, gradients, optimiser, reference, rank of adapters
        "single GPU": (1, whole, whole, state * whole, reference, 0),
        "data parallel": (gpus, whole, whole, state * whole, reference, 0),
        "sharded (FSDP2)": (gpus, whole / gpus, whole / gpus, state * whole / gpus, reference / gpus, 0),
        f"LoRA, rank {rank}": (1, whole + adapters, adapters, 2 * adapters, 0.0, rank),
    }
    rows: list[dict[str, float | str]] = []
    for name, (n, weights, gradients, optimiser, kept, rank) in strategies.items():
        active = _activations(size, tier, lengths, rank) / GIB
        policy, other = (whole, reference) if "sharded" in name else (0.0, 0.0)  # gathered
        rows.append(
            {
                "strategy": name,
                "GPUs": n,
                "weights": weights,
                "gradients": gradients,
                "optimiser": optimiser,
                "reference": kept,
                "activations": active,
                "cache or engine": cache + engine,
                "gathered": policy + other,
                "peak GiB": weights
                + optimiser
                + kept
                + max(cache + engine + policy, policy + other, gradients + active),
            }
        )
    return rows


def strategy(tier: TierConfig) -> str:
    """How the tier's training jobs hold the model: the beginning of a strategy's name in `memory`."""
    if tier.train.lora:
        return "LoRA"
    if tier.gpus > 1:
        return "sharded" if tier.train.sharded else "data parallel"
    return "single GPU"


def _activations(size: Architecture, tier: TierConfig, lengths: Lengths, rank: int) -> float:
    """Bytes that a micro-batch keeps for its backward pass; `rank` 0 stands for no adapters."""
    tokens = max(tier.train.micro_batch_tokens, math.ceil(lengths.prompt) + tier.train.max_tokens)
    width = bytes_of(tier.model.dtype)
    layer = size.hidden * ACTIVATION_BYTES * width / 2 + (_lora_activations(size, width, rank) if rank else 0.0)
    again = size.layers * size.hidden * width + layer  # every layer's input, and one layer computed again
    kept = again if tier.train.gradient_checkpointing else size.layers * layer
    return tokens * kept + 3 * CHUNK_LOGITS * 4


def _optimiser_state(width: int) -> float:
    """Bytes of AdamW's state per byte of weights: two float32 moments, and a float32 copy of narrower weights."""
    return (2 if width == 4 else 3) * 4 / width


def _lora_activations(size: Architecture, width: int, rank: int) -> float:
    """Bytes a token and layer that adapters keep for the backward pass beyond what training all weights does.

    At 16 bits a float32 copy of each linear layer's input, and A's output; tensors that only gradients of frozen
    weights need (normalised states, 16-bit inputs) are not kept. Counted as torch's saved tensors. In float32 almost 0.
    """
    if width == 4:
        return 0.0
    copies = sum(i + rank for i, _ in size.linear_shapes)
    return 4 * copies - width * (4 * size.hidden + size.intermediate)


def checkpoint(size: Architecture, tier: TierConfig) -> float:
    """GiB of one checkpoint: trained weights and AdamW's state."""
    width = bytes_of(tier.model.dtype)
    trained = size.parameters * width / GIB
    if lora := tier.train.lora:
        trained, width = size.layers * sum(lora.rank * (i + o) for i, o in size.linear_shapes) * 4 / GIB, 4
    return (1 + _optimiser_state(width)) * trained


def checkpoints(tier: TierConfig, steps: int, seconds: float) -> int:
    """How many checkpoints a run of `steps` and `seconds` makes."""
    pace = tier.train.checkpoint_minutes * 60
    return min(steps // tier.train.checkpoint_every, int(seconds // pace) if pace else steps)


def host_memory(size: Architecture, tier: TierConfig) -> dict[str, float]:
    """GiB of main memory of a training job at its peak, all processes together: while it loads, or later."""
    ranks = max(1, tier.gpus)
    whole = size.parameters * bytes_of(tier.model.dtype) / GIB
    parts = {"processes": PROCESS_GIB["cuda" if tier.gpus else "cpu"] * ranks}
    if not tier.gpus:  # a CPU has no other memory
        lengths = lengths_of(tier.world.name)
        peak = memory(size, tier, lengths, DEVICES["cpu"], 2)[0]["peak GiB"]
        return parts | {"training": float(peak)}
    # Each rank of a sharded model writes its own part, tensor by tensor.
    later = {} if strategy(tier) == "sharded" else {"checkpoint": checkpoint(size, tier)}
    if tier.train.engine == "vllm":  # pinned, each block rounded up to a power of two
        later["vllm asleep"] = 2 * whole * ranks
    loading = whole * ranks
    return parts | ({"loading": loading} if loading > sum(later.values()) else later)


def disk(size: Architecture, tier: TierConfig, problems: int, lengths: Lengths) -> dict[str, float]:
    """GiB that one dataset's results take: the models, a job's checkpoints while it trains, and the samples."""
    models = 1 + sum(len(tier.train_seeds(method)) for method in tier.methods)
    model = size.parameters * bytes_of(tier.model.dtype) / GIB
    tokens = sampling_work(tier, problems, lengths).completions * lengths.completion
    steps = tier.train.completions // (tier.train.prompts_per_step * tier.train.group_size)
    kept = min(CHECKPOINTS, steps // tier.train.checkpoint_every)
    return {
        "models": models * model,
        **({"checkpoints of a training job": kept * checkpoint(size, tier)} if tier.trained else {}),
        "samples": models * tokens * SAMPLE_BYTES / GIB,
    }
