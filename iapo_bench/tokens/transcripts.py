"""The user's own transcripts, scored token by token: each token's information about the answer.

The input is JSON lines with prompts and completions, as text or token ids; the output a table with one row per token,
and a page that shows it (`iapo_bench.tokens.heatmap`). Every row is read and checked before the first is scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iapo_bench.errors import UserError
from iapo_bench.files import read_jsonl, whole_file
from iapo_bench.machine.provenance import write_provenance
from iapo_bench.method import Signal
from iapo_bench.models.checkpoints import accelerator, context_length, load_model, load_tokenizer, vocabulary_size
from iapo_bench.models.token_texts import token_texts
from iapo_bench.progress import progress
from iapo_bench.rollout import Completion
from iapo_bench.rollout.collate import collate
from iapo_bench.signals.statistics import compute_signals
from iapo_bench.tokens.heatmap import ScoredTranscript, heatmap_page
from iapo_bench.worlds.datasets.micro import VOCABULARY, token_roles

BATCH = 8  # transcripts
MICRO_BATCH_TOKENS = 8192

_NEEDS = frozenset({Signal.OLD_LOGP, Signal.TOKEN_ENTROPY, Signal.ANSWER_ENTROPY})


@dataclass(frozen=True)
class Transcript:
    """A prompt and a completion as token ids, neither empty."""

    id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    correct: bool | None = None


def score_transcripts(
    *, model: Path, transcripts: Path, out: Path, postfix: str, temperature: float, limit: int | None
) -> None:
    """Write `out/tokens.parquet` and `out/informativeness.html`, both or neither, and `out/provenance.json`.

    Raises UserError, before anything is scored, for transcripts that cannot be read or do not fit the model.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a directory")
    tokenizer = load_tokenizer(model)
    network = load_model(model).to(accelerator())
    postfix_ids = tokenizer(postfix, add_special_tokens=False).input_ids
    if not postfix_ids:
        raise UserError("--postfix is empty: give a text that makes the model answer")
    room = context_length(model) - len(postfix_ids)
    rows = read_transcripts(transcripts, tokenizer, vocabulary=vocabulary_size(model), room=room, limit=limit)
    scored = score(network, tokenizer, rows, postfix_ids=postfix_ids, temperature=temperature)
    page = heatmap_page(scored, model=str(model), postfix=postfix, temperature=temperature)
    with whole_file(out / "tokens.parquet") as table, whole_file(out / "informativeness.html") as html:
        token_table(scored).to_parquet(table, index=False)
        html.write_text(page, encoding="utf-8")
    write_provenance(
        out / "provenance.json",
        config={"postfix": postfix, "temperature": temperature, "limit": limit},
        inputs=[transcripts, *sorted(model.glob("*.safetensors"))],
        seeds={},
        extra={"transcripts": len(scored), "tokens": sum(len(row.tokens) for row in scored)},
    )


def read_transcripts(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, room: int, limit: int | None = None
) -> list[Transcript]:
    """The first `limit` transcripts of a JSON-lines file.

    A row has `prompt_ids` and `completion_ids`, or else `prompt` and `completion`: text that is tokenised without
    adding special tokens, so the prompt includes its chat template. `id` (default: the line number) and `correct` are
    optional. Raises UserError naming the line for anything else, for ids not below `vocabulary`, and for more than
    `room` tokens.
    """
    try:
        rows: list[Any] = read_jsonl(path, ())[:limit]
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    transcripts: dict[str, Transcript] = {}
    for number, row in enumerate(rows, start=1):
        try:
            transcript = _parse(row, number, tokenizer)
            _check(transcript, vocabulary, room)
            if transcript.id in transcripts:
                raise UserError(f"the id '{transcript.id}' occurs twice")
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        transcripts[transcript.id] = transcript
    return list(transcripts.values())


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    transcripts: Sequence[Transcript],
    *,
    postfix_ids: list[int],
    temperature: float,
) -> list[ScoredTranscript]:
    """The log-probability and entropies of every token under `model`, in the order of `transcripts`."""
    speaks_micro = set(tokenizer.get_vocab()) <= set(VOCABULARY)
    scored = []
    with progress(total=len(transcripts), desc="informativeness", unit="transcript") as bar:
        for start in range(0, len(transcripts), BATCH):
            part = transcripts[start : start + BATCH]
            batch = collate(
                [list(row.prompt_ids) for row in part],
                [Completion(row.completion_ids, (0.0,) * len(row.completion_ids), "stop") for row in part],
                [bool(row.correct) for row in part],
                [True] * len(part),
                group_size=1,
                max_tokens=max(len(row.completion_ids) for row in part),
                pad_id=tokenizer.pad_token_id,
                device=model.device,
            )
            batch = compute_signals(
                model,
                batch,
                _NEEDS,
                temperature=temperature,
                micro_batch_tokens=MICRO_BATCH_TOKENS,
                postfix_ids=postfix_ids,
            )
            logp_BT, entropy_BT, answer_BS = batch.old_logp_BT, batch.token_entropy_BT, batch.answer_entropy_BS
            assert logp_BT is not None  # all three were asked for
            assert entropy_BT is not None
            assert answer_BS is not None
            for i, row in enumerate(part):
                length = len(row.completion_ids)
                words = tokenizer.convert_ids_to_tokens(list(row.completion_ids))
                scored.append(
                    ScoredTranscript(
                        id=row.id,
                        # Decoded rather than copied from the file: what the model read.
                        prompt=tokenizer.decode(list(row.prompt_ids), clean_up_tokenization_spaces=False),
                        tokens=tuple(token_texts(tokenizer, row.completion_ids)),
                        token_ids=row.completion_ids,
                        roles=tuple(role.value for role in token_roles(words)) if speaks_micro else None,
                        logp=tuple(logp_BT[i, :length].tolist()),
                        entropy=tuple(entropy_BT[i, :length].tolist()),
                        answer_entropy=tuple(answer_BS[i, : length + 1].tolist()),
                        correct=row.correct,
                    )
                )
            bar.update(len(part))
    return scored


def token_table(scored: Sequence[ScoredTranscript]) -> pd.DataFrame:
    """One row a token; log-probability, entropies and information in nats."""
    frames = [
        pd.DataFrame(
            {
                "transcript": row.id,
                "position": range(len(row.tokens)),
                "token": row.tokens,
                "token_id": row.token_ids,
                "role": pd.Series(row.roles or [None] * len(row.tokens), dtype="object"),
                "logp": row.logp,
                "entropy": row.entropy,
                "answer_entropy_before": row.answer_entropy[:-1],
                "answer_entropy_after": row.answer_entropy[1:],
                "information": row.information,
            }
        )
        for row in scored
    ]
    return pd.concat(frames, ignore_index=True)


def _parse(row: Any, number: int, tokenizer: PreTrainedTokenizerBase) -> Transcript:
    if not isinstance(row, dict):
        raise UserError("a row must be an object with 'prompt' and 'completion'")
    name, correct = row.get("id", number), row.get("correct")
    if isinstance(name, bool) or not isinstance(name, str | int) or not _encodable(str(name)):
        raise UserError("'id' must be text or a whole number")
    if not isinstance(correct, bool | None):
        raise UserError("'correct' must be true or false")
    if "prompt_ids" in row or "completion_ids" in row:
        prompt_ids, completion_ids = _ids(row, "prompt_ids"), _ids(row, "completion_ids")
    else:
        prompt, completion = _text(row, "prompt"), _text(row, "completion")
        prompt_ids, completion_ids = (
            tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for text in (prompt, completion)
        )
    return Transcript(str(name), prompt_ids, completion_ids, correct)


def _check(transcript: Transcript, vocabulary: int, room: int) -> None:
    for kind, ids in (("prompt", transcript.prompt_ids), ("completion", transcript.completion_ids)):
        if not ids:
            raise UserError(f"the {kind} is empty")
        for i in ids:
            if not 0 <= i < vocabulary:
                raise UserError(f"the {kind} has token id {i}, but the model's vocabulary has {vocabulary} tokens")
    tokens = len(transcript.prompt_ids) + len(transcript.completion_ids)
    if tokens > room:
        raise UserError(f"prompt and completion have {tokens} tokens, but the context leaves {room} beside the postfix")


def _ids(row: dict[str, Any], field: str) -> tuple[int, ...]:
    value = _field(row, field)
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        raise UserError(f"'{field}' must be a list of token ids")
    return tuple(value)


def _text(row: dict[str, Any], field: str) -> str:
    value = _field(row, field)
    if not isinstance(value, str):
        raise UserError(f"'{field}' must be text")
    if not _encodable(value):
        raise UserError(f"'{field}' contains a lone surrogate, which is not a character")
    return value


def _field(row: dict[str, Any], field: str) -> Any:
    if field not in row:
        raise UserError(f"lacks the field '{field}'")
    return row[field]


def _encodable(text: str) -> bool:
    """Whether UTF-8 can encode `text`: JSON may escape lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
