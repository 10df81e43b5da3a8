"""Where the vectors of each language lie, so that a query's nearest are not all in its own language.

Embedders for many languages put texts of one language near each other, whatever they are about: the best page in
another language is then farther from a question than many beside the point in its own. A language's mean says how near
to the query its texts are anyway, and taking that away leaves what they are about. It knows nothing of documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rag.index.generation.arrays import Matrix

Codes = npt.NDArray[np.int16]

_BLOCK = 65_536
# Vectors of a language are copied while they are no more than one in so many; else all are multiplied by 1 or 0.
_ONE_IN = 4
# The mean of a few chunks is mostly what they are about: so many of the mean of all are added to every language.
_SHARED = 5


@dataclass(frozen=True)
class Centres:
    """The languages of an index and the mean vector of each, (languages, dimension) float32."""

    languages: tuple[str, ...]
    means: Matrix

    def nearness(self, query: Matrix) -> Matrix:
        """How near each language is to a query vector (dimension,): (languages,), the inner products with the means."""
        near: Matrix = self.means @ query
        return near


@dataclass(frozen=True)
class LanguageSums:
    """Of one part: the language of each vector and the sums of each language's vectors.

    language_of: (vectors,) int16, the number of each one's language, -1 for one that does not count; sums: (languages,
    dimension) float64; counts: (languages,) int64, how many vectors they are of.
    """

    languages: tuple[str, ...]
    language_of: Codes
    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


def summed(
    vectors: Matrix, languages: Sequence[str], language_of: Codes, before: LanguageSums | None = None
) -> LanguageSums:
    """The sums of a part's vectors (n, dimension). before: those of the same vectors, when other ones counted.

    Where they are known only vectors are read that count now and did not, or the other way round.
    """
    count = len(languages)
    counts = np.bincount(language_of[language_of >= 0], minlength=count).astype(np.int64)
    sums = np.zeros((count, vectors.shape[1]))
    if before is not None:
        number = {name: n for n, name in enumerate(languages)}
        # The last one is for -1, which stays what it is.
        renumbered = np.asarray([*(number.get(name, -1) for name in before.languages), -1], dtype=np.int16)
        earlier = renumbered[before.language_of]
        changed = np.flatnonzero(earlier != language_of)
        if 2 * len(changed) < len(language_of):
            for name, row in zip(before.languages, before.sums, strict=True):
                if name in number:
                    sums[number[name]] = row
            touched = vectors[changed]
            sums += _sums(touched, language_of[changed], count) - _sums(touched, earlier[changed], count)
            return LanguageSums(tuple(languages), language_of, sums, counts)
    for start in range(0, len(language_of), _BLOCK):
        sums += _sums(vectors[start : start + _BLOCK], language_of[start : start + _BLOCK], count)
    return LanguageSums(tuple(languages), language_of, sums, counts)


def _sums(vectors: Matrix, language_of: Codes, count: int) -> Matrix:
    """The sum of each language's vectors, (count, dimension)."""
    sums = np.zeros((count, vectors.shape[1]), dtype=np.float32)
    for number in range(count):
        chosen = language_of == number
        few = _ONE_IN * np.count_nonzero(chosen) < len(chosen)
        sums[number] = vectors[chosen].sum(axis=0) if few else chosen.astype(np.float32) @ vectors
    return sums


def centres_of(languages: Sequence[str], parts: Iterable[LanguageSums], dimension: int) -> Centres:
    """The centres of an index by the sums of its parts, all of the same languages."""
    sums, counts = np.zeros((len(languages), dimension)), np.zeros((len(languages), 1))
    for part in parts:
        sums += part.sums
        counts += part.counts[:, None]
    return centres_from(tuple(languages), sums, counts)


def centres_from(languages: tuple[str, ...], sums: npt.NDArray[np.float64], chunks: npt.NDArray[np.generic]) -> Centres:
    """The centres of languages by the sums of their vectors, (languages, dimension), and their numbers of chunks."""
    counts = np.asarray(chunks, dtype=np.float64).reshape(-1, 1)
    overall = sums.sum(axis=0) / max(1, counts.sum())
    return Centres(languages, ((sums + _SHARED * overall) / (counts + _SHARED)).astype(np.float32))
