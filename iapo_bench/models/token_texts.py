"""The text of single tokens, for any tokenizer."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # a decoder's replacement for bytes that are no character
CHARACTER_BYTES = 4  # at most, in UTF-8


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of every token: what it adds to the decoded text, a space before it included.

    A token that ends within a character (byte-level vocabularies) is `\\ufffd`; the token that completes the character
    has all of it.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.decode(list(ids[start:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts: list[str] = []
    before = done = 0  # the last whole token starts at `before`, the first that is not decoded yet at `done`
    for end in range(1, len(ids) + 1):
        # The previous token decides whether a space comes between the two; earlier tokens cannot matter.
        text = decode(before, end)[len(decode(before, done)) :]
        if text.endswith(BROKEN) and end - done < CHARACTER_BYTES:
            texts.append(BROKEN)
            continue
        if end - done > 1:  # tokens that never became a character have their mark already
            text = text.lstrip(BROKEN) or BROKEN
        texts.append(text)
        before, done = done, end
    return texts
