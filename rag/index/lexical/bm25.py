"""BM25 over the terms of texts. It knows nothing of chunks, nor of what terms are (rag.index.lexical.terms).

Scoring: Robertson & Zaragoza, "The Probabilistic Relevance Framework" (2009), with the idf of Lucene, which is never
negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rag.index.generation.postings import Postings
from rag.index.lexical.pairs import HAS_PAIRS
from rag.index.lexical.terms import Terms

_K1, _B = 1.2, 0.75


@dataclass(frozen=True)
class Bm25:
    """BM25 over the parts of an index, exact: what a term weighs is counted anew for each query.

    parts: each part's postings, and (texts,) int32 the row of each of its texts in the whole, -1 for one that is no
    longer there. norms: (size,) float32, k1 (1 - b + b length / average length) of each row. terms: what made the
    postings, and makes the terms of a query.
    """

    parts: tuple[tuple[Postings, npt.NDArray[np.int32]], ...]
    norms: npt.NDArray[np.float32]
    terms: Terms

    @property
    def size(self) -> int:
        return len(self.norms)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """BM25 of every text for the query, (size,) float32; 0 where no term is shared."""
        scores = np.zeros(self.size, dtype=np.float32)
        for term in dict.fromkeys(self._expanded(self.terms(query))):
            there = []
            for (postings, rows), first in zip(self.parts, self._firsts, strict=True):
                span = postings.span(term)
                if span is None:
                    continue
                held, counts = postings.rows[span], postings.counts[span].astype(np.float32)
                if first is not None:  # nothing of this part was edited: its rows need not be looked up
                    there.append((held + first, counts))
                else:
                    own = rows[held]
                    there.append((own[own >= 0], counts[own >= 0]))
            frequency = sum(len(rows) for rows, _ in there)
            idf = np.float32(np.log1p((self.size - frequency + 0.5) / (frequency + 0.5)))
            for rows, counts in there:
                # A term has at most one posting a text, so that plain indexed addition is right.
                scores[rows] += idf * (_K1 + 1) * counts / (counts + self.norms[rows])
        return scores

    @cached_property
    def _firsts(self) -> list[np.int32 | None]:
        """Of each part the row of its first text where all its texts stand one after another, else None."""
        return [
            rows[0] if len(rows) and rows[0] >= 0 and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
            else None for _, rows in self.parts
        ]  # fmt: skip

    def _expanded(self, terms: Sequence[str]) -> list[str]:
        """A single Japanese character also stands for the pairs that hold it."""
        expanded = []
        for term in terms:
            expanded.append(term)
            if len(term) == 1 and HAS_PAIRS.match(term):
                expanded += sorted({pair for postings, _ in self.parts for pair in postings.pairs_with(term)})
        return expanded

    def top(self, query: str, count: int, allowed: npt.NDArray[np.bool_] | None = None) -> list[tuple[int, float]]:
        """The best (row, score) pairs with a score above 0, best first; ties in order of the rows.

        allowed: (size,) bool, the rows to rank; None: all of them.
        """
        scores = self.scores(query)
        if allowed is not None:
            scores[~allowed] = 0
        least = np.partition(scores, -count)[-count] if count < self.size else 0.0
        rows = np.flatnonzero((scores >= least) & (scores > 0))
        order = rows[np.argsort(-scores[rows], kind="stable")][:count]
        return [(int(row), float(scores[row])) for row in order]


def open_bm25(parts: Sequence[tuple[Postings, npt.NDArray[np.int32]]], size: int, terms: Terms) -> Bm25:
    """The lexical leg of these parts, whose texts have so many rows in all, and whose postings are of these terms."""
    lengths = np.zeros(size, dtype=np.float64)
    for postings, rows in parts:
        lengths[rows[rows >= 0]] = postings.lengths[rows >= 0]
    average = lengths.mean() if size and lengths.any() else 1.0
    return Bm25(tuple(parts), (_K1 * (1 - _B + _B * lengths / average)).astype(np.float32), terms)
