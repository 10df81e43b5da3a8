"""An index of the database at one moment, as a search asks it (implements rag.index.retrieve.Searched).

It lives inside one transaction: what it says fits together, whatever is written meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rag.index.chunk import Chunk
from rag.index.embed import Vectors
from rag.index.generation.arrays import Mask
from rag.index.generation.centres import Centres
from rag.index.generation.part import chunk_of
from rag.index.lexical.bm25 import Bm25
from rag.stores.postgres import graph
from rag.stores.postgres.binary import BigIntegers
from rag.stores.postgres.narrowed import NarrowedState
from rag.stores.postgres.state import State
from rag.stores.postgres.words import CHUNK_BITS

if TYPE_CHECKING:
    from rag.stores.postgres.connection import Connection

_BLOCK = 500


class StoredChunks:
    """The chunks of a state by row, read when they are asked for and kept as long as the transaction."""

    def __init__(self, connection: Connection, state: State) -> None:
        self._connection, self._state = connection, state
        self._read: dict[int, Chunk] = {}

    def __len__(self) -> int:
        return len(self._state.document_of)

    def __getitem__(self, row: int) -> Chunk:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.at([row])[row]

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self), _BLOCK):
            rows = range(start, min(start + _BLOCK, len(self)))
            held = self.at(rows)
            yield from (held[row] for row in rows)
            self._read.clear()

    def source(self, row: int) -> str:
        return self._state.documents[int(self._state.document_of[row])].source

    def at(self, rows: Iterable[int]) -> dict[int, Chunk]:
        wanted = list(rows)
        places = {self._state.document(row): row for row in wanted if row not in self._read}
        if places:
            found = self._connection.execute(
                f"SELECT document, ordinal, line FROM {self._state.table} JOIN "
                "unnest(%b, %b) AS wanted (document, ordinal) USING (document, ordinal)",
                [BigIntegers(np.asarray(part, dtype=np.int64)) for part in zip(*places, strict=True)],
            )
            for document, ordinal, line in found:
                row = places[int(document), int(ordinal)]
                self._read[row] = chunk_of(json.loads(line), self.source(row))
        return {row: self._read[row] for row in wanted}


class Snapshot:
    """A state with the transaction it is read in."""

    def __init__(self, connection: Connection, state: State) -> None:
        self._connection, self.state = connection, state
        self.chunks = StoredChunks(connection, state)
        self.facets = NarrowedState(connection, state)

    @property
    def documents(self) -> Collection[str]:
        return [one.source for one in self.state.documents]

    @property
    def lexical(self) -> Bm25:
        return self.state.lexical

    @property
    def centres(self) -> Centres:
        return self.state.centres

    def vectors(self, rows: Sequence[int]) -> Vectors:
        """The vectors of some chunks, (rows, dimension)."""
        places = np.asarray([self.state.document(row) for row in rows], dtype=np.int64)
        found = self._connection.cursor(binary=True).execute(
            f"SELECT vector FROM unnest(%b, %b) WITH ORDINALITY AS wanted (document, ordinal, place) JOIN "
            f"{self.state.table} USING (document, ordinal) ORDER BY place",
            [BigIntegers(column) for column in places.T],
        )
        return np.stack([vector for (vector,) in found])

    def dense_top(
        self, vector: Vectors, count: int, allowed: Mask | None = None, ahead: Sequence[float] | None = None
    ) -> list[tuple[int, float]]:
        """The nearest (row, inner product) pairs, by the graph where there is one and the filter leaves many.

        With `ahead` each language is asked by itself: a graph walks by distance alone.
        """
        if ahead is None:
            return self._nearest(vector, count, allowed)
        found = [
            (row, score + float(more))
            for mask, more in zip(self.state.by_language.values(), ahead, strict=True)
            for row, score in self._nearest(vector, count, mask if allowed is None else mask & allowed)
        ]
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:count]

    def _nearest(self, vector: Vectors, count: int, allowed: Mask | None) -> list[tuple[int, float]]:
        left = len(self.chunks) if allowed is None else int(allowed.sum())
        if not left:
            return []
        walked = self.state.has_graph and left > graph.FEW
        where, values = self._where(allowed, walked=walked)
        # What is added to the distance keeps the planner from the graph, where all are to be compared.
        order = "vector <#> %b" if walked else "(vector <#> %b) + 0"
        rows = self._connection.cursor(binary=True).execute(
            f"SELECT document, ordinal, vector <#> %b FROM {self.state.table}{where} ORDER BY {order} LIMIT %s",
            [vector, *values, vector, count],
        )
        found = rows.fetchall()
        keys = np.asarray([(document << CHUNK_BITS) + ordinal for document, ordinal, _ in found], dtype=np.int64)
        pairs = [
            (int(row), -float(distance)) for row, (_, _, distance) in zip(self.state.rows_of(keys), found, strict=True)
        ]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    def _where(self, allowed: Mask | None, *, walked: bool) -> tuple[str, list[object]]:
        """The rows as the database knows them: all, those of a language, or those of some documents."""
        if allowed is None:
            return "", []
        if walked:
            for language, mask in self.state.by_language.items():
                if np.array_equal(mask, allowed):
                    return " WHERE lang = %s", [language]
        state = self.state
        there = state.counts > 0
        ids = state.ids[there][allowed[state.starts[there]]]
        return " WHERE document = ANY(%b)", [BigIntegers(ids)]
