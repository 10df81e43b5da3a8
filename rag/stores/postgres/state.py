"""What a reader keeps in memory of one version of an index: which documents there are, their words, their centres.

Texts and vectors stay in the database. Of a newer version only what is new is read. It knows nothing of ranking.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rag.index.generation.arrays import Mask, Rows
from rag.index.generation.centres import Centres, centres_from
from rag.index.generation.postings import Postings
from rag.index.lexical.bm25 import Bm25, open_bm25
from rag.index.lexical.terms import Terms, Wording, kept_wording
from rag.stores.postgres.graph import has_graph
from rag.stores.postgres.spelling import unstored
from rag.stores.postgres.words import CHUNK_BITS, Keys, read_words
from slm.errors import UnknownNameError

if TYPE_CHECKING:
    from rag.stores.postgres.address import Address
    from rag.stores.postgres.connection import Connection

WORDS = "to_jsonb(indexes) ->> 'words'"
"""The column `words` of slm.indexes; null where the tables are of a version that had none."""


@dataclass(frozen=True)
class KnownDocument:
    """A document: its source, its language, and how many chunks it has."""

    source: str
    lang: str
    chunks: int


@dataclass(frozen=True)
class State:
    """A version of an index. known: documents by id; words: pieces by id; sums: by language (chunks, sum of vectors).
    terms: what the words were made by.

    Rows number the chunks in order of the documents' ids. narrowed: what filters let through, kept for the next time.
    """

    index: int
    version: int
    made_with: dict[str, Any]
    has_graph: bool
    known: Mapping[int, KnownDocument]
    words: Mapping[int, tuple[Keys, Postings]]
    sums: Mapping[str, tuple[int, npt.NDArray[np.float64]]]
    terms: Terms
    narrowed: dict[Any, Any] = field(default_factory=dict)

    @property
    def table(self) -> str:
        """The table of its chunks."""
        return f"slm.chunks_{self.index:d}"

    @cached_property
    def ids(self) -> Keys:
        """(documents,) int64, ascending."""
        return np.sort(np.fromiter(self.known, dtype=np.int64, count=len(self.known)))

    @cached_property
    def documents(self) -> list[KnownDocument]:
        """The documents in order of `ids`."""
        return [self.known[id_] for id_ in self.ids.tolist()]

    @cached_property
    def counts(self) -> Keys:
        """(documents,) int64, the chunks of each."""
        return np.fromiter((one.chunks for one in self.documents), dtype=np.int64, count=len(self.documents))

    @cached_property
    def starts(self) -> Keys:
        """(documents,) int64, the row of each one's first chunk."""
        starts: Keys = np.cumsum(self.counts) - self.counts
        return starts

    @cached_property
    def document_of(self) -> Rows:
        """(rows,) int32, the place in `documents` of each chunk's document."""
        return np.repeat(np.arange(len(self.documents), dtype=np.int32), self.counts)

    @cached_property
    def by_language(self) -> dict[str, Mask]:
        """Which chunks, (rows,) bool, are of a document in each language."""
        langs = np.asarray([one.lang for one in self.documents], dtype=np.str_)
        return {lang: (langs == lang)[self.document_of] for lang in sorted(set(langs.tolist()))}

    @cached_property
    def centres(self) -> Centres:
        """Where the vectors of each language lie, as `rag.index.generation.centres` has it."""
        languages = tuple(self.by_language)
        dimension = int(self.made_with["dimension"])
        nothing = (0, np.zeros(dimension))
        held = [self.sums.get(language, nothing) for language in languages]
        sums = np.stack([total for _, total in held]) if held else np.empty((0, dimension))
        return centres_from(languages, sums, np.asarray([count for count, _ in held], dtype=np.float64))

    @cached_property
    def lexical(self) -> Bm25:
        """BM25 over all pieces."""
        pieces = [(postings, self.rows_of(keys).astype(np.int32)) for keys, postings in self.words.values()]
        return open_bm25(pieces, len(self.document_of), self.terms)

    def rows_of(self, keys: Keys) -> Keys:
        """The rows of chunks by their numbers (`rag.stores.postgres.words`); -1 for those that are not there."""
        if not len(self.ids):
            return np.full(len(keys), -1, dtype=np.int64)
        documents, ordinals = keys >> CHUNK_BITS, keys & ((1 << CHUNK_BITS) - 1)
        at = np.minimum(np.searchsorted(self.ids, documents), len(self.ids) - 1)
        there = (self.ids[at] == documents) & (ordinals < self.counts[at])
        return np.where(there, self.starts[at] + ordinals, -1)

    def document(self, row: int) -> tuple[int, int]:
        """The id of a chunk's document, and its number in it."""
        at = int(self.document_of[row])
        return int(self.ids[at]), row - int(self.starts[at])


def newest(connection: Connection, address: Address, before: State | None) -> State:
    """The state of the index in this transaction; the one before where nothing was changed.

    Raises UnknownNameError where there is no index of that name.
    """
    row = connection.execute(
        f"SELECT id, version, embedder, {WORDS} FROM slm.indexes WHERE name = %s AND ready", [address.index]
    ).fetchone()
    if row is None:
        raise unknown_index(connection, address)
    index, version = int(row[0]), int(row[1])
    if before is not None and (before.index, before.version) == (index, version):
        return before
    if before is not None and before.index != index:
        before = None
    since = before.version if before else -1
    cursor = connection.cursor(binary=True)
    known = dict(before.known) if before else {}
    known.update(
        (int(id_), KnownDocument(unstored(source), unstored(lang), int(chunks)))
        for id_, source, lang, chunks in cursor.execute(
            "SELECT id, source, lang, chunks FROM slm.documents WHERE index_id = %s AND version > %s", [index, since]
        )
    )
    alive = {int(id_) for (id_,) in cursor.execute("SELECT id FROM slm.documents WHERE index_id = %s", [index])}
    known = {id_: one for id_, one in known.items() if id_ in alive}
    pieces = [int(id_) for (id_,) in cursor.execute("SELECT id FROM slm.words WHERE index_id = %s", [index])]
    held = {id_: before.words[id_] for id_ in pieces if id_ in before.words} if before else {}
    new = [id_ for id_ in pieces if id_ not in held]
    words = {**held, **(read_words(connection, new) if new else {})}
    sums = {
        unstored(lang): (int(chunks), np.frombuffer(total, dtype="<f8"))
        for lang, chunks, total in cursor.execute(
            "SELECT lang, chunks, total FROM slm.centres WHERE index_id = %s", [index]
        )
    }
    graph = has_graph(connection, index)
    terms = wording_of(row[3]).terms(address.shown)
    return State(index, version, json.loads(row[2]), graph, known, dict(sorted(words.items())), sums, terms)


def wording_of(words: str | None) -> Wording:
    """How an index makes its terms, of what WORDS selects."""
    return kept_wording(None if words is None else json.loads(words))


def unknown_index(connection: Connection, address: Address) -> UnknownNameError:
    """What is said where the database has no index of that name."""
    rows = connection.execute("SELECT name FROM slm.indexes WHERE ready ORDER BY name")
    return UnknownNameError(
        "index", address.index, [str(name) for (name,) in rows],
        hint=f"Looked in {address.shown}. Make one by giving that address, in quotes, to: slm rag add INDEX PATH...",
    )  # fmt: skip
