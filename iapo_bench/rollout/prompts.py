"""Prompts as the engine gets them."""

from pathlib import Path

from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import context_length
from iapo_bench.worlds import Problem
from iapo_bench.worlds.dialogue import Dialogue


def encode(problems: list[Problem], dialogue: Dialogue, model: Path, max_tokens: int) -> list[list[int]]:
    """Prompt token ids. Raises UserError for a prompt that does not fit the model's context with its completion, and
    for a tokenizer in which no completion could be right."""
    dialogue.check()
    prompts = [dialogue.encode(problem.question) for problem in problems]
    room = context_length(model) - max_tokens
    for problem, prompt in zip(problems, prompts, strict=True):
        if len(prompt) > room:
            raise UserError(
                f"problem '{problem.id}' has {len(prompt)} prompt tokens; the model's context leaves {max(room, 0)} "
                f"beside max_tokens={max_tokens}: lower max_tokens or drop the problem"
            )
    return prompts
