"""Prompts as token ids for the rollout engine."""

from pathlib import Path

from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import context_length, vocabulary_size
from iapo_bench.worlds import Problem
from iapo_bench.worlds.dialogue import Dialogue


def encode(
    problems: list[Problem], dialogue: Dialogue, model: Path, max_tokens: int, *, postfix: int = 0
) -> list[list[int]]:
    """Prompt token ids, one list per problem.

    Raises UserError for a prompt that leaves less of the model's context than `max_tokens`, and `postfix` tokens to
    read answers with; for a tokenizer that cannot write a correct completion; for a question with the text of a special
    token; and for a token beyond the model's vocabulary.
    """
    dialogue.check()
    added = dialogue.tokenizer.added_tokens_decoder.values()
    marks = [token.content for token in added if token.special and token.content.strip()]
    prompts = [dialogue.encode(problem.question) for problem in problems]
    room, vocabulary = context_length(model) - max_tokens - postfix, vocabulary_size(model)
    for problem, prompt in zip(problems, prompts, strict=True):
        if mark := next((mark for mark in marks if mark in problem.question), None):
            raise UserError(
                f"problem '{problem.id}' contains {mark!r}, a special token of the model: reword or drop the problem"
            )
        if len(prompt) > room:
            raise UserError(
                f"problem '{problem.id}' has {len(prompt)} prompt tokens; the model's context leaves {max(room, 0)} "
                f"beside max_tokens={max_tokens}{f' and a postfix of {postfix}' * bool(postfix)}: lower max_tokens or "
                "drop the problem"
            )
        if (last := max(prompt, default=0)) >= vocabulary:
            token = dialogue.tokenizer.convert_ids_to_tokens(last)
            raise UserError(
                f"{model}: the prompt has token id {last} ({token!r}) but the weights have {vocabulary} embeddings: "
                "use the tokenizer that belongs to these weights"
            )
    return prompts
