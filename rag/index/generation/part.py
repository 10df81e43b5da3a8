"""A part of an index: chunks with their vectors and words, written once and never changed.

A generation is made of parts. An edit writes a small one and says which chunks of the others still count, so that it
costs nothing for what was not edited.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rag.index.chunk import Chunk, context_line
from rag.index.generation.arrays import Array, Matrix, files_of, load_arrays, save_arrays
from rag.index.generation.dense import Dense, Lists, learn_lists
from rag.index.generation.postings import FILES as _WORDS
from rag.index.generation.postings import Postings, load_postings

CHUNKS = "chunks.jsonl"
_VECTORS, _OFFSETS, _CENTRES, _LIST_OF = "vectors", "offsets", "centres", "list_of"
_LISTS = files_of((_CENTRES, _LIST_OF))
_FILES = (CHUNKS, *files_of((_VECTORS, _OFFSETS)), *_WORDS)


@dataclass(frozen=True)
class Lines:
    """Lines of text by number: line n is data[offsets[n]:offsets[n + 1]], its end of line with it."""

    data: bytes | mmap.mmap
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        return bytes(self.data[int(self.offsets[number]) : int(self.offsets[number + 1])])


@dataclass(frozen=True)
class Part:
    """A part in memory, most of it mapped from its files. name: of its folder; "" for one that has none as yet."""

    name: str
    lines: Lines
    dense: Dense
    words: Postings

    def __len__(self) -> int:
        return len(self.lines)

    def chunk(self, row: int, source: str) -> Chunk:
        """A chunk, which belongs to the document `source`."""
        return chunk_of(json.loads(self.lines[row]), source)


def chunk_of(row: Mapping[str, Any], source: str) -> Chunk:
    """The chunk that a line describes. Raises KeyError and TypeError."""
    headings = tuple(row["headings"])
    context = row.get("context")
    if context is None:  # formats 1 and 2
        context = context_line(row["title"], headings)
    chunk = Chunk(row["title"], headings, row["text"], source, row["lang"], int(row["ordinal"]), context)
    if not all(isinstance(text, str) for text in (chunk.title, chunk.text, chunk.lang, chunk.context, *headings)):
        raise TypeError("a chunk holds something that is not text")
    return chunk


def line_of(chunk: Chunk) -> bytes:
    """A chunk as a line of a part's file, without its source: documents move."""
    row = {
        "title": chunk.title, "headings": chunk.headings, "text": chunk.text, "lang": chunk.lang,
        "ordinal": chunk.ordinal, "context": chunk.context,
    }  # fmt: skip
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def joined_lines(lines: Iterable[bytes]) -> Lines:
    """These lines, in memory."""
    held = list(lines)
    offsets = np.concatenate([[0], np.cumsum(np.asarray([len(line) for line in held], dtype=np.int64))])
    return Lines(b"".join(held), offsets.astype(np.int64))


def new_part(lines: Lines, vectors: Matrix, words: Postings) -> Part:
    """A part of chunks that are on no disk yet; vectors are (chunks, dimension)."""
    return Part("", lines, Dense(vectors, None), words)


def write_part(folder: Path, part: Part) -> str:
    """Write a part into a folder, with inverted lists where it is large; how it is searched. Raises OSError."""
    folder.mkdir()
    with (folder / CHUNKS).open("wb") as file:
        file.write(part.lines.data)
    lists = learn_lists(part.dense.vectors)
    arrays: dict[str, Array] = {_VECTORS: part.dense.vectors, _OFFSETS: part.lines.offsets}
    if lists is not None:
        arrays.update({_CENTRES: lists.centres, _LIST_OF: lists.list_of})
    save_arrays(folder, arrays)
    part.words.save(folder)
    return Dense(part.dense.vectors, lists).kind


def part_files(kind: str) -> Sequence[str]:
    """The names of the files of a part that is searched so."""
    return _FILES if kind == "flat" else (*_FILES, *_LISTS)


def open_part(folder: Path, kind: str) -> Part:
    """Map a part. Raises OSError and ValueError."""
    arrays = load_arrays(folder, {_VECTORS: (np.float32, 2), _OFFSETS: (np.int64, 1)})
    vectors, offsets = arrays[_VECTORS], arrays[_OFFSETS]
    with (folder / CHUNKS).open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    words = load_postings(folder)
    lists = None
    if kind != "flat":
        found = load_arrays(folder, {_CENTRES: (np.float32, 2), _LIST_OF: (np.int32, 1)})
        lists = Lists(found[_CENTRES], found[_LIST_OF])
        named = lists.list_of
        if len(named) != len(vectors) or not 0 <= named.min() <= named.max() < len(lists.centres):
            raise ValueError(f"the lists in '{folder}' do not fit together")
    if not len(offsets) - 1 == len(vectors) == words.texts or offsets[-1] != len(data) or np.any(np.diff(offsets) < 1):
        raise ValueError("its parts do not have the same number of chunks")
    return Part(folder.name, Lines(data, offsets), Dense(vectors, lists), words)
