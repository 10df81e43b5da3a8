"""SentencePiece unigram -> GgufVocabulary of the kind `t5` (UGM, Viterbi search), with byte fallback made exact.

It knows nothing of BPE. Sources: `tokenizer.json` (Unigram) and `spiece.model` / `tokenizer.model`.

llama.cpp's UGM has no byte fallback: a character without a piece of its own becomes the unknown token. Here the
character map, which UGM applies before the search and which works on bytes, spells such characters out:

- a character that has a piece maps to itself (or to what the tokenizer's own map says),
- of any other character, byte after byte is mapped on its own: a continuation byte to itself, a lead byte to
  0xC0 + itself. 0xC0 is never part of UTF-8; the search steps by the length that a first byte announces, and after
  0xC0 it steps over exactly the two bytes of the token.

So the byte pieces' tokens are `0xC0 lead` with the score of an unknown character and the bare continuation byte with
score 0: the sum over the character is what SentencePiece counts for an unknown one, and the best path is the same.
In a text made from these tokens only the 0xC0 is too much; no UTF-8 text holds one, so it can be dropped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from convert.source.malformed import load_sentencepiece
from convert.vocabulary.base.charsmap import lower_casing, read_charsmap, write_charsmap
from convert.vocabulary.base.proof import Encode, VocabularySource
from convert.vocabulary.base.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, GgufVocabulary
from convert.vocabulary.files.sentencepiece_file import UNIGRAM, SentencePieceModel
from convert.vocabulary.files.tokenizer_json import (
    byte_of,
    is_prefix_rule,
    is_space_rule,
    space_prefix,
    steps,
    token_count,
)
from slm.errors import UnsupportedError

_TRIM = re.compile(r"(\\A|\^)? \+(\\z|\\Z|\$)?\|?(\\A|\^)? ?\+?(\\z|\\Z|\$)?")  # spaces at the text's ends
_UNKNOWN_PENALTY = 10.0  # sentencepiece and llama.cpp score an unknown character so far below the worst piece
_FILLER = 0xC0
_CONTINUATION, _LEAD = range(0x80, 0xC0), range(0xC2, 0xF5)
_GRAPHEME = 6  # bytes; `tokenizers` maps shorter graphemes as a whole and longer ones character by character


def _raw(*values: int) -> str:
    """Bytes that are not UTF-8 as a string, in the way of `surrogateescape`."""
    return bytes(values).decode("utf-8", "surrogateescape")


def _spelt(text: str, known: set[str]) -> str:
    """The text with each character that has no piece in the form in which its bytes are tokens."""
    if all(c in known or c < "\x80" for c in text):
        return text
    out = []
    for c in text:
        raw = c.encode("utf-8", "surrogateescape")
        out.append(c if c in known or len(raw) == 1 else _raw(_FILLER, *raw))
    return "".join(out)


def ugm(model: SentencePieceModel, lower: bool, worst: float | None = None) -> GgufVocabulary:
    """The vocabulary of a unigram model. `lower`: the tokenizer lower-cases, for which GGUF has no key.

    worst: the lowest score, below which an unknown character is scored; default: of the normal pieces.
    """
    vocabulary = GgufVocabulary(
        "t5",
        list(model.pieces),
        list(model.types),
        list(model.scores),
        specials={name: id_ for name, id_ in model.ids.items() if 0 <= id_ < len(model.pieces)},
        add_space_prefix=model.add_dummy_prefix,
        remove_extra_whitespaces=model.remove_extra_whitespaces,
        charsmap=model.charsmap,
        lower_case=lower,
    )
    known = {p for p, t in zip(model.pieces, model.types, strict=True) if len(p) == 1 and t in (NORMAL, USER_DEFINED)}
    fallback = model.byte_fallback and sum(t == BYTE for t in model.types) == 256
    _score_user_defined(vocabulary, model)
    if fallback:
        if worst is None:
            worst = min((s for s, t in zip(model.scores, model.types, strict=True) if t == NORMAL), default=0.0)
        _byte_tokens(vocabulary, model, known, worst - _UNKNOWN_PENALTY)
    if fallback or not model.remove_extra_whitespaces:
        mapping = lower_casing(_map_of(model.charsmap)) if lower else _map_of(model.charsmap)
        vocabulary.charsmap = write_charsmap(_mapping(mapping, model, known, fallback))
    elif lower:
        vocabulary.charsmap = _lower_cased(model.charsmap)
    return vocabulary


def _score_user_defined(vocabulary: GgufVocabulary, model: SentencePieceModel) -> None:
    """Make user-defined pieces ordinary ones with the score that SentencePiece gives them (unigram_model.cc).

    llama.cpp cuts the text at user-defined tokens before the search and puts a space prefix after each cut.
    """
    best = max((s for s, t in zip(model.scores, model.types, strict=True) if t == NORMAL), default=0.0)
    for id_, (piece, kind) in enumerate(zip(model.pieces, model.types, strict=True)):
        if kind == USER_DEFINED:
            vocabulary.types[id_] = NORMAL
            vocabulary.scores[id_] = len(piece.encode("utf-8")) * best - 0.1


def _byte_tokens(vocabulary: GgufVocabulary, model: SentencePieceModel, known: set[str], unknown: float) -> None:
    for id_, piece in enumerate(model.pieces):
        value = byte_of(piece)
        if model.types[id_] != BYTE or value is None:
            vocabulary.tokens[id_] = _spelt(piece, known)
        elif value in _CONTINUATION:
            vocabulary.tokens[id_], vocabulary.types[id_], vocabulary.scores[id_] = _raw(value), NORMAL, 0.0
        elif value in _LEAD or (0 < value < 0x80 and chr(value) not in known):
            vocabulary.tokens[id_] = _raw(_FILLER, value) if value in _LEAD else chr(value)
            vocabulary.types[id_], vocabulary.scores[id_] = NORMAL, unknown


def _mapping(mapping: Mapping[str, str], model: SentencePieceModel, known: set[str], fallback: bool) -> dict[str, str]:
    """The character map with bytes spelt out; where spaces are all kept, they are escaped here as well.

    Its own escaping lets llama.cpp treat spaces as white space, and a text of spaces alone would lose its prefix.
    """
    complete = dict(mapping)
    complete.update({p: p for p, t in zip(model.pieces, model.types, strict=True) if t == USER_DEFINED})
    if not model.remove_extra_whitespaces:
        complete[" "] = " "
        complete = {key: value.replace(" ", "▁") for key, value in complete.items()}
    if fallback:
        complete = {key: _spelt(value, known) for key, value in complete.items()}
        for c in known:
            complete.setdefault(c, c)
        complete.update({_raw(value): _raw(value) for value in _CONTINUATION})
        complete.update({_raw(value): _raw(_FILLER, value) for value in _LEAD})
    return complete


@lru_cache(maxsize=1)
def _map_of(charsmap: bytes) -> Mapping[str, str]:
    return read_charsmap(charsmap)


@lru_cache(maxsize=2)
def _lower_cased(charsmap: bytes) -> bytes:
    """A character map that lower-cases first; a few seconds for nmt_nfkc's 225,000 sequences."""
    return write_charsmap(lower_casing(_map_of(charsmap)))


def from_model_file(path: Path, model: SentencePieceModel, lower: bool) -> VocabularySource:
    """Vocabulary and encoder of a SentencePiece model file of kind unigram."""

    def load() -> Encode:
        processor = load_sentencepiece(path)
        return lambda text: list(processor.encode(text.lower() if lower else text))

    return VocabularySource(ugm(model, lower), load)


def from_tokenizer_json(fast: Mapping[str, Any]) -> VocabularySource:
    """Vocabulary and caveats of a fast unigram tokenizer; the caller adds the encoder.

    Raises UnsupportedError for a normalizer that the runtime does not have.
    """
    token_count(fast, range(len(fast["model"]["vocab"])))
    model = SentencePieceModel(kind=UNIGRAM, byte_fallback=bool(fast["model"].get("byte_fallback")))
    for piece, score in fast["model"]["vocab"]:
        model.pieces.append(piece)
        model.scores.append(float(score))
        model.types.append(NORMAL if byte_of(piece) is None else BYTE)
    model.ids = {"unk": int(fast["model"]["unk_id"])}
    model.types[model.ids["unk"]] = UNKNOWN
    added = fast.get("added_tokens") or []
    for token in added:
        if token.get("special") and int(token["id"]) < len(model.types) and int(token["id"]) != model.ids["unk"]:
            model.types[int(token["id"])] = CONTROL
    lower = _normalizers(fast, model)
    model.add_dummy_prefix = space_prefix(fast) != "never"
    vocabulary = ugm(model, lower, min(model.scores))
    for token in added:
        id_ = int(token["id"])
        vocabulary.tokens += [f"[PAD{i}]" for i in range(len(vocabulary.tokens), id_ + 1)]
        vocabulary.types += [UNUSED] * (id_ + 1 - len(vocabulary.types))
        vocabulary.scores += [0.0] * (id_ + 1 - len(vocabulary.scores))
        vocabulary.tokens[id_] = token["content"]
        if vocabulary.types[id_] != UNKNOWN:
            vocabulary.types[id_] = CONTROL if token.get("special") else USER_DEFINED
    source = VocabularySource(vocabulary, lambda: lambda _: [], special_ids=[int(t["id"]) for t in added])
    if model.charsmap:
        source.caveats.append("stacked combining marks get SentencePiece's ids, not those of the `tokenizers` library")
    if space_prefix(fast) == "first":
        source.special_ids = []
        source.caveats.append("after a special token the runtime puts a space that the tokenizer does not put")
    return source


def _normalizers(fast: Mapping[str, Any], model: SentencePieceModel) -> bool:
    """Fill the model's character map and white-space rules; returns whether text is lower-cased."""
    lower = model.remove_extra_whitespaces = False
    for step in steps(fast.get("normalizer"), "normalizers"):
        regex = step["pattern"].get("Regex", "") if step["type"] == "Replace" else ""
        if step["type"] == "Precompiled":
            model.charsmap = _for_graphemes(base64.b64decode(step["precompiled_charsmap"] or ""))
        elif regex == " {2,}":
            model.remove_extra_whitespaces = True
        elif step["type"] == "Lowercase":
            lower = True
        elif step["type"] == "Replace" and step["content"] == "" and _TRIM.fullmatch(regex):
            continue  # the runtime drops outer spaces whenever it merges inner ones
        elif step["type"] not in ("Strip", "Nmt", "Prepend") and not is_prefix_rule(step) and not is_space_rule(step):
            raise UnsupportedError(f"the tokenizer's normalizer '{step['type']}' is not supported for a unigram model")
    if any(step["type"] == "WhitespaceSplit" for step in steps(fast.get("pre_tokenizer"), "pretokenizers")):
        model.remove_extra_whitespaces = True  # splitting at white space drops what is more than one
    return lower


@lru_cache(maxsize=2)
def _for_graphemes(charsmap: bytes) -> bytes:
    """The map as `tokenizers` applies it: character by character, but short graphemes as a whole.

    Half-width kana with their voicing marks and decomposed kana have 6 bytes, so they are never composed.
    """
    mapping = _map_of(charsmap)
    kept = {k: v for k, v in mapping.items() if len(k) == 1 or len(k.encode("utf-8")) < _GRAPHEME}
    if "\r" in kept:
        kept["\r\n"] = kept["\r"]  # one grapheme, mapped by its first character
    return charsmap if kept == mapping else write_charsmap(kept)
