"""Reads text to learn a language from: plain files and JSONL, passage by passage, in constant memory.

A plain file is one document, cut at blank lines into passages of some hundred bytes; a JSONL record ("text")
is a document of its own. What is held out is decided by each passage's own hash, so that equal passages stay on one
side and nothing has to be counted first. It knows nothing of tokenizers or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slm.errors import DamagedFileError, InputError
from train.data.examples import JSONL
from train.data.lines import json_objects, lines

_PASSAGE = 500  # bytes after which the next blank line ends a passage

Files = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class CorpusPassage:
    """A piece of text of one language; `ends`: the document ends with it."""

    lang: str
    text: str
    ends: bool


def passages(files: Files) -> Iterator[CorpusPassage]:
    """Every passage of {language: files}, file by file. Raises DamagedFileError with file and line, or InputError."""
    for lang, paths in files.items():
        found = False
        for path in paths:
            read = _records if path.suffix in JSONL else _blocks
            for text, ends in read(path):
                found = True
                yield CorpusPassage(lang, text, ends)
        if not found:
            raise InputError(f"there is no text of '{lang}' in {', '.join(map(repr, map(str, paths)))}")


def is_held_out(text: str, fraction: float, seed: int) -> bool:
    """Whether a passage belongs to the held-out side; `fraction` of all passages do, chosen by `seed`."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _blocks(path: Path) -> Iterator[tuple[str, bool]]:
    """(text, whether the file ends with it): lines joined until a blank one behind `_PASSAGE` bytes."""
    block: list[str] = []
    size = 0
    ready = ""
    for _, line in lines(path):
        if not line.strip() and size >= _PASSAGE:
            if ready:
                yield ready, False
            ready, block, size = "\n".join(block).strip("\n") + "\n\n", [], 0
        elif line.strip() or block:
            block.append(line)
            size += len(line.encode())
    rest = "\n".join(block).strip("\n")
    if ready:
        yield ready, not rest
    if rest:
        yield rest + "\n", True


def _records(path: Path) -> Iterator[tuple[str, bool]]:
    for number, record in json_objects(path):
        text = record.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DamagedFileError(
                f"'{path}', line {number} has no \"text\"",
                hint='Each line must be one JSON object such as {"text": "..."}.',
            )
        yield text, True
