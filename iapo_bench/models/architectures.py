"""The sizes of the published architectures, for planning, and for trials without the weights.

From the models' own `config.json`. The parameter counts are those of their model cards: 0.49, 1.54 and 7.61 billion.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

from iapo_bench.errors import unknown
from iapo_bench.seeds import stream_seed


@dataclass(frozen=True)
class Architecture:
    """A decoder with grouped-query attention and a gated MLP; `qkv_bias` as in Qwen2, none in Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = True

    @property
    def head_size(self) -> int:
        """Channels per head."""
        return self.hidden // self.heads

    @property
    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of the matrices of one layer: query, key, value, output, gate, up, down."""
        kv = self.kv_heads * self.head_size
        attention = [(self.hidden, self.hidden), (self.hidden, kv), (self.hidden, kv), (self.hidden, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    @property
    def matrix_parameters(self) -> int:
        """Weights that multiply every token: the layers' matrices and the output layer, tied or not."""
        return self.layers * sum(i * o for i, o in self.linear_shapes) + self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, a tied one counted once."""
        kv = self.kv_heads * self.head_size
        biases = self.hidden + 2 * kv if self.qkv_bias else 0
        vectors = self.layers * (2 * self.hidden + biases) + self.hidden  # norms, biases, last norm
        return self.matrix_parameters + vectors + (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def cache_channels(self) -> int:
        """Elements of the key-value cache per token."""
        return 2 * self.layers * self.kv_heads * self.head_size

    def config(self) -> PretrainedConfig:
        """The configuration of a model of these sizes: a Qwen2.5, or a Llama without `qkv_bias`."""
        sizes = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "tie_word_embeddings": self.tied,
        }
        if not self.qkv_bias:
            return LlamaConfig(**sizes, max_position_embeddings=8192)
        return Qwen2Config(**sizes, max_position_embeddings=32_768, rms_norm_eps=1e-6, rope_theta=1e6)


ARCHITECTURES = {
    "qwen2.5-0.5b": Architecture(896, 24, 14, 2, 4864, 151_936, tied=True),
    "qwen2.5-1.5b": Architecture(1536, 28, 12, 2, 8960, 151_936, tied=True),
    "qwen2.5-7b": Architecture(3584, 28, 28, 4, 18_944, 152_064, tied=False),
    "smollm2-135m": Architecture(576, 30, 9, 3, 1536, 49_152, tied=True, qkv_bias=False),
}

_QWEN = [name for name in ARCHITECTURES if name.startswith("qwen")]


def qwen_config(name: str) -> PretrainedConfig:
    """The configuration of a Qwen2.5 architecture. Raises UserError for any other name."""
    if name not in _QWEN:
        raise unknown("architecture", name, _QWEN)
    return ARCHITECTURES[name].config()


def build_random(name: str, seed: int = 0) -> PreTrainedModel:
    """A Qwen2.5 model at its real size with random weights, float32. Raises UserError for an unknown architecture."""
    config = qwen_config(name)
    torch.manual_seed(stream_seed(seed, "initialisation"))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
