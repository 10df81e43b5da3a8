"""Hugging Face tokenizers and text that is only text: segments to token ids, special tokens' names read as text.

It knows nothing of templates or examples.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from slm.chat.segments import Markers, Segment, marker_like


def markers_of(tokenizer: Any) -> Markers:
    """The texts of a tokenizer's special tokens, and of those that may be used like them."""
    decoder = tokenizer.added_tokens_decoder.values()
    control = {*tokenizer.all_special_tokens, *(str(token) for token in decoder if token.special)}
    added = {str(token) for token in decoder} - control
    return Markers(tuple(control), tuple(added), marker_like(tokenizer.get_vocab()))


@contextmanager
def special_texts_as_text(core: Any) -> Iterator[None]:
    """Within the block the names of special tokens in a text are text. core: a `tokenizers.Tokenizer`."""
    before = core.encode_special_tokens
    core.encode_special_tokens = True
    try:
        yield
    finally:
        core.encode_special_tokens = before


class SegmentTokenizer:
    """Segments to token ids as the tokenizer reads the whole text, except that what is text stays text.

    A tokenizer treats the beginning of a text otherwise than what follows a special token (SentencePiece's space), so
    segments cannot be encoded apart. A copy of it reads them in one go, in which every special token of the prompt has
    a name that nobody can guess. Where an added token's name has to be parted, tokenizers that put a space before
    every piece of text put one there.
    """

    def __init__(self, core: Any) -> None:
        """core: a `tokenizers.Tokenizer`, which is copied when it is first needed."""
        self._core = core
        self._copy: Any = None
        self._secret = secrets.token_hex(16)
        self._names: dict[str, str] = {}
        self._ids: dict[int, int | None] = {}

    def ids(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids, without BOS or EOS of the tokenizer's own."""
        if len(segments) == 1 and segments[0].special:
            return list(self._core.encode(segments[0].text, add_special_tokens=False).ids)
        if self._copy is None:
            from tokenizers import Tokenizer

            self._copy = Tokenizer.from_str(self._core.to_str())
            self._copy.encode_special_tokens = True
            self._added = {token.content: (id, token) for id, token in self._core.get_added_tokens_decoder().items()}
        parts: list[str] = []
        for number, segment in enumerate(segments):
            if segment.special:
                parts.append(self._name(segment.text))
            else:
                goes_on = number and not segments[number - 1].special
                parts += [self._name(""), segment.text] if goes_on else [segment.text]
        found = self._copy.encode("".join(parts), add_special_tokens=False).ids
        ids = (self._ids.get(token, token) for token in found)
        return [token for token in ids if token is not None]

    def _name(self, text: str) -> str:
        """The copy's name for an added token; of "", which parts a text, for none."""
        if text not in self._names:
            from tokenizers import AddedToken

            id, token = self._added[text] if text else (None, None)
            name = f"\U0010fffd{self._secret}{len(self._names):x}\U0010fffd"
            sides = {"lstrip": token.lstrip, "rstrip": token.rstrip} if token else {}
            self._copy.add_tokens([AddedToken(name, special=False, normalized=False, **sides)])
            self._ids[self._copy.token_to_id(name)] = id
            self._names[text] = name
        return self._names[text]
