"""Reads a SentencePiece model file (`spiece.model`, `tokenizer.model`) without the sentencepiece package.

It knows nothing of GGUF. Format: the protobuf message `ModelProto` of sentencepiece_model.proto; only the wire format
(https://protobuf.dev/programming-guides/encoding/) and the few fields below are needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slm.artifacts import require_file
from slm.errors import DamagedFileError

UNIGRAM, BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_MAX_FILE = 1 << 28


@dataclass
class SentencePieceModel:
    """Pieces with scores and types (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte), and settings."""

    kind: int = UNIGRAM
    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)  # unk, bos, eos, pad; -1 where there is none
    byte_fallback: bool = False
    space_is_suffix: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise DamagedFileError("the SentencePiece model is cut off")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message; fixed-width values stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise DamagedFileError("the SentencePiece model has a field of unknown kind")
        if at + size > len(data):
            raise DamagedFileError("the SentencePiece model is cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise DamagedFileError("the SentencePiece model has a number where bytes are needed")
    return value


def _signed(value: int | bytes) -> int:
    number = value if isinstance(value, int) else int.from_bytes(value, "little")
    return number - (1 << 64) if number >= 1 << 63 else number


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read the model. Raises MissingFileError or DamagedFileError."""
    path = require_file(path)
    if path.stat().st_size > _MAX_FILE:
        raise DamagedFileError(f"'{path}' is too large for a SentencePiece model")
    model = SentencePieceModel(ids={"unk": 0, "bos": 1, "eos": 2, "pad": -1})
    try:
        for number, value in _fields(path.read_bytes()):
            if number == _PIECES:
                _piece(model, _bytes(value))
            elif number == _TRAINER:
                _trainer(model, _bytes(value))
            elif number == _NORMALIZER:
                _normalizer(model, _bytes(value))
    except (DamagedFileError, UnicodeDecodeError, struct.error) as error:
        raise DamagedFileError(f"'{path}' is not a whole SentencePiece model: {error}") from error
    if not model.pieces:
        raise DamagedFileError(f"'{path}' holds no SentencePiece vocabulary")
    return model


def _piece(model: SentencePieceModel, data: bytes) -> None:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode("utf-8")
        elif number == 2:
            score = float(struct.unpack("<f", _bytes(value))[0])
        elif number == 3:
            kind = _signed(value)
    model.pieces.append(text)
    model.scores.append(score)
    model.types.append(kind)


def _trainer(model: SentencePieceModel, data: bytes) -> None:
    names = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
    for number, value in _fields(data):
        if number == 3:
            model.kind = _signed(value)
        elif number == 24:
            model.space_is_suffix = bool(value)
        elif number == 35:
            model.byte_fallback = bool(value)
        elif number in names:
            model.ids[names[number]] = _signed(value)


def _normalizer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 2:
            model.charsmap = _bytes(value)
        elif number == 3:
            model.add_dummy_prefix = bool(value)
        elif number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif number == 5:
            model.escape_whitespaces = bool(value)
