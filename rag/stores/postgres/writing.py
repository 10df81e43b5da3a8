"""Changes of an index in the database, each in a transaction of its own. What is to change was decided before.

Order within a transaction, by which writers never wait for each other in a circle: locks of the documents' sources in
the order of their numbers; chunks and words, which take the time; at last the index's row, which gives the version, and
under it the table of documents and the centres. So versions follow each other as transactions end, and a reader that
has one has all before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.index.chunk import Chunk
from rag.index.generation.part import line_of
from rag.index.lexical.terms import Terms
from rag.index.variants import comparable
from rag.stores.interface import HeldDocument
from rag.stores.postgres.spelling import as_json, columns_of, key_of, lock_of, stored
from rag.stores.postgres.words import CHUNK_BITS, add_words
from slm.errors import InputError, ResourceError

if TYPE_CHECKING:
    from rag.index.embed import Vectors
    from rag.stores.postgres.connection import Connection

_SERIAL = "SELECT nextval(pg_get_serial_sequence('slm.documents', 'id'))"
_INSERT = (
    "INSERT INTO slm.documents "
    "(id, index_id, key, source, version, chunks, lang, space, labels, changed, rules, entry) "
    "OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s)"
)
_UPDATE = (
    "UPDATE slm.documents SET key = %s, source = %s, version = %s, lang = %s, space = %s, labels = %s, changed = %s, "
    "rules = %s::jsonb, entry = %s WHERE id = %s"
)
_Sums = dict[str, tuple[int, Any]]


class IndexWriter:
    """The right to change one index through one connection. index: its id; dimension: of its vectors."""

    def __init__(self, connection: Connection, index: int, dimension: int) -> None:
        self._connection, self.index, self._dimension = connection, index, dimension

    @property
    def _table(self) -> str:
        return f"slm.chunks_{self.index:d}"

    def put(self, document: HeldDocument, replaced: Mapping[str, int | None], terms: Terms) -> bool:
        """Write a document in place of those it replaces (by source the id that was known, None: none was).

        Whatever else is there under its own source by now is replaced as well, so that nothing is there twice; False
        where somebody else wrote the very same document meanwhile. terms: what the index makes its terms by.
        """
        if len(document.chunks) >> CHUNK_BITS:
            raise InputError(f"'{document.source}' has more than {1 << CHUNK_BITS:,} chunks", hint="Part the file.")
        with self._connection.transaction():
            self._lock([document.source, *replaced])
            own = self._there(document.source)
            if own is not None and own[0] != replaced.get(document.source) and own[1] == document.entry["sha256"]:
                return False
            old = {id_ for source, id_ in replaced.items() if id_ is not None and source != document.source}
            old = {id_ for id_ in old if self._has(id_)} | ({own[0]} if own is not None else set())
            gone = self._delete_chunks(sorted(old))
            (id_,) = self._row(_SERIAL, [])
            self._copy(id_, document.chunks, document.vectors)
            add_words(self._connection, self.index, id_, document.chunks, terms)
            version = self._version()
            self._connection.execute("DELETE FROM slm.documents WHERE id = ANY(%s)", [sorted(old)])
            entry = {**document.entry, "chunks": len(document.chunks)}
            columns = columns_of(entry)
            self._connection.execute(
                _INSERT,
                [id_, self.index, key_of(document.source), stored(document.source), version, len(document.chunks),
                 columns.lang, columns.space, columns.labels, columns.changed, columns.rules, as_json(entry)],
            )  # fmt: skip
            if len(document.chunks):
                gone[columns.lang] = _added(
                    gone.get(columns.lang), len(document.chunks), document.vectors.astype(np.float64).sum(axis=0)
                )
            self._move_centres(gone)
        return True

    def rename(self, old: str, id_: int, source: str, entry: Mapping[str, Any]) -> None:
        """Give a document another source or another entry; its chunks stay. Nothing where it is not there any more."""
        with self._connection.transaction():
            self._lock([old, source])
            taken = self._there(source)
            if not self._has(id_) or (taken is not None and taken[0] != id_):
                return
            version = self._version()
            (chunks,) = self._row("SELECT chunks FROM slm.documents WHERE id = %s", [id_])
            whole = {**entry, "chunks": chunks}
            columns = columns_of(whole)
            self._connection.execute(
                _UPDATE,
                [key_of(source), stored(source), version, columns.lang, columns.space, columns.labels, columns.changed,
                 columns.rules, as_json(whole), id_],
            )  # fmt: skip

    def remove(self, source: str, id_: int) -> bool:
        """Remove a document; False where it is not there any more, or another one has taken its place."""
        with self._connection.transaction():
            self._lock([source])
            if not self._has(id_):
                return False
            gone = self._delete_chunks([id_])
            self._version()
            self._connection.execute("DELETE FROM slm.documents WHERE id = %s", [id_])
            self._move_centres(gone)
        return True

    def set_sources(self, sources: Mapping[str, Mapping[str, Any]], lost: Sequence[str] = ()) -> None:
        """Where documents come from: these as well, and those no longer."""
        with self._connection.transaction():
            self._version()
            for root, told in sources.items():
                self._connection.execute(
                    "INSERT INTO slm.sources (index_id, root, told) VALUES (%s, %s, %s) "
                    "ON CONFLICT (index_id, root) DO UPDATE SET told = EXCLUDED.told",
                    [self.index, stored(root), as_json(told)],
                )
            self._connection.execute(
                "DELETE FROM slm.sources WHERE index_id = %s AND root = ANY(%s)",
                [self.index, [stored(root) for root in lost]],
            )

    def known_vectors(self, ids: Sequence[int], chunk: Any) -> dict[str, Vectors]:
        """The vectors of documents' chunks, by the text that was embedded. chunk: makes a chunk of a line."""
        cursor = self._connection.cursor(binary=True)
        rows = cursor.execute(f"SELECT line, vector FROM {self._table} WHERE document = ANY(%s)", [list(ids)])
        return {comparable(chunk(line).indexed_text): vector for line, vector in rows}

    def _lock(self, sources: Sequence[str]) -> None:
        """Until the transaction's end nobody else changes documents of these sources in this index."""
        for lock in sorted({lock_of(key_of(f"{self.index} {source}")) for source in sources}):
            self._connection.execute("SELECT pg_advisory_xact_lock(%s)", [lock])

    def _there(self, source: str) -> tuple[int, str] | None:
        """The id and the hash of the document that is there under a source."""
        row = self._connection.execute(
            "SELECT id, entry::json ->> 'sha256' FROM slm.documents WHERE index_id = %s AND key = %s",
            [self.index, key_of(source)],
        ).fetchone()
        return (int(row[0]), str(row[1])) if row else None

    def _has(self, id_: int) -> bool:
        row = self._connection.execute("SELECT 1 FROM slm.documents WHERE id = %s", [id_]).fetchone()
        return row is not None

    def _delete_chunks(self, ids: Sequence[int]) -> _Sums:
        """Remove the chunks of documents; by language how many they were, and their sum, both below zero."""
        if not ids:
            return {}
        cursor = self._connection.cursor(binary=True)
        rows = cursor.execute(
            f"WITH gone AS (DELETE FROM {self._table} WHERE document = ANY(%s) RETURNING lang, vector) "
            "SELECT lang, vector FROM gone",
            [list(ids)],
        )
        sums: _Sums = {}
        for lang, vector in rows:
            sums[str(lang)] = _added(sums.get(str(lang)), -1, -vector.astype(np.float64))
        return sums

    def _copy(self, document: int, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        if not chunks:
            return
        vector_type = self._connection.adapters.types["vector"].oid
        with self._connection.cursor().copy(
            f"COPY {self._table} (document, ordinal, lang, line, vector) FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["int8", "int8", "text", "text", vector_type])
            for ordinal, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True)):
                copy.write_row([document, ordinal, stored(chunk.lang), as_line(chunk), vector])

    def _version(self) -> int:
        """The next version of the index; from here on other writers wait for the end of this transaction.

        Raises ResourceError where the index is not there any more.
        """
        row = self._connection.execute(
            "UPDATE slm.indexes SET version = version + 1 WHERE id = %s RETURNING version", [self.index]
        ).fetchone()
        if row is None:
            raise ResourceError("the index was removed or made anew meanwhile", hint="Run this again.")
        return int(row[0])

    def _move_centres(self, sums: _Sums) -> None:
        for lang, (chunks, total) in sums.items():
            cursor = self._connection.cursor(binary=True)
            row = cursor.execute(
                "SELECT chunks, total FROM slm.centres WHERE index_id = %s AND lang = %s", [self.index, lang]
            ).fetchone()
            before = (int(row[0]), np.frombuffer(row[1], dtype="<f8")) if row else (0, np.zeros(self._dimension))
            self._connection.execute(
                "INSERT INTO slm.centres (index_id, lang, chunks, total) VALUES (%s, %s, %s, %s) "
                "ON CONFLICT (index_id, lang) DO UPDATE SET chunks = EXCLUDED.chunks, total = EXCLUDED.total",
                [self.index, lang, before[0] + chunks, (before[1] + total).astype("<f8").tobytes()],
            )

    def _row(self, query: str, values: Sequence[Any]) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        if row is None:
            raise ResourceError("a document was removed while it was changed", hint="Run this again.")
        return row


def as_line(chunk: Chunk) -> str:
    """A chunk as the column has it: the line of a part's file, as text that the database holds."""
    import json

    return as_json(json.loads(line_of(chunk)))


def _added(sums: tuple[int, Any] | None, chunks: int, total: Any) -> tuple[int, Any]:
    return (chunks, total) if sums is None else (sums[0] + chunks, sums[1] + total)
