"""The words of documents in the database: pieces of an inverted index, merged as they become many.

Each document brings a piece of its own in its transaction. A reader holds all pieces in memory, where BM25 is counted
by the same code as for an index of files (rag.index.lexical); of a newer state it reads only pieces that are new to it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rag.index.chunk import Chunk
from rag.index.generation.postings import Postings, build_postings, merged_postings
from rag.index.lexical.terms import Terms

if TYPE_CHECKING:
    from rag.stores.postgres.connection import Connection

CHUNK_BITS = 20
"""A chunk is numbered document * 2^20 + its own number in the document."""
PIECES = 32
"""After so many documents a writer merges pieces."""
_MOST = 250_000  # texts of one piece: it goes over the wire as a whole
_LOCK = "slm words"
Keys = npt.NDArray[np.int64]
_TYPES = {
    "terms": "u1", "term_starts": "<i8", "starts": "<i8", "rows": "<i4", "counts": "<u2", "lengths": "<i4",
    "pairs": "<u4", "pair_terms": "<i4",
}  # fmt: skip


def pack(postings: Postings) -> bytes:
    """Postings as bytes: of each array its length in bytes (64 bits, low byte first), then the array."""
    parts = []
    for field in fields(Postings):
        data = np.ascontiguousarray(getattr(postings, field.name)).astype(_TYPES[field.name]).tobytes()
        parts += [struct.pack("<q", len(data)), data]
    return b"".join(parts)


def unpack(data: bytes) -> Postings:
    """What `pack` made. Raises ValueError and struct.error for anything else."""
    arrays: dict[str, Any] = {}
    at = 0
    for field in fields(Postings):
        (size,) = struct.unpack_from("<q", data, at)
        kind = np.dtype(_TYPES[field.name])
        arrays[field.name] = np.frombuffer(data, dtype=kind, count=size // kind.itemsize, offset=at + 8)
        at += 8 + size
    arrays["pairs"] = arrays["pairs"].reshape(-1, 2)
    return Postings(**arrays)


def keys_of(document: int, chunks: int) -> Keys:
    """The numbers of a document's chunks."""
    keys: Keys = (np.int64(document) << CHUNK_BITS) + np.arange(chunks, dtype=np.int64)
    return keys


def add_words(connection: Connection, index: int, document: int, chunks: Sequence[Chunk], terms: Terms) -> None:
    """Write the piece of one document. terms: as the whole index has them."""
    if chunks:
        postings = build_postings(terms(chunk.indexed_text) for chunk in chunks)
        _write(connection, index, keys_of(document, len(chunks)), postings)


def _write(connection: Connection, index: int, keys: Keys, postings: Postings) -> None:
    connection.execute(
        "INSERT INTO slm.words (index_id, texts, rows, postings) VALUES (%s, %s, %b, %b)",
        [index, len(keys), keys.astype("<i8").tobytes(), pack(postings)],
    )


def read_words(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[Keys, Postings]]:
    """Pieces by their ids: the numbers of their texts, and the words."""
    cursor = connection.cursor(binary=True)
    rows = cursor.execute("SELECT id, rows, postings FROM slm.words WHERE id = ANY(%s)", [list(ids)])
    return {int(id_): (np.frombuffer(keys, dtype="<i8"), unpack(postings)) for id_, keys, postings in rows}


def group_of(sizes: Sequence[int]) -> int:
    """How many of the last pieces become one: each takes in the one before while that is less than twice as large, as
    `rag.index.generation.merging` does it with parts."""
    if not sizes:
        return 0
    total, count = sizes[-1], 1
    for size in reversed(sizes[:-1]):
        if size >= 2 * total or total + size > _MOST:
            break
        total, count = total + size, count + 1
    return count


def merge_words(connection: Connection, index: int) -> None:
    """Make one piece of the last ones, without what is no longer there; nothing while somebody else does it.

    What readers see is the same before and after, so that the index's version stays.
    """
    with connection.transaction():
        (mine,) = _one(connection, "SELECT pg_try_advisory_xact_lock(hashtext(%s), %s)", [_LOCK, index % 2**31])
        if not mine:
            return
        rows = connection.execute("SELECT id, texts FROM slm.words WHERE index_id = %s ORDER BY id", [index])
        pieces = [(int(id_), int(texts)) for id_, texts in rows]
        (alive,) = _one(connection, "SELECT coalesce(sum(chunks), 0) FROM slm.documents WHERE index_id = %s", [index])
        texts = sum(size for _, size in pieces)
        count = len(pieces) if texts > 2 * int(alive) and texts <= _MOST else group_of([size for _, size in pieces])
        if count < 2 and texts <= 2 * int(alive):
            return
        ids = [id_ for id_, _ in pieces[len(pieces) - count :]]
        cursor = connection.cursor(binary=True)
        there = cursor.execute("SELECT id FROM slm.documents WHERE index_id = %s", [index]).fetchall()
        documents = np.asarray([row[0] for row in there], dtype=np.int64)
        held = read_words(connection, ids)
        kept, keys, size = [], [], 0
        for id_ in ids:
            own, postings = held[id_]
            stays = np.isin(own >> CHUNK_BITS, documents)
            rows_of = np.full(len(own), -1, dtype=np.int64)
            rows_of[stays] = np.arange(size, size + int(stays.sum()))
            size += int(stays.sum())
            kept.append((postings, rows_of))
            keys.append(own[stays])
        connection.execute("DELETE FROM slm.words WHERE id = ANY(%s)", [ids])
        if size:
            _write(connection, index, np.concatenate(keys), merged_postings(kept))


def _one(connection: Connection, query: str, values: Sequence[Any]) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
    if row is None:
        raise ValueError("a question that has one answer got none")
    return row
