"""Chat templates of every kind, that carry a prompt or cannot, and small models with them."""

from pathlib import Path

from builders import open_world
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from iapo_bench.config.prompt import PromptConfig
from iapo_bench.models.checkpoints import save_model
from iapo_bench.models.sources import _byte_tokenizer
from iapo_bench.worlds.dialogue import Dialogue

# Each kind of template by what is odd about it, in its shortest form. `{turns}` are plain turns.
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
STRIPPED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
SWITCHED = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
)
CARRIED = {
    "plain": TURNS + OPEN,
    "drops reasoning": STRIPPED + OPEN,
    "drops reasoning and opens it": STRIPPED + OPEN.replace("assistant\n", "assistant\n<think>\n"),
    "opens the reasoning without a line break": TURNS + OPEN.replace("assistant\n", "assistant\n<think>"),
    "always opens the reasoning": TURNS + "<|im_start|>assistant\n<think>\n",
    "refuses a system message": NO_SYSTEM + TURNS + OPEN,
    "wants turns to alternate": ALTERNATING + TURNS + OPEN,
    "drops a system message silently": TURNS.replace("in messages", "in messages if m.role != 'system'") + OPEN,
    "says the system text with the last question": (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + OPEN
    ),
    "reads the last message only": "<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n" + OPEN,
    "puts an empty reasoning before each reply": (
        TURNS.replace("{{ m.content }}", "{{ '<think>\n</think>' if m.role == 'assistant' }}{{ m.content }}") + OPEN
    ),
    "closes the reasoning unless it is switched on": TURNS + SWITCHED,
    "the same by another name": TURNS + SWITCHED.replace("enable_thinking", "thinking"),
    "never opens the assistant's turn": TURNS,
    "fails without add_generation_prompt": TURNS
    + "{{ raise_exception('x') if add_generation_prompt is undefined }}"
    + OPEN,
    "takes a part of the tags for a switch": (
        TURNS.replace("m.content", "(m.content.replace('/think', '') if m.role != 'assistant' else m.content)") + OPEN
    ),
    "trims": TURNS.replace("m.content", "m.content | trim") + OPEN,
    "has lists of parts only": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content if part.type == 'text' %}"
        "{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}" + OPEN
    ),
    "changes white space": TURNS.replace("m.content", "m.content.split() | join(' ')") + OPEN,
    "adds the date": "<|im_start|>system\nToday is {{ strftime_now('%d %B %Y') }}.<|im_end|>\n" + TURNS + OPEN,
    "adds a system text where there is none": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + TURNS + OPEN
    ),
    "begins with the beginning of a sequence": "{{ bos_token }}" + TURNS + OPEN,
}
REFUSED = {
    "closes the reasoning": (
        TURNS + OPEN.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
        "closes the reas",
    ),
    "opens the answer": (TURNS + OPEN.replace("assistant\n", "assistant\n<answer>"), "opens the answer with <answer>"),
    "draws lots": (TURNS + "{{ range(99999) | random }}" + OPEN, "renders the same prompt in different ways"),
    "is no template": (TURNS + "{% if %}", "Expected an expression"),
    "leaves the question out": ("<|im_start|>{{ messages[0].role }}" + OPEN, "leaves out the"),
    "escapes": (TURNS.replace("m.content", "m.content | e") + OPEN, "leaves out the"),
    "drops backslashes": (TURNS.replace("m.content", "m.content | replace('\\\\', '')") + OPEN, "leaves out the"),
    "keeps a paragraph": (TURNS.replace("m.content", "m.content.split('\n\n')[-1]") + OPEN, "leaves out the"),
    "raises always": ("{{ raise_exception('tools only') }}", "tools only"),
}


def tokenizer_with(template: str | None, *special: str) -> PreTrainedTokenizerBase:
    tokenizer = _byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": list(special)})
    tokenizer.chat_template = template
    tokenizer.name_or_path = "some-model"
    return tokenizer


def chat(template: str, *special: str, prompt: PromptConfig | None = None) -> Dialogue:
    return open_world("gsm8k").dialogue(tokenizer_with(template, *special), prompt)


def save(tokenizer: PreTrainedTokenizerBase, folder: Path, **config: object) -> Path:
    """A model of some thousand weights with that tokenizer."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, **size, **ids, **config}
    save_model(LlamaForCausalLM(LlamaConfig(**options)), tokenizer, folder)
    return folder
