"""Where the vectors of each language lie, so that a query's nearest are not all in its own language.

Embedders for many languages put texts of one language near each other, whatever they are about: the best page in
another language is then farther from a question than many beside the point in its own. A language's mean says how near
to the query its texts are anyway, and taking that away leaves what they are about. It knows nothing of documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_BLOCK = 65_536
# The mean of a few chunks is mostly what they are about: so many of the mean of all are added to every language.
_SHARED = 5


@dataclass(frozen=True)
class Centres:
    """The languages of an index and the mean vector of each, (languages, dimension) float32."""

    languages: tuple[str, ...]
    means: Matrix

    def nearness(self, query: Matrix) -> dict[str, float]:
        """How near each language is to a query vector (dimension,): the inner product with its mean."""
        return dict(zip(self.languages, (self.means @ query).tolist(), strict=True))


def centres_of(
    parts: Iterable[tuple[Matrix, npt.NDArray[np.int32]]], by_language: Mapping[str, Mask], dimension: int
) -> Centres:
    """The centres of vectors in parts: (vectors of a part, the row of each or -1). by_language: masks over the rows."""
    if not by_language:
        return Centres((), np.empty((0, dimension), dtype=np.float32))
    masks = np.stack(list(by_language.values()))
    sums = np.zeros((len(masks), dimension))
    for vectors, rows in parts:
        for start in range(0, len(rows), _BLOCK):
            there = np.flatnonzero(rows[start : start + _BLOCK] >= 0)
            chosen = masks[:, rows[start + there]].astype(np.float32)
            sums += chosen @ vectors[start + there]
    return centres_from(tuple(by_language), sums, masks.sum(axis=1))


def centres_from(languages: tuple[str, ...], sums: npt.NDArray[np.float64], chunks: npt.NDArray[np.generic]) -> Centres:
    """The centres of languages by the sums of their vectors, (languages, dimension), and their numbers of chunks."""
    counts = np.asarray(chunks, dtype=np.float64).reshape(-1, 1)
    overall = sums.sum(axis=0) / max(1, counts.sum())
    return Centres(languages, ((sums + _SHARED * overall) / (counts + _SHARED)).astype(np.float32))
