"""Prompts for chat models, and the text of their completions.

Chat templates differ. Some refuse a system message, some drop the reasoning of earlier turns and with it that of the
worked example, some open `<think>` themselves, and some end a turn with a token other than the end of sequence.
`chat_dialogue` renders a trial question and checks the result: it takes the first form of the conversation that the
template renders whole, and refuses a template that renders none. No model is treated by its name.
"""

import datetime
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # grading imports this file and must start fast
    from transformers import PreTrainedTokenizerBase

from iapo_bench.config.prompt import PromptConfig
from iapo_bench.errors import UserError, first_line
from iapo_bench.worlds import ANSWER_CLOSE, ANSWER_OPEN, TAGS, THINK_CLOSE, THINK_OPEN
from iapo_bench.worlds.grading import extract_answer, is_formatted

Messages = list[dict[str, Any]]
# A form of the conversation: a note on what is special about it, and a function from question to messages.
Form = tuple[str, Callable[[str], Messages]]

# Some templates print today's date: a prompt must not change overnight.
TODAY = datetime.datetime(2025, 1, 1)
# Template variables that turn reasoning on, tried in order; the first attempt sets none.
SWITCHES: tuple[dict[str, bool], ...] = ({}, {"enable_thinking": True}, {"thinking": True})

# Contains LaTeX, the characters that a template might escape, and a second paragraph.
_TRIAL = "Let $a = \\frac{17}{25}$.\n\nWhat is 17+25, if 1 < 2 & \"3\" > '2'?"
# Separate digits, which even the smallest vocabulary can write.
_PERFECT = f"{THINK_OPEN} 1 7 + 2 5 = 4 2 {THINK_CLOSE} {ANSWER_OPEN} 4 2 {ANSWER_CLOSE}"
# Characters of the private use area, one for each tag.
_SEALS = {tag: chr(0xE000 + i) for i, tag in enumerate(TAGS)}
_REPLY, _NEXT = "Understood.", "Go on, please."


@dataclass(frozen=True)
class Dialogue:
    """The prompt format of one model, and how its completions are read.

    `render`: the prompt text of a question, prefill included.
    `prefill`: start of the completion that the prompt already contains, such as `<think>` and a line break, or nothing.
    `turn_ends`: tokens that the template writes after an assistant's turn; a reply ends with the first.
    `notes`: one line per departure from the plain conversation of system text, worked example and question.
    """

    tokenizer: "PreTrainedTokenizerBase"
    render: Callable[[str], str]
    prefill: str = ""
    turn_ends: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def encode(self, question: str) -> list[int]:
        """Token ids of the prompt; the template writes its own special tokens."""
        return self.tokenizer(self.render(question), add_special_tokens=False).input_ids

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a completion whose text is `text`: without the prefill, with the end of the turn."""
        if self.prefill:
            text = text.removeprefix(THINK_OPEN)
            text = text.lstrip() if self.prefill[-1].isspace() else text
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self._end]

    @property
    def _end(self) -> int:
        """The token that ends a reply."""
        if not self.turn_ends and self.tokenizer.eos_token_id is None:
            raise UserError(f"{self.tokenizer.name_or_path}: the tokenizer has no end-of-sequence token")
        return self.turn_ends[0] if self.turn_ends else int(self.tokenizer.eos_token_id)

    def check(self) -> None:
        """Raise UserError if a correct, well-formed completion would not be read as one."""
        reply = self.encode_reply(_PERFECT)
        text = completion_texts([reply], self.tokenizer, stop_ids=[self._end], prefill=self.prefill)[0]
        if not is_formatted(text) or (extract_answer(text) or "").split() != ["4", "2"]:
            raise UserError(
                f"{self.tokenizer.name_or_path}: a perfect completion would decode to {text!r}: the tokenizer cannot "
                f"represent {' '.join(TAGS)}, choose another model"
            )


def completion_texts(
    token_ids: Iterable[Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    stop_ids: Iterable[int] = (),
    prefill: str = "",
) -> list[str]:
    """The text of each completion, for grading, format checks and storage.

    The text starts with `prefill` and ends before the first of `stop_ids`. Special tokens are dropped, except the tags
    of the format, which are special tokens in some tokenizers.
    """
    stops = set(stop_ids)
    added = tokenizer.added_tokens_decoder
    hidden = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    hidden -= {i for i, token in added.items() if token.content.strip() in TAGS}
    rows = [[i for i in itertools.takewhile(lambda i: i not in stops, row) if i not in hidden] for row in token_ids]
    # batch_decode([]) is [""], not [].
    texts = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False) if rows else []
    return [prefill + text for text in texts]


def chat_dialogue(prompt: PromptConfig, tokenizer: "PreTrainedTokenizerBase") -> Dialogue:
    """The dialogue of a chat model, with its own template or that of `prompt`.

    Raises UserError if there is no template, or if the template renders no form of the conversation whole.
    """
    if tokenizer.chat_template is None and prompt.template is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template: choose a chat model, or write one with "
            "`prompt: FILE.jinja`"
        )
    failure = _Failure(-1, "")
    ways = itertools.product(_forms(prompt), (False, True), (False, True), SWITCHES)
    for form, sealed, as_parts, switches in ways:
        try:
            return _open(tokenizer, prompt, form, sealed, as_parts, switches)
        except _Failure as reason:
            failure = max(failure, reason, key=lambda failure: failure.progress)
    if prompt.template is not None:
        raise UserError(f"the template in `prompt` cannot be used ({failure.reason}): correct it")
    raise UserError(
        f"{tokenizer.name_or_path}: the chat template cannot carry this prompt ({failure.reason}): "
        "write one that can with `prompt: FILE.jinja`"
    )


class _Failure(Exception):
    """Why a form of the conversation failed; among several, the one with the most `progress` says most."""

    def __init__(self, progress: int, reason: str) -> None:
        super().__init__(reason)
        self.progress, self.reason = progress, reason


def _open(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: PromptConfig,
    form: Form,
    sealed: bool,
    as_parts: bool,
    switches: dict[str, bool],
) -> Dialogue:
    """The dialogue in one form of the conversation. Raises _Failure if the template does not render it whole."""
    note, converse = form
    render = partial(_render, tokenizer, prompt, sealed, as_parts, switches)
    header, prefill = _try(render, converse(_TRIAL), whole=prompt.template is None)
    ends, oddity = _turn_ends(render, converse(_TRIAL), tokenizer)
    if prompt.template is not None and tokenizer.chat_template is not None:
        # Under any template a chat model ends its turns as it was trained to.
        taught = partial(_render, tokenizer, PromptConfig(), False, False, {})
        ends = (*ends, *_turn_ends(taught, [_message("user", _TRIAL)], tokenizer)[0])
    return Dialogue(
        tokenizer,
        lambda question: render(question, converse(question)) + header,
        prefill,
        ends,
        tuple(_notes(note, sealed, as_parts, switches, header, oddity)),
    )


def _forms(prompt: PromptConfig) -> Iterator[Form]:
    """The forms of the conversation to try, the plainest first."""
    system, example = prompt.system or "", prompt.example or None
    shown = [_message("user", _ask(example.question, prompt)), _message("assistant", example.reply)] if example else []

    def turns(system: str, shown: Messages, fold: bool, question: str) -> Messages:
        messages = [*shown, _message("user", _ask(question, prompt))]
        if fold:
            first = _join(system, messages[0]["content"])
            return [_message("user", first), *messages[1:]]
        return [*([_message("system", system)] if system else []), *messages]

    folded = "the system text stands in the first user turn"
    yield "", partial(turns, system, shown, False)
    if prompt.template is not None:
        return
    yield folded, partial(turns, system, shown, True)
    if example:
        told = "the worked example is told in the system text"
        text = _join(system, f"For example, the user asks:\n{example.question}", f"You reply:\n{example.reply}")
        yield told, partial(turns, text, [], False)
        yield f"{told}, which stands in the first user turn", partial(turns, text, [], True)


def _ask(question: str, prompt: PromptConfig) -> str:
    return _join(question, prompt.instruction)


def _join(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: PromptConfig,
    sealed: bool,
    as_parts: bool,
    switches: dict[str, bool],
    question: str,
    messages: Messages,
    *,
    opened: bool = True,
) -> str:
    """The text of a conversation; `opened`: with the start of the assistant's turn. Raises what the template raises.

    `sealed`: hide the tags of system and user text from the template; some delete `/think` there as a switch.
    A user-supplied template gets, besides the messages, the parts that make them up.
    """
    if sealed:
        messages = [m if m["role"] == "assistant" else m | {"content": _seal(m["content"])} for m in messages]
    if as_parts:
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    own: dict[str, Any] = {}
    if prompt.template is not None:
        own = prompt.model_dump(include={"system", "example", "instruction"}) | {"question": question}
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=prompt.template,
        tokenize=False,
        add_generation_prompt=opened,
        strftime_now=TODAY.strftime,
        **own,
        **switches,
    )
    return _unseal(text) if sealed else text


def _seal(text: str) -> str:
    for tag, seal in _SEALS.items():
        text = text.replace(tag, seal)
    return text


def _unseal(text: str) -> str:
    for tag, seal in _SEALS.items():
        text = text.replace(seal, tag)
    return text


def _try(render: Callable[..., str], messages: Messages, *, whole: bool) -> tuple[str, str]:
    """The header of the assistant's turn, if the template leaves it out, and the prefill. Raises _Failure.

    `whole`: every message must be rendered, not the question alone.
    """
    try:
        text = render(_TRIAL, messages)
    except Exception as error:  # a template can raise anything
        raise _Failure(0, first_line(error)) from None
    ends: list[int] = []
    for message in messages if whole else [_message("user", _TRIAL)]:
        if (found := _find(message["content"], text)) is None:
            what = {"system": "the system text", "assistant": "the worked example"}.get(message["role"], "the question")
            raise _Failure(1, f"it leaves out {what}")
        if message["role"] == "assistant" and THINK_CLOSE in text[ends[-1] : found.start()]:
            raise _Failure(2, "it puts an empty reasoning block before the worked example's reasoning")
        ends.append(found.end())
    header = _missing_header(render, messages, text)
    tail = text[ends[-1] :] + header
    if THINK_CLOSE in tail:
        raise _Failure(3, f"it closes the reasoning with {THINK_CLOSE} before the completion begins")
    if ANSWER_OPEN in tail:
        raise _Failure(3, f"it opens the answer with {ANSWER_OPEN} before the completion begins")
    if render(_TRIAL, messages) != text:
        raise _Failure(3, "it renders the same prompt in different ways")
    _, opened, rest = tail.partition(THINK_OPEN)
    return header, opened + rest


def _missing_header(render: Callable[..., str], messages: Messages, text: str) -> str:
    """The text before an assistant's reply, but not before a user's, if the template leaves it out of the prompt
    `text`."""

    def before(reply: Messages) -> str:
        try:
            said = render(_TRIAL, [*messages, *reply], opened=False)
        except Exception:  # the prompt itself rendered, so this template takes no such turn
            return ""
        found = _find(_REPLY, said)
        return said[: found.start()] if found else said

    header = before([_message("assistant", _REPLY)])
    if before([]) != text or not header.startswith(text) or header == before([_message("user", _REPLY)]):
        return ""
    return header.removeprefix(text) if header.removeprefix(text).strip() else ""


def _turn_ends(
    render: Callable[..., str], messages: Messages, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[tuple[int, ...], str]:
    """The tokens after an assistant's reply, as the last turn and before another; and, if there are none, the text
    found there instead."""
    marks = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip() not in ("", *TAGS)}
    found, written = [], ""
    replied = [*messages, _message("assistant", _REPLY)]
    for turns in (replied, [*replied, _message("user", _NEXT)]):
        try:
            text = render(_TRIAL, turns, opened=False)
        except Exception:  # as above
            continue
        reply, following = _find(_REPLY, text), _find(_NEXT, text)
        if reply is None:
            continue
        rest = text[reply.end() : following.start() if following else None]
        ids = tokenizer(rest, add_special_tokens=False).input_ids
        found += [i for i in ids if i in marks][:1]
        written = written or rest.strip()
    return tuple(dict.fromkeys(found)), "" if found else written


def _find(piece: str, text: str) -> re.Match | None:
    """The last match of `piece` in `text`; templates may trim or change its white space."""
    pattern = re.compile(r"\s+".join(map(re.escape, piece.split())))
    return next(iter(reversed(list(pattern.finditer(text)))), None)


def _notes(
    note: str, sealed: bool, as_parts: bool, switches: dict[str, bool], header: str, oddity: str
) -> Iterator[str]:
    if note:
        yield note
    if sealed:
        yield "the tags were put in after the template, which changes them"
    if as_parts:
        yield "contents are lists of parts"
    for switch in switches:
        yield f"the template's {switch} is set"
    if header:
        yield f"the template does not open the assistant's turn: {header!r} was added"
    if oddity:
        yield f"a turn ends with {oddity[:40]!r}, which is no token: only the end of sequence stops a completion"
