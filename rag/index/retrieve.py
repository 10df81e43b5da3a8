"""Ranks the chunks of an index for a query: nearest vectors and BM25, fused (hybrid search).

It knows nothing of prompts or files.

Fusion is a weighted sum of both legs' scores, each brought to 0 to 1 (a convex combination: Bruch, Gai & Ingber, TOIS
2023), with a bonus for chunks in the language of the query. Of a text and its translation the readable one comes first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from rag.index.chunk import Chunk
from rag.index.embed import Embedder, Vectors
from rag.index.embedders.asked import asked
from rag.index.generation.arrays import Mask
from rag.index.generation.centres import Centres
from rag.index.lexical.bm25 import Bm25
from rag.index.lexical.pairs import HAS_PAIRS
from rag.index.same.codes import names_in
from rag.index.same.once import once_each
from rag.index.same.translated import translations
from rag.index.variants import comparable, searchable
from slm.errors import InputError
from slm.joints import EVERYTHING, Filters
from slm.text.language import detect

Leg = Literal["dense", "lexical", "fused"]
LEGS: tuple[Leg, ...] = ("dense", "lexical", "fused")
_DEPTH = 50
_SENTENCE_WORDS = 4
# More than a chunk's whole score can be: what is called by its number is what is meant.
_NAMED = 20.0


class ChunkRows(Protocol):
    """The chunks of an index, by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Chunk: ...

    def __iter__(self) -> Iterator[Chunk]: ...

    def at(self, rows: Iterable[int]) -> dict[int, Chunk]:
        """Several chunks by their rows: one way to a store that is on another machine."""
        ...

    def source(self, row: int) -> str:
        """The source of a chunk, without reading the chunk."""
        ...


class Narrowing(Protocol):
    """What a query can be narrowed down to, as `rag.index.generation.facets.Facets` says it."""

    @property
    def languages(self) -> list[str]: ...

    @property
    def every_language(self) -> tuple[str, ...]: ...

    def in_language(self, rows: npt.NDArray[np.int64], language: str | None) -> Mask: ...

    def allowed(self, filters: Filters) -> Mask | None: ...

    def languages_of(self, filters: Filters) -> list[str]: ...


class Searched(Protocol):
    """One state of an index, whatever store keeps it: what a search needs of it. Rows number its chunks from 0.

    `rag.index.store.Generation` is one, and `rag.stores.postgres.snapshot.Snapshot`.
    """

    @property
    def documents(self) -> Collection[str]:
        """The sources of its documents."""
        ...

    @property
    def chunks(self) -> ChunkRows: ...

    @property
    def facets(self) -> Narrowing: ...

    @property
    def lexical(self) -> Bm25: ...

    @property
    def centres(self) -> Centres: ...

    def vectors(self, rows: Sequence[int]) -> Vectors:
        """The vectors of some chunks, (rows, dimension)."""
        ...

    def dense_top(
        self, vector: Vectors, count: int, allowed: Mask | None = None, ahead: Sequence[float] | None = None
    ) -> list[tuple[int, float]]:
        """The nearest (row, inner product) pairs of one query vector (dimension,), of the allowed rows only.

        ahead: what is added for the rows of each of `facets.every_language`.
        """
        ...


@dataclass(frozen=True)
class Weights:
    """How much the lexical leg counts beside the dense one's 1.0, and the factor for the query's language; how many
    chunks of one page there are at most as long as others are left.

    Chosen on twelve training organisations of data/reading, which the query adapter was not taught for it: recall@5 is
    the same within a hundredth from 0.4 to 0.6.
    """

    lexical: float = 0.5
    same_language: float = 1.05
    a_page: int = 2


@dataclass(frozen=True)
class Hit:
    """A chunk's row in the generation, its score in the leg that was asked (higher is better), and the rows of other
    chunks that say the same."""

    row: int
    score: float
    also: tuple[int, ...] = ()


ScoredRows = Sequence[tuple[int, float]]


# Cosines no further apart say nothing about which is better.
_AS_GOOD_AS_EQUAL = 1e-3
# A text in another language than the query's shares no words with it, whatever it says: they are taken to say this much
# of what its vector does.
_UNTOLD = 0.8


def fuse(
    dense: ScoredRows,
    lexical: ScoredRows,
    weight: float,
    factors: Mapping[int, float] | None = None,
    foreign: Collection[int] = (),
) -> list[Hit]:
    """(row, score) of both legs as one ranking: dense + weight * lexical, each from 0 to 1, times a row's factor.

    Cosines lie close together wherever they lie, so they are measured from the lowest of those found, or from a
    thousandth below the highest where all are as good as equal: what rounding made of them is no order. BM25 has a
    zero of its own. foreign: rows in another language than the query's, whose words say nothing.
    """
    lowest = min((score for _, score in dense), default=0.0)
    highest = max((score for _, score in dense), default=0.0)
    lowest = min(lowest, highest - _AS_GOOD_AS_EQUAL)
    near = dict(_shares([(row, score - lowest) for row, score in dense]))
    said = dict(_shares(lexical))
    said.update((row, max(said.get(row, 0.0), _UNTOLD * near.get(row, 0.0))) for row in foreign)
    factors = factors or {}
    return _best_first([
        Hit(row, (near.get(row, 0.0) + weight * said.get(row, 0.0)) * factors.get(row, 1.0))
        for row in dict.fromkeys((*near, *said))
    ])  # fmt: skip


def _shares(scored: ScoredRows) -> list[tuple[int, float]]:
    """The scores as shares of the highest; all 1 where the highest is 0."""
    highest = max((score for _, score in scored), default=0.0)
    return [(row, score / highest if highest > 0 else 1.0) for row, score in scored]


def _best_first(hits: Sequence[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.row))


def search(
    generation: Searched,
    embedder: Embedder,
    query: str,
    k: int = 5,
    leg: Leg = "fused",
    weights: Weights | None = None,
    filters: Filters = EVERYTHING,
) -> list[Hit]:
    """The best k chunks for a query by one leg or both, of the documents that the filters let through.

    Raises InputError for an empty query or index, and what `rag.index.generation.facets.Facets.allowed` raises.
    """
    if not query.strip():
        raise InputError("the query is empty")
    if not len(generation.chunks):
        raise InputError("the index holds no documents", hint="Add some with: slm rag add INDEX PATH...")
    weights = weights or Weights()
    depth = max(_DEPTH, k)
    allowed = generation.facets.allowed(filters)
    dense = nearest(generation, asked(embedder, comparable(query)), depth, allowed) if leg != "lexical" else []
    lexical = generation.lexical.top(query, depth, allowed) if leg != "dense" else []
    if leg != "fused":
        return _shown(generation, [Hit(row, score) for row, score in dense or lexical], k, weights.a_page)
    rows = [row for row, _ in (*dense, *lexical)]
    own = _in_its_language(generation, query, rows)
    foreign = set(rows) - own
    factors = dict.fromkeys(own, weights.same_language) if foreign else {}
    fused = fuse(dense, lexical, weights.lexical, factors, foreign)
    if own and foreign:
        fused = _readable_first(generation, fused, own)
    return _shown(generation, _named_first(generation, query, fused), k, weights.a_page)


def nearest(generation: Searched, vector: Vectors, count: int, allowed: Mask | None) -> list[tuple[int, float]]:
    """The (row, score) pairs nearest to a query vector (dimension,) beside what is near it in each language anyway.

    The score is the inner product, as if all languages were as near to the query as the nearest one. allowed: (rows,)
    bool; None: all.
    """
    if len(generation.facets.every_language) < 2:
        return generation.dense_top(vector, count, allowed)
    near = generation.centres.nearness(vector)
    return generation.dense_top(vector, count, allowed, max(near) - near)


def other_sources(generation: Searched, hit: Hit) -> tuple[str, ...]:
    """The documents besides its own that say what a hit says, each once."""
    own = generation.chunks.source(hit.row)
    return tuple(dict.fromkeys(source for row in hit.also if (source := generation.chunks.source(row)) != own))


def _readable_first(generation: Searched, hits: list[Hit], own: set[int]) -> list[Hit]:
    """Of a text and its translation the one in the query's language (in `own`) has the better score of both."""
    rows = np.asarray([hit.row for hit in hits], dtype=np.int64)
    number = np.zeros(len(rows), dtype=np.int64)
    for n, language in enumerate(generation.facets.every_language):
        number[generation.facets.in_language(rows, language)] = n
    means = generation.centres.means[number]
    scores = [hit.score for hit in hits]
    read = np.asarray([hit.row in own for hit in hits])
    for one, other in translations(generation.vectors(rows.tolist()), means, read):
        scores[one], scores[other] = max(scores[one], scores[other]), min(scores[one], scores[other])
    return _best_first([Hit(hit.row, score, hit.also) for hit, score in zip(hits, scores, strict=True)])


def _named_first(generation: Searched, query: str, hits: list[Hit]) -> list[Hit]:
    """The hits, before all others those that hold the part numbers, versions or numbered rooms that the query names."""
    names = names_in(searchable(query))
    if not names:
        return hits
    chunks = generation.chunks.at(hit.row for hit in hits)
    texts = [searchable(chunks[hit.row].indexed_text).lower() for hit in hits]
    held = [sum(name.search(text) is not None for name in names) / len(names) for text in texts]
    return _best_first([Hit(hit.row, hit.score + _NAMED * share) for hit, share in zip(hits, held, strict=True)])


def _shown(generation: Searched, hits: Sequence[Hit], k: int, a_page: int) -> list[Hit]:
    """The first k hits that say different things, at most `a_page` of one page as long as others are left."""
    chunks = generation.chunks.at(hit.row for hit in hits)
    shown = once_each(
        list(chunks), lambda row: (chunks[row].context, chunks[row].text), lambda row: chunks[row].source, k, a_page
    )
    return [Hit(one.row, hits[one.place].score, one.also) for one in shown]


def _in_its_language(generation: Searched, query: str, rows: Sequence[int]) -> set[int]:
    """Those of the rows that are in the language of the query; all of them where that is not known."""
    # A few Latin words alone may be names that pages of every language use: they say nothing of the reader.
    if query.isascii() and len(query.split()) < _SENTENCE_WORDS:
        return set(rows)
    # Names in Latin letters inside a Japanese question do not make it an English one.
    prose = re.sub(r"[A-Za-z]+", " ", query) if HAS_PAIRS.search(query) else query
    language = detect(prose, {*generation.facets.languages, "en", "ja"}).language
    if language is None:
        return set(rows)
    ranked = np.asarray(rows, dtype=np.int64)
    return set(ranked[generation.facets.in_language(ranked, language)].tolist())
