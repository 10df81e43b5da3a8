"""An index of a PostgreSQL database (implements rag.stores.interface.IndexStore).

Whoever changes it needs the right to create tables; whoever asks it, only to read them. It knows nothing of ranking.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.document import Document
from rag.index.change.embedded import CHUNK_TOKENS, chunked, embedded_groups, grouped
from rag.index.change.gone import Seen
from rag.index.change.planned import Change, ChangePlan, Told, check_identity, planned
from rag.index.embed import Embedder, Vectors
from rag.index.generation.part import chunk_of
from rag.index.lexical.terms import Wording, installed, wording_of_change
from rag.index.names import command_anew, documents_named
from rag.stores.files import already_there
from rag.stores.interface import Contents, HeldDocument, OnChunks, silent
from rag.stores.postgres.address import address_of
from rag.stores.postgres.connection import Pool, connect, driver, told
from rag.stores.postgres.graph import BEGIN, has_graph, make_graph
from rag.stores.postgres.schema import migrate, version_of
from rag.stores.postgres.snapshot import Snapshot
from rag.stores.postgres.spelling import unstored
from rag.stores.postgres.state import WORDS, newest, unknown_index, wording_of
from rag.stores.postgres.words import PIECES, merge_words
from rag.stores.postgres.writing import IndexWriter
from slm.errors import InputError, UnknownNameError
from slm.paths import composed

if TYPE_CHECKING:
    from rag.stores.postgres.connection import Connection


@dataclass(frozen=True)
class HeldRows:
    """What an index of the database holds (implements rag.stores.interface.Holdings). ids: of the documents' rows."""

    index: int
    made_with: dict[str, Any]
    words: Wording
    chunk_tokens: int
    documents: dict[str, dict[str, Any]]
    sources: dict[str, dict[str, Any]]
    ids: dict[str, int]


class FollowedDatabase:
    """An index that is asked, each time as it is then (implements rag.stores.interface.OpenIndex)."""

    def __init__(self, store: Database) -> None:
        self._store, self._pool = store, Pool(store.address, BEGIN)
        with self._pool.reading() as connection:
            store.require_tables(connection)
            self._state = newest(connection, store.address, None)
            _ = self._state.lexical, self._state.centres  # otherwise the first query pays for them

    @property
    def made_with(self) -> Mapping[str, Any]:
        return self._state.made_with

    @contextmanager
    def now(self) -> Iterator[Snapshot]:
        """The newest state, in a transaction. Raises MismatchError when the index has another embedder now."""
        before = self._state  # taken before the transaction begins, which so sees at least as much
        with self._pool.reading() as connection:
            state = newest(connection, self._store.address, before)
            check_identity(state.made_with, before.made_with)
            self._state = state
            yield Snapshot(connection, state)

    def close(self) -> None:
        self._pool.close()


class Database:
    """The index that an address names; nothing is connected before it is used."""

    def __init__(self, url: str, words: str | None = None) -> None:
        driver()
        self.address, self._words = address_of(url), words

    @property
    def name(self) -> str:
        return self.address.shown

    def exists(self) -> bool:
        with self._connected() as connection:
            return version_of(connection) > 0 and self._id(connection) is not None

    def held(self) -> HeldRows:
        with self._connected() as connection:
            self.require_tables(connection)
            return self._held(connection)

    def add(
        self,
        documents: Sequence[Document],
        embedder: Embedder,
        on_chunks: OnChunks = silent,
        *,
        seen: Seen | Told | None = None,
        fresh: bool = False,
        sure: bool = False,
    ) -> Change:
        """As `rag.index.update.add_documents`, with a transaction for each document: what was written before a run was
        broken off is there, and the next one goes on behind it. fresh: nobody sees the new index before it is whole."""
        with self._connected() as connection:
            migrate(connection, self.address)
            there = self._id(connection) is not None
            if not documents and not (seen and there):
                raise InputError("there are no documents to add")
            identity = embedder.identity.as_dict()
            tokens = min(CHUNK_TOKENS, int(identity["max_tokens"]))
            if fresh:
                words = installed(self._words)
                index = self._new(connection, identity, words, tokens, ready=False)
                held = HeldRows(index, identity, words, tokens, {}, {}, {})
            else:
                if there:
                    check_identity(self._held(connection, rows=False).made_with, identity)
                else:
                    self._new(connection, identity, installed(self._words), tokens, ready=True)
                held = self._held(connection)
                again = partial(command_anew, self.name, held.sources)
                wording_of_change(held.words, self._words, self.name, again)
            plan = planned(held.documents, held.sources, documents, seen, sure=sure)
            if not plan.same or fresh:
                _Run(connection, held, plan, embedder, self.name).write(on_chunks)
            chunks = self._finish(connection, held)
            if fresh:
                self._publish(connection, held.index)
            return plan.change(chunks)

    def remove(self, names: Sequence[str], *, every: bool = False) -> list[str]:
        with self._connected() as connection:
            self.require_tables(connection)
            held = self._held(connection)
            gone = {source for name in names for source in documents_named(held.documents, name, every=every)}
            left = {r for s, entry in held.documents.items() if s not in gone for r in entry.get("roots", ())}
            lost = {root for source in gone for root in held.documents[source].get("roots", ())} - left
            writer = IndexWriter(connection, held.index, int(held.made_with["dimension"]))
            for source in sorted(gone):
                writer.remove(source, held.ids[source])
            writer.set_sources({}, sorted(lost & held.sources.keys()))
            return sorted(gone)

    def status(self) -> dict[str, Any]:
        with self._connected() as connection:
            self.require_tables(connection)
            held = self._held(connection)
            row = connection.execute(
                "SELECT pg_total_relation_size(%s::regclass), version FROM slm.indexes WHERE id = %s",
                [f"slm.chunks_{held.index:d}", held.index],
            ).fetchone()
            size, version = row or (0, 0)
            chunks = sum(entry["chunks"] for entry in held.documents.values())
            how = "hnsw" if has_graph(connection, held.index) else "flat"
            return {
                "index": self.name, "generation": f"version {version}", "embedder": held.made_with,
                "words": held.words.as_dict(), "chunks": chunks,
                "size_bytes": int(size), "parts": [{"chunks": chunks, "search": how}],
                "documents": [{"source": s, **entry} for s, entry in sorted(held.documents.items())],
            }  # fmt: skip

    @contextmanager
    def opening(self) -> Iterator[FollowedDatabase]:
        followed = FollowedDatabase(self)
        try:
            yield followed
        finally:
            followed.close()

    @contextmanager
    def contents(self) -> Iterator[Contents]:
        with self._connected() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            self.require_tables(connection)
            held = self._held(connection)
            documents = (self._document(connection, held, source) for source in held.documents)
            size = len(held.documents)
            yield Contents(held.made_with, held.words.kind, held.chunk_tokens, held.sources, size, documents)

    def fill(self, contents: Contents, on_documents: OnChunks = silent) -> int:
        """A transaction a document; nobody sees the index before it is whole."""
        with self._connected() as connection:
            migrate(connection, self.address)
            if self._id(connection) is not None:
                raise already_there(self.name)
            made_with, words = dict(contents.made_with), installed(self._words or contents.words)
            terms = words.terms(self.name)
            index = self._new(connection, made_with, words, contents.chunk_tokens, ready=False)
            writer = IndexWriter(connection, index, int(made_with["dimension"]))
            writer.set_sources(contents.sources)
            for number, document in enumerate(contents.documents, start=1):
                writer.put(document, {}, terms)
                if number % PIECES == 0:
                    merge_words(connection, index)
                on_documents(number, contents.size)
            chunks = self._finish(connection, HeldRows(index, made_with, words, contents.chunk_tokens, {}, {}, {}))
            if self._id(connection) is not None:
                raise already_there(self.name)
            self._publish(connection, index)
            return chunks

    def drop(self) -> None:
        """Remove the index with all it holds. Raises UnknownNameError."""
        with self._connected() as connection:
            self.require_tables(connection)
            index = self._id(connection)
            if index is None:
                raise unknown_index(connection, self.address)
            _drop(connection, [index])

    def require_tables(self, connection: Connection) -> None:
        """Raise UnknownNameError where the database has none of our tables.

        Those of an earlier version are read as they are: whoever writes renews them.
        """
        if not version_of(connection):
            raise UnknownNameError(
                "index", self.address.index, [],
                hint=f"Looked in {self.name}. Make one, with that address in quotes: slm rag add INDEX PATH...",
            )  # fmt: skip

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        connection = connect(self.address)
        try:
            with told(self.address):
                yield connection
        finally:
            connection.close()

    def _id(self, connection: Connection) -> int | None:
        row = connection.execute(
            "SELECT id FROM slm.indexes WHERE name = %s AND ready", [self.address.index]
        ).fetchone()
        return int(row[0]) if row else None

    def _held(self, connection: Connection, *, rows: bool = True) -> HeldRows:
        """What the index holds; without its documents where only its embedder is asked for."""
        query = f"SELECT id, embedder, chunk_tokens, {WORDS} FROM slm.indexes WHERE name = %s AND ready"
        found = connection.execute(query, [self.address.index]).fetchone()
        if found is None:
            raise unknown_index(connection, self.address)
        index = int(found[0])
        documents: dict[str, dict[str, Any]] = {}
        ids: dict[str, int] = {}
        sources: dict[str, dict[str, Any]] = {}
        if rows:
            query = "SELECT id, source, entry FROM slm.documents WHERE index_id = %s ORDER BY id"
            for id_, source, entry in connection.execute(query, [index]):
                documents[unstored(source)], ids[unstored(source)] = json.loads(entry), int(id_)
            for root, kept in connection.execute("SELECT root, told FROM slm.sources WHERE index_id = %s", [index]):
                sources[unstored(root)] = json.loads(kept)
        return HeldRows(index, json.loads(found[1]), wording_of(found[3]), int(found[2]), documents, sources, ids)

    def _document(self, connection: Connection, held: HeldRows, source: str) -> HeldDocument:
        rows = connection.cursor(binary=True).execute(
            f"SELECT line, vector FROM slm.chunks_{held.index:d} WHERE document = %s ORDER BY ordinal",
            [held.ids[source]],
        ).fetchall()  # fmt: skip
        vectors = np.empty((len(rows), int(held.made_with["dimension"])), dtype=np.float32)
        for at, (_, vector) in enumerate(rows):
            vectors[at] = vector
        chunks = [chunk_of(json.loads(line), source) for line, _ in rows]
        return HeldDocument(source, held.documents[source], chunks, vectors)

    def _new(
        self, connection: Connection, identity: Mapping[str, Any], words: Wording, tokens: int, *, ready: bool
    ) -> int:
        """A new index; what an earlier attempt to make this one anew left is removed."""
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"slm new {self.address.index}"])
            existing = self._id(connection)
            if ready and existing is not None:  # another writer was first
                return existing
            row = connection.execute(
                "INSERT INTO slm.indexes (name, ready, embedder, words, chunk_tokens) VALUES (%s, %s, %s, %s, %s) "
                "RETURNING id",
                [self.address.index, ready, json.dumps(dict(identity)), json.dumps(words.as_dict()), tokens],
            ).fetchone()
            index = int(row[0]) if row else 0
            connection.execute(
                f"CREATE TABLE slm.chunks_{index:d} (document bigint NOT NULL, ordinal bigint NOT NULL, "
                f"lang text NOT NULL, line text NOT NULL, vector vector({int(identity['dimension']):d}) NOT NULL, "
                "PRIMARY KEY (document, ordinal))"
            )
        if not ready:
            # Held as long as this connection: an index that nobody holds was left by a run that was broken off.
            connection.execute("SELECT pg_advisory_lock(hashtext('slm making'), %s)", [index % 2**31])
            self._sweep(connection, index)
        return index

    def _sweep(self, connection: Connection, own: int) -> None:
        query = "SELECT id FROM slm.indexes WHERE name = %s AND NOT ready AND id <> %s"
        for (index,) in connection.execute(query, [self.address.index, own]).fetchall():
            lock = [int(index) % 2**31]
            row = connection.execute("SELECT pg_try_advisory_lock(hashtext('slm making'), %s)", lock).fetchone()
            if row and row[0]:
                _drop(connection, [int(index)])
                connection.execute("SELECT pg_advisory_unlock(hashtext('slm making'), %s)", lock)

    def _finish(self, connection: Connection, held: HeldRows) -> int:
        """Merge words, make the graph if it is time for it; the number of chunks."""
        merge_words(connection, held.index)
        row = connection.execute(
            "SELECT coalesce(sum(chunks), 0) FROM slm.documents WHERE index_id = %s", [held.index]
        ).fetchone()
        chunks = int(row[0]) if row else 0
        if make_graph(connection, held.index, chunks, int(held.made_with["dimension"])):
            connection.execute(f"ANALYZE slm.chunks_{held.index:d}")
        return chunks

    def _publish(self, connection: Connection, index: int) -> None:
        """Put an index that was made unseen into the place of the one that is there."""
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"slm new {self.address.index}"])
            old = self._id(connection)
            if old is not None:
                _drop(connection, [old])
            connection.execute("UPDATE slm.indexes SET ready = true WHERE id = %s", [index])


class _Run:
    """The writing of a plan, document by document."""

    def __init__(self, connection: Connection, held: HeldRows, plan: ChangePlan, embedder: Embedder, name: str) -> None:
        self._connection, self._held, self._plan, self._embedder = connection, held, plan, embedder
        self._terms = held.words.terms(name)
        self._writer = IndexWriter(connection, held.index, int(held.made_with["dimension"]))

    def write(self, on_chunks: OnChunks) -> None:
        """Sources first, so that a sync goes on with what a broken-off run began; what goes is removed last."""
        plan, held = self._plan, self._held
        changed = {root: told for root, told in plan.sources.items() if held.sources.get(root) != told}
        self._writer.set_sources(changed)
        for old, document in plan.carry.items():
            self._writer.rename(old, held.ids[old], document.source, plan.table[document.source])
        self._embed(on_chunks)
        for source, entry in plan.table.items():
            before = held.documents.get(source)
            if before is not None and source not in plan.drop and {**before, "chunks": 0} != {**entry, "chunks": 0}:
                self._writer.rename(source, held.ids[source], source, entry)
        for source in plan.gone:
            self._writer.remove(source, held.ids[source])

    def _embed(self, on_chunks: OnChunks) -> None:
        chunks = {document.source: chunked([document], self._embedder) for document in self._plan.embed}
        groups = grouped(self._plan.embed, chunks)
        whole = [[chunk for document in group for chunk in chunks[document.source]] for group in groups]
        total, done, written = sum(map(len, chunks.values())), 0, 0
        for number, vectors in embedded_groups(whole, self._embedder, lambda n: self._known(groups[n])):
            self._put(groups[number], chunks, vectors)
            done += len(whole[number])
            on_chunks(done, total)
            written += len(groups[number])
            if written >= PIECES:
                merge_words(self._connection, self._held.index)
                written = 0

    def _known(self, group: Sequence[Document]) -> dict[str, Vectors]:
        """The vectors of the documents whose place these take, by the text that was embedded."""
        ids = [id_ for document in group for id_ in self._replaced(document).values() if id_ is not None]
        return self._writer.known_vectors(ids, lambda line: chunk_of(json.loads(line), "")) if ids else {}

    def _put(self, group: Sequence[Document], chunks: Mapping[str, Sequence[Any]], vectors: Vectors) -> None:
        """Write documents that were embedded together, each by itself."""
        at = 0
        for document in group:
            own = chunks[document.source]
            held = HeldDocument(document.source, self._plan.table[document.source], own, vectors[at : at + len(own)])
            self._writer.put(held, self._replaced(document), self._terms)
            at += len(own)

    def _replaced(self, document: Document) -> dict[str, int | None]:
        """The sources whose place a document takes, with the ids that were known when this run began."""
        source = composed(document.source)
        sources = [document.source, *([self._plan.named[source]] if source in self._plan.named else [])]
        return {one: self._held.ids.get(one) for one in dict.fromkeys(sources)}


def _drop(connection: Connection, indexes: Sequence[int]) -> None:
    for index in indexes:
        connection.execute("DELETE FROM slm.indexes WHERE id = %s", [index])
        connection.execute(f"DROP TABLE IF EXISTS slm.chunks_{index:d}")
