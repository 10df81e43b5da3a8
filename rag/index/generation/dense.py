"""The nearest vectors of one part: every one compared while it is small, by FAISS' inverted lists (IVF) beyond.

An edit makes a small part beside the large one, so that what IVF learned of the large one stays: it is trained when
parts are merged (`rag.index.generation.merging`). It knows nothing of chunks or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rag.index.generation.arrays import Mask, Matrix, Numbers

# A flat search reads every vector: 154 MB for 100,000 of 384 dimensions, three times that here.
MOST_FLAT = 300_000
# Lists: a multiple of the root of the number of vectors, so that choosing lists costs about as much as reading them
# (https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index). A query reads every 16th of them.
_LISTS_A_ROOT, _READ_SHARE = 4, 16
_SAMPLED_A_LIST, _ROUNDS, _SEED = 40, 10, 1234
# What a filter leaves is searched exactly when it is no more than this: lists that are read may hold none of it.
_FEW = 50_000
# Chosen rows are copied before they are multiplied, which pays while they are no more than one in so many.
_ONE_IN = 4
_BLOCK = 65_536


@dataclass(frozen=True)
class Lists:
    """Inverted lists of a part's vectors: (lists, dimension) float32 centres, and (vectors,) int32 each one's list."""

    centres: Matrix
    list_of: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Lead:
    """What is added to a row's inner product: table[group_of[row]]. group_of: (n,) int16; table: (groups,) float32."""

    group_of: npt.NDArray[np.int16]
    table: Matrix


@dataclass(frozen=True)
class Dense:
    """The vectors of a part, (n, dimension) float32 of length 1, and their lists where there are any.

    A flat search reads them where they are, mapped from the disk: nothing is copied when an index is opened.
    """

    vectors: Matrix
    lists: Lists | None

    @property
    def kind(self) -> str:
        """How it is searched: flat, or ivf with its number of lists."""
        return "flat" if self.lists is None else f"ivf {len(self.lists.centres)}"

    def search(
        self, vector: Matrix, count: int, allowed: Mask | None, lead: Lead | None = None
    ) -> tuple[Numbers, Matrix]:
        """The rows with the highest inner products with one query vector, and those, highest first.

        allowed: (n,) bool, the rows to rank; lead: what rows have ahead of each other.
        """
        left = len(self.vectors) if allowed is None else int(np.count_nonzero(allowed))
        count = min(count, left)
        if not count:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        few = left * _ONE_IN < len(self.vectors) if self.lists is None else left <= _FEW
        if allowed is not None and few:
            return self._of_rows(vector, count, np.flatnonzero(allowed), lead)
        if self.lists is None:
            return self._flat(vector, count, allowed, lead)
        found = list(self._by_groups(vector, count, allowed, lead))
        rows, scores = (np.concatenate(columns) for columns in zip(*found, strict=True))
        best = _best(scores, count)
        return rows[best], scores[best]

    def _flat(self, vector: Matrix, count: int, allowed: Mask | None, lead: Lead | None) -> tuple[Numbers, Matrix]:
        scores = self.vectors @ vector
        if lead is not None:
            scores += lead.table[lead.group_of]
        if allowed is not None:
            scores[~allowed] = -np.inf
        best = _best(scores, count)
        return best, scores[best]

    def _of_rows(self, vector: Matrix, count: int, rows: Numbers, lead: Lead | None) -> tuple[Numbers, Matrix]:
        blocks = [self.vectors[rows[start : start + _BLOCK]] @ vector for start in range(0, len(rows), _BLOCK)]
        scores = np.concatenate(blocks)
        if lead is not None:
            scores += lead.table[lead.group_of[rows]]
        best = _best(scores, count)
        return rows[best], scores[best]

    def _by_groups(
        self, vector: Matrix, count: int, allowed: Mask | None, lead: Lead | None
    ) -> Iterator[tuple[Numbers, Matrix]]:
        """The nearest of each group: FAISS ranks by the inner product alone."""
        if lead is None:
            yield self._by_lists(vector, count, allowed)
            return
        for group, ahead in enumerate(lead.table):
            members = lead.group_of == group
            rows, scores = self.search(vector, count, members if allowed is None else members & allowed)
            yield rows, scores + ahead

    def _by_lists(self, vector: Matrix, count: int, allowed: Mask | None) -> tuple[Numbers, Matrix]:
        faiss = _faiss()
        read = max(1, self._index.nlist // _READ_SHARE)
        chosen = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        how = faiss.SearchParametersIVF(nprobe=read, **({"sel": chosen} if chosen is not None else {}))
        scores, rows = self._index.search(vector.reshape(1, -1), count, params=how)
        found = rows[0] >= 0
        return rows[0][found], scores[0][found]

    @cached_property
    def _index(self) -> Any:
        """FAISS' index of a part with lists."""
        assert self.lists is not None
        faiss = _faiss()
        count, dimension = self.vectors.shape
        means = faiss.IndexFlatIP(dimension)
        means.add(self.lists.centres)
        lists = faiss.IndexIVFFlat(means, dimension, len(self.lists.centres), faiss.METRIC_INNER_PRODUCT)
        for start in range(0, count, _BLOCK):
            block = np.ascontiguousarray(self.vectors[start : start + _BLOCK])
            ids = np.arange(start, start + len(block), dtype=np.int64)
            of = self.lists.list_of[ids].astype(np.int64)
            pointers = (faiss.swig_ptr(array) for array in (block, ids, of))
            lists.add_core(len(block), *pointers)
        return lists

    def load(self) -> None:
        """Make ready to search: otherwise the first query pays for it."""
        if self.lists is not None and len(self.vectors):
            _ = self._index


def _faiss() -> Any:
    import faiss  # its stubs know neither arrays nor search parameters

    return faiss


def _best(scores: Matrix, count: int) -> Numbers:
    """Where the highest scores are, highest first; equal ones in their order."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    chosen = np.flatnonzero(scores >= least)
    best: Numbers = chosen[np.argsort(-scores[chosen], kind="stable")][:count]
    return best


def learn_lists(vectors: Matrix, most_flat: int = MOST_FLAT) -> Lists | None:
    """Inverted lists for so many vectors as are not searched flat; None for fewer."""
    count, dimension = vectors.shape
    if count <= most_flat:
        return None
    faiss = _faiss()
    lists = int(_LISTS_A_ROOT * count**0.5)
    sample = np.random.default_rng(_SEED).permutation(count)[: lists * _SAMPLED_A_LIST]
    means: Any = faiss.Kmeans(
        dimension, lists, niter=_ROUNDS, seed=_SEED, spherical=True, max_points_per_centroid=_SAMPLED_A_LIST,
        min_points_per_centroid=1,
    )  # fmt: skip
    means.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    list_of = np.empty(count, dtype=np.int32)
    for start in range(0, count, _BLOCK):
        block = np.ascontiguousarray(vectors[start : start + _BLOCK])
        list_of[start : start + len(block)] = means.index.search(block, 1)[1][:, 0]
    return Lists(np.ascontiguousarray(means.centroids, dtype=np.float32), list_of)
