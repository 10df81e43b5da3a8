"""A prompt's segments to token ids, and a model's special tokens by name. It knows nothing of templates or requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm.chat.segments import Markers, Segment
from slm.errors import InputError
from slm.native.llama import library, tokenize, vocab_size

# A text behind these gets no space in front, and no token reaches from them into it.
_LEADS = ("\n", "\n\n", "a")


def special_kinds(model: Any) -> dict[int, int]:
    """The tokens that are no ordinary text, with llama.cpp's attributes of each; it corrects what a file says."""
    lib = library()
    vocab, kind_of = lib.llama_model_get_vocab(model), lib.llama_vocab_get_attr
    kinds = lib.LLAMA_TOKEN_ATTR_USER_DEFINED | lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
    return {token: kind for token in range(vocab_size(model)) if (kind := kind_of(vocab, token)) & kinds}


def markers_of(model: Any, kinds: Mapping[int, int]) -> Markers:
    """The texts of a model's special tokens. kinds: what `special_kinds` says."""
    lib = library()
    vocab = lib.llama_model_get_vocab(model)
    control: list[str] = []
    added: list[str] = []
    for token, kind in kinds.items():
        # A text that is not UTF-8 never stands in a prompt.
        text = lib.llama_vocab_get_text(vocab, token).decode("utf-8", "replace")
        # Some are both: user-defined in the file, and a name that llama.cpp takes for an end of text (Gemma's "</s>").
        (added if kind & lib.LLAMA_TOKEN_ATTR_USER_DEFINED else control).append(text)
    return Markers(tuple(control), tuple(added))


def checked(tokens: Sequence[object], size: int) -> list[int]:
    """The same, if all of them are token ids of a vocabulary of that size; otherwise InputError."""
    ids = [token for token in tokens if isinstance(token, int) and 0 <= token < size]
    if len(ids) < len(tokens):
        wrong = next(token for token in tokens if not isinstance(token, int) or not 0 <= token < size)
        raise InputError(f"{wrong!r} is no token id; the vocabulary has {size:,}")
    return ids


def prompt_tokens(model: Any, segments: Sequence[Segment], add_special: bool) -> list[int]:
    """Token ids of a prompt. add_special: with BOS where the vocabulary has one, never with an end token.

    Several segments are read as llama.cpp reads the parts of a text between its special tokens
    (src/llama-vocab.cpp, `tokenize`), except that what is text stays text.
    """
    if len(segments) == 1:
        ((text, special),) = segments
        tokens = tokenize(model, text, add_special=add_special, parse_special=special)
        return _without_end(model, tokens) if add_special else tokens
    tokens = prompt_tokens(model, [Segment("", False)], add_special)
    before: Segment | None = None
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
        if segment.special:
            tokens += tokenize(model, segment.text, add_special=False, parse_special=True)
        else:
            text = segment.text
            if before and before.special and _strips(model, before, "RSTRIP"):
                text = text.lstrip()
            if following and following.special and _strips(model, following, "LSTRIP"):
                text = text.rstrip()
            tokens += _text_tokens(model, text, continues=before is not None and not before.special)
        before = segment
    return tokens


def _text_tokens(model: Any, text: str, *, continues: bool) -> list[int]:
    """Token ids of what is no more than text. continues: it goes on with the text before, so no space is put there."""
    for lead in _LEADS if continues and text else ():
        first = tokenize(model, lead, add_special=False, parse_special=False)
        both = tokenize(model, lead + text, add_special=False, parse_special=False)
        if both[: len(first)] == first:
            return both[len(first) :]
    return tokenize(model, text, add_special=False, parse_special=False)


def _strips(model: Any, segment: Segment, side: str) -> bool:
    """Whether a special token takes the white space on that side of it away."""
    lib = library()
    token = tokenize(model, segment.text, add_special=False, parse_special=True)[0]
    kind = lib.llama_vocab_get_attr(lib.llama_model_get_vocab(model), token)
    return bool(kind & getattr(lib, f"LLAMA_TOKEN_ATTR_{side}"))


def _without_end(model: Any, tokens: list[int]) -> list[int]:
    """A vocabulary may ask for an end token too; a prompt that is to be continued must not have it."""
    lib = library()
    vocab = lib.llama_model_get_vocab(model)
    ended = lib.llama_vocab_get_add_eos(vocab) and tokens and tokens[-1] == lib.llama_vocab_eos(vocab)
    return tokens[:-1] if ended else tokens
