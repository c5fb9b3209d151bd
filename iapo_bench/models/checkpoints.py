"""Building, loading and saving the models that are trained and sampled."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from iapo_bench.errors import UserError
from iapo_bench.files import whole_directory, write_json
from iapo_bench.machine.provenance import checksum
from iapo_bench.models.lora import exact_dtype, merged_state
from iapo_bench.seeds import stream_seed
from iapo_bench.worlds.dialogue import Dialogue

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

WIDENED = "adapters_merged_in"  # the note of a checkpoint whose weights are wider than those it was trained from

CHUNK_LOGITS = 2**26  # held at once: 256 MiB of float32


def build_micro(
    tokenizer: PreTrainedTokenizerBase, *, hidden: int, layers: int, heads: int, seed: int
) -> PreTrainedModel:
    """A Llama decoder with random weights, two query heads to a key head, tied embeddings, a context of 256 tokens.

    Llama and not Qwen2, for which AutoTokenizer insists on a byte-level tokenizer, whatever the checkpoint says.
    """
    torch.manual_seed(stream_seed(seed, "initialisation"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def accelerator() -> torch.device:
    """Where models run: the current GPU if there is one, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that a tier's `model.dtype` names."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_model(path: Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in a checkpoint directory, in evaluation mode.

    What adapters were trained into is loaded in float32 whatever `dtype` says, as `save_model` wrote it.
    Raises UserError when the directory is no checkpoint, a weight is not finite, or the weights do not match the
    config: transformers would fill the gaps with random numbers and carry on.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a checkpoint directory (no config.json)")
    generation = read_generation_config(path)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=stored_dtype(path, dtype),
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := info.get(kind):
            first = sorted(str(name) for name in names)[0]
            raise UserError(f"{path}: weights do not match config.json ({kind.replace('_', ' ')}: {first})")
    require_finite(model.state_dict(), str(path))
    model.generation_config = generation or sound_generation_config(model.generation_config, path)
    return model.eval()


def stored_dtype(path: Path, dtype: torch.dtype) -> torch.dtype:
    """The dtype to load the checkpoint `path` in where `dtype` is asked for: float32 where adapters were trained beside
    rounded weights, for the sum of both is what was trained and sampled, and rounding it loses small steps."""
    notes = path / "training.json"
    return torch.float32 if notes.is_file() and WIDENED in json.loads(notes.read_text()) else dtype


def require_finite(state: Any, what: str) -> None:
    """Raise UserError unless all numbers in nested dicts, lists and tensors are finite; it names the first."""

    def first(value: Any, place: str) -> str | None:
        if isinstance(value, dict | list | tuple):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            return next((found for key, part in parts if (found := first(part, f"{place}.{key}".lstrip(".")))), None)
        if isinstance(value, torch.Tensor):
            return None if bool(value.isfinite().all()) else place or "a value"
        return place if isinstance(value, float) and not math.isfinite(value) else None

    if place := first(state, ""):
        raise UserError(f"{what}: {place} holds a number that is not finite: the model is broken, use an earlier one")


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every probability of dropout and every jitter to 0, in modules and configurations, for good.

    RL updates the policy that sampled, which had none; and the draws would come from no seed of ours. The mode stays:
    activation checkpointing acts in training mode only.
    """
    configs = [model.config, *(module.config for module in model.modules() if hasattr(module, "config"))]
    for config in configs:  # grows while it is read
        configs += [
            part for part in vars(config).values() if isinstance(part, PretrainedConfig) and part not in configs
        ]
    for holder in (*model.modules(), *configs):
        for name, value in list(vars(holder).items()):
            stochastic = "drop" in name or "jitter" in name or (name == "p" and isinstance(holder, _DropoutNd))
            if stochastic and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(holder, name, 0.0)


def load_skeleton(path: Path) -> PreTrainedModel:
    """The model in a checkpoint directory without its weights: for its configs. Raises UserError when it has none."""
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a checkpoint directory (no config.json)")
    generation = read_generation_config(path)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
    model.generation_config = generation or sound_generation_config(model.generation_config, path)
    return model


def read_generation_config(path: Path) -> GenerationConfig | None:
    """The generation config of a checkpoint directory, as `sound_generation_config` leaves it; None without a file.

    Raises UserError for one that cannot be read: transformers would pass over it, and over the stops that it names.
    """
    file = path / "generation_config.json"
    if not file.is_file():
        return None
    try:
        json.loads(file.read_text(encoding="utf-8"))
        config = GenerationConfig.from_pretrained(path, local_files_only=True)
        ids = [i for name in _TOKEN_IDS for i in _as_list(getattr(config, name))]
        if not all(type(i) is int for i in ids):
            raise ValueError("its token ids are not whole numbers")
    except Exception as error:  # transformers checks no types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} cannot be used ({reason}): correct or remove it") from None
    return sound_generation_config(config, path)


def sound_generation_config(config: GenerationConfig, name: str | Path) -> GenerationConfig:
    """The config itself, or where transformers would refuse to save it, its token ids alone, which is all that sampling
    here takes from it; then one line says so of the checkpoint `name`."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        keys = ", ".join(re.findall(r"^- `(\w+)`", str(error), re.MULTILINE))
        click.echo(
            f"warning: {name}: the generation config contradicts itself ({keys}): only its token ids are kept", err=True
        )
        return GenerationConfig(**{name: getattr(config, name) for name in _TOKEN_IDS})
    return config


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory. Raises UserError when there is none or it cannot pad."""
    if not path.is_dir():
        raise UserError(f"{path} is not a checkpoint directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} has no tokenizer: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every end of sequence: those of the tokenizer, the generation config and the config."""
    text = model.config.get_text_config()
    named = [source.eos_token_id for source in (tokenizer, model.generation_config, model.config, text) if source]
    ids = {i for value in named for i in _as_list(value)}
    # Some configs have a default that is no token of their model.
    return tuple(sorted(i for i in ids if 0 <= i < text.vocab_size))


def stop_ids(model: PreTrainedModel, dialogue: Dialogue) -> tuple[int, ...]:
    """Every token that ends a completion: the ends of sequence, and what the chat template ends a turn with."""
    return tuple(sorted({*eos_ids(model, dialogue.tokenizer), *dialogue.turn_ends}))


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]


def context_length(path: Path) -> int:
    """How many tokens, prompt and completion together, the model at `path` can read."""
    return int(AutoConfig.from_pretrained(path, local_files_only=True).get_text_config().max_position_embeddings)


def vocabulary_size(path: Path) -> int:
    """How many tokens the model at `path` has embeddings for."""
    return int(AutoConfig.from_pretrained(path, local_files_only=True).get_text_config().vocab_size)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, notes: dict | None = None
) -> None:
    """Write weights, config and tokenizer to `path`, whole or not at all; `notes` go to `training.json` beside them.

    Adapters are added to their weights, in float32: what is written is a plain checkpoint. Raises UserError when a
    weight is not finite.
    """
    widened = exact_dtype(model) != model.dtype
    state = merged_state(model, torch.float32 if widened else None)
    require_finite(state, f"{path} is not written")
    with whole_directory(path) as partial:
        model.save_pretrained(partial, state_dict=state)
        if widened:
            notes = {**(notes or {}), WIDENED: "float32"}
            config = AutoConfig.from_pretrained(partial)
            config.dtype = torch.float32
            config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if notes is not None:
            write_json(partial / "training.json", notes)


def decoder_and_head(model: PreTrainedModel) -> tuple[PreTrainedModel, torch.nn.Module]:
    """The decoder stack and the output layer, for callers that want logits at a few positions only.

    Raises UserError for a model that does more between the two.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(f"{type(model).__name__} transforms its logits ({name}), which is not supported")
    return model.get_decoder(), model.get_output_embeddings()


def require_plain_attention(model: PreTrainedModel, length: int) -> None:
    """Raise UserError unless every position of a sequence of `length` tokens attends to all before it, and nothing but
    its own position turns its keys: what an attention or a cache of ours takes for granted."""
    name, config = type(model).__name__, model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if odd := kinds - {"full_attention", "sliding_attention"}:
        raise UserError(f"{name} has layers of {min(odd)}, which is not supported")
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in kinds and window is not None and length > window:
        raise UserError(f"{name} attends to a window of {window} tokens: {length} are too many here")
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            raise UserError(f"{name} turns its keys by the longest sequence ({parameters['rope_type']}): not supported")


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, then every module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def attention_implementation(decoder: PreTrainedModel, name: str) -> Iterator[None]:
    """`decoder` with the registered attention `name`, then with its own again.

    Raises UserError for an architecture whose attention cannot be replaced.
    """
    if not decoder._supports_attention_backend:
        raise UserError(f"{type(decoder).__name__} does not let its attention be replaced, which is not supported")
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = name
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


def weights_checksum(model: Path) -> str:
    """Of the weights: a run must not be resumed from another base."""
    return " ".join(checksum(file) for file in sorted(model.glob("*.safetensors")))
