"""Building, loading and saving the models that are trained and sampled."""

import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

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

from iapo_bench.errors import UserError, damaged, first_line
from iapo_bench.files import read_json, whole_directory, write_json
from iapo_bench.machine.provenance import checksum
from iapo_bench.models.lora import exact_dtype, merged_state
from iapo_bench.seeds import stream_seed
from iapo_bench.worlds.dialogue import Dialogue

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Exceptions of an architecture whose inputs or outputs differ from a decoder's.
ODD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_DECODED: WeakSet[PreTrainedModel] = WeakSet()  # models that passed `_require_same_logits`
WIDENED = "adapters_merged_in"  # note in training.json: the weights have a wider dtype than the base's

CHUNK_LOGITS = 2**26  # in memory at once: 256 MiB of float32


def build_micro(
    tokenizer: PreTrainedTokenizerBase, *, hidden: int, layers: int, heads: int, seed: int
) -> PreTrainedModel:
    """A Llama decoder with random weights, two query heads to a key head, tied embeddings, a context of 256 tokens.

    Not Qwen2, for which AutoTokenizer loads a byte-level tokenizer even if the checkpoint has another.
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

    `stored_dtype` may override `dtype`. Raises UserError when the directory is not a checkpoint, a weight is not
    finite, or the weights do not match the config: transformers would fill the gaps with random numbers and carry on.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a checkpoint directory (no config.json)")
    generation = read_generation_config(path)
    with damaged(path, "make or fetch the checkpoint again"):
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=stored_dtype(path, dtype),
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := info.get(kind):
            first = sorted(str(name) for name in names)[0]
            raise UserError(f"{path}: weights do not match config.json ({kind.replace('_', ' ')}: {first})")
    require_finite(model.state_dict(), str(path))
    adopt_generation_config(model, generation, path)
    return model.eval()


def stored_dtype(path: Path, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which to load the checkpoint `path`: `dtype`, or float32 if adapters were merged into weights of
    lower precision, because rounding the sum would lose small steps of training."""
    notes = path / "training.json"
    return torch.float32 if notes.is_file() and WIDENED in read_json(notes) else dtype


def require_finite(state: Any, what: str) -> None:
    """Raise UserError unless all numbers in nested dicts, lists and tensors are finite; it names the first."""

    def first(value: Any, place: str) -> str | None:
        if isinstance(value, dict | list | tuple):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            return next((found for key, part in parts if (found := first(part, f"{place}.{key}".lstrip(".")))), None)
        if isinstance(value, torch.Tensor):
            # Numbers with a finite sum are finite, and a sum takes a fraction of the time.
            finite = bool(value.sum().isfinite()) or bool(value.isfinite().all())
            return None if finite else place or "a value"
        return place if isinstance(value, float) and not math.isfinite(value) else None

    if place := first(state, ""):
        raise UserError(f"{what}: {place} contains NaN or infinity: the model is broken, use an earlier checkpoint")


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout probability and every jitter to 0, in modules and configs, for good.

    RL updates the policy that sampled, which had none, and the draws would not follow our seeds. The model stays in its
    mode: activation checkpointing works in training mode only.
    """
    configs = [model.config, *(module.config for module in model.modules() if hasattr(module, "config"))]
    for config in configs:  # the list grows during the loop
        configs += [
            part for part in vars(config).values() if isinstance(part, PretrainedConfig) and part not in configs
        ]
    for holder in (*model.modules(), *configs):
        for name, value in list(vars(holder).items()):
            stochastic = "drop" in name or "jitter" in name or (name == "p" and isinstance(holder, _DropoutNd))
            if stochastic and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(holder, name, type(value)(0))


def load_skeleton(path: Path) -> PreTrainedModel:
    """The model of a checkpoint directory on the meta device, for its configs. Raises UserError without config.json."""
    if not (path / "config.json").is_file():
        raise UserError(f"{path} is not a checkpoint directory (no config.json)")
    generation = read_generation_config(path)
    with damaged(path, "make or fetch the checkpoint again"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, local_files_only=True))
    adopt_generation_config(model, generation, path)
    return model


def read_generation_config(path: Path) -> GenerationConfig | None:
    """The generation config of a checkpoint directory, as `sound_generation_config` leaves it; None without a file.

    Raises UserError for one that cannot be read: transformers would ignore it, and its stop tokens.
    """
    file = path / "generation_config.json"
    if not file.is_file():
        return None
    with damaged(file, "correct or remove it"):
        read_json(file, "correct or remove it")
        config = GenerationConfig.from_pretrained(path, local_files_only=True)
        ids = [i for name in _TOKEN_IDS for i in _as_list(getattr(config, name))]
        if not all(type(i) is int for i in ids):
            raise ValueError("token ids must be whole numbers")
    return sound_generation_config(config, path)


def sound_generation_config(config: GenerationConfig, name: str | Path) -> GenerationConfig:
    """The config itself or, if transformers would refuse to save it, only its token ids, all that sampling here uses;
    then a warning names the checkpoint `name`."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        keys = ", ".join(re.findall(r"^- `(\w+)`", str(error), re.MULTILINE))
        click.echo(
            f"warning: {name}: the generation config contradicts itself ({keys}): only its token ids are kept", err=True
        )
        ids = {name: getattr(config, name) for name in _TOKEN_IDS}
        # Some checkpoints pad with -1, which transformers refuses to save as well.
        return GenerationConfig(**{name: i for name, i in ids.items() if not (isinstance(i, int) and i < 0)})
    return config


def adopt_generation_config(model: PreTrainedModel, stated: GenerationConfig | None, name: str | Path) -> None:
    """Give a model the generation config `stated` by its checkpoint `name`, or else a sound form of its own.

    End-of-sequence ids outside the vocabulary are removed from `stated`, with a warning.
    """
    if stated is not None:
        named, vocabulary = _as_list(stated.eos_token_id), model.config.get_text_config().vocab_size
        known = [i for i in named if 0 <= i < vocabulary]
        if known != named:
            beyond = ", ".join(str(i) for i in named if i not in known)
            click.echo(
                f"warning: {name}: generation_config.json ends a sequence with {beyond}, which is no token of a "
                f"vocabulary of {vocabulary}: left out",
                err=True,
            )
            stated.eos_token_id = known or None
    model.generation_config = stated or sound_generation_config(model.generation_config, name)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory, which pads with the end of sequence if it names no padding, or
    one without an embedding. Raises UserError if there is none, or it has no end-of-sequence token."""
    if not path.is_dir():
        raise UserError(f"{path} is not a checkpoint directory")
    with damaged(f"{path}: the tokenizer", "make or fetch the checkpoint again"):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        int(tokenizer.model_max_length), tokenizer.all_special_ids  # the loader checks neither
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: the tokenizer has no end-of-sequence token")
    known = vocabulary_size(path) if (path / "config.json").is_file() else math.inf
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= known:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All end-of-sequence ids: those of the tokenizer, the generation config and the config."""
    text = model.config.get_text_config()
    named = [source.eos_token_id for source in (tokenizer, model.generation_config, model.config, text) if source]
    ids = {i for value in named for i in _as_list(value)}
    # Some configs default to an id outside their vocabulary.
    return tuple(sorted(i for i in ids if 0 <= i < text.vocab_size))


def stop_ids(model: PreTrainedModel, dialogue: Dialogue) -> tuple[int, ...]:
    """Ids of all tokens that end a completion: the end-of-sequence ids and the chat template's ends of turn."""
    return tuple(sorted({*eos_ids(model, dialogue.tokenizer), *dialogue.turn_ends}))


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]


def context_length(path: Path) -> int:
    """The context length in tokens, prompt and completion together, of the model at `path`."""
    with damaged(path, "make or fetch the checkpoint again"):
        return context_of(AutoConfig.from_pretrained(path, local_files_only=True))


def context_of(config: PretrainedConfig) -> int:
    """The context length in tokens of a configuration. Raises UserError if it states none."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        if isinstance(length := getattr(text, name, None), int) and length > 0:
            return length
    raise UserError(f"the config of {config.model_type} states no context length: set max_position_embeddings")


def vocabulary_size(path: Path) -> int:
    """The number of token embeddings of the model at `path`."""
    with damaged(path, "make or fetch the checkpoint again"):
        return int(AutoConfig.from_pretrained(path, local_files_only=True).get_text_config().vocab_size)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, notes: dict | None = None
) -> None:
    """Write weights, config and tokenizer to `path`, whole or not at all; `notes` go to `training.json` beside them.

    Adapters are merged into their weights in float32, so the result is a plain checkpoint. Raises UserError when a
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

    Raises UserError if one of them is missing, or the two together do not give the model's logits.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config.get_text_config(), name, None) not in (None, 1, 1.0):
            raise UserError(f"{type(model).__name__} transforms its logits ({name}), which is not supported")
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if decoder is model:  # some classes return themselves
        decoder = getattr(model, "model", model)
    if model not in _DECODED:
        _require_same_logits(model, decoder, head)
        _DECODED.add(model)
    return decoder, head


@torch.no_grad()
def _require_same_logits(model: PreTrainedModel, decoder: Any, head: Any) -> None:
    """Raise UserError unless the output layer on the decoder's states gives the model's own logits for a few tokens,
    even if more follow: rows are padded on the right, without a mask."""
    name = type(model).__name__
    ids = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        with evaluating(model), unobserved(model):
            own = model(input_ids=ids, use_cache=False).logits.float()
            padded = torch.nn.functional.pad(ids, (0, 2))
            ours = head(decoder(input_ids=padded, use_cache=False).last_hidden_state[:, :-2]).float()
            gap = float((ours - own).abs().max() / own.abs().max().clamp(min=1))
    except torch.OutOfMemoryError:
        raise
    except ODD as error:
        reason = first_line(error)
        raise UserError(
            f"{name} is not a decoder with an output layer ({type(error).__name__}: {reason}), which is not supported"
        ) from error
    require_finite(own, f"{name}, given a few tokens")
    if not gap <= (1e-4 if model.dtype == torch.float32 else 0.05):
        raise UserError(
            f"{name} transforms its logits or attends to later tokens (relative difference {gap:.3g}), "
            "which is not supported"
        )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def unobserved(model: torch.nn.Module) -> Iterator[None]:
    """The model without the hooks of its modules, so that counters and recorders do not see the passes of a check."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(module, name, getattr(module, name)) for module in model.modules() for name in hooks]
    for module, name, _ in kept:
        setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for module, name, before in kept:
            setattr(module, name, before)


@contextmanager
def attention_implementation(decoder: PreTrainedModel, name: str) -> Iterator[None]:
    """Use the registered attention `name` in `decoder` inside the block.

    Raises UserError for an architecture whose attention cannot be replaced.
    """
    if not decoder._supports_attention_backend:
        raise UserError(f"{type(decoder).__name__} does not support custom attention functions, which are needed here")
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = name
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


def weights_checksum(model: Path) -> str:
    """SHA-256 of the safetensors, so a run cannot resume from a different base."""
    return " ".join(checksum(file) for file in sorted(model.glob("*.safetensors")))
