"""The nearest vectors of one part, by FAISS: exact while it is small, by inverted lists (IVF) beyond.

An edit makes a small part beside the large one, so that what IVF learned of the large one stays: it is trained when
parts are merged (`rag.index.generation.merging`). It knows nothing of chunks or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Allowed = npt.NDArray[np.bool_]

# Flat search reads every vector: 24 ms a query for 100,000 of 384 dimensions, a quarter of a second for a million.
MOST_FLAT = 300_000
# Lists: a multiple of the root of the number of vectors, so that choosing lists costs about as much as reading them
# (https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index). A query reads every 16th of them.
_LISTS_A_ROOT, _READ_SHARE = 4, 16
_SAMPLED_A_LIST, _ROUNDS, _SEED = 40, 10, 1234
# What a filter leaves is searched exactly when it is no more than this: lists that are read may hold none of it.
_FEW = 50_000
_BLOCK = 65_536


@dataclass(frozen=True)
class Lists:
    """Inverted lists of a part's vectors: (lists, dimension) float32 centres, and (vectors,) int32 each one's list."""

    centres: Matrix
    list_of: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Dense:
    """The vectors of a part, (n, dimension) float32 of length 1, and their lists where there are any."""

    vectors: Matrix
    lists: Lists | None

    @property
    def kind(self) -> str:
        """How it is searched: flat, or ivf with its number of lists."""
        return "flat" if self.lists is None else f"ivf {len(self.lists.centres)}"

    def search(self, vector: Matrix, count: int, allowed: Allowed | None) -> tuple[npt.NDArray[np.int64], Matrix]:
        """The rows nearest to one query vector and their inner products, nearest first; of the allowed rows only."""
        faiss = _faiss()
        left = len(self.vectors) if allowed is None else int(allowed.sum())
        count = min(count, left)
        if not count:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        if self.lists is not None and allowed is not None and left <= _FEW:
            return _exact(self.vectors, np.flatnonzero(allowed), vector, count)
        chosen = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self.lists is None:
            how = faiss.SearchParameters(sel=chosen) if chosen is not None else None
        else:
            read = max(1, len(self.lists.centres) // _READ_SHARE)
            how = faiss.SearchParametersIVF(nprobe=read, **({"sel": chosen} if chosen is not None else {}))
        scores, rows = self._index.search(vector.reshape(1, -1), count, params=how)
        found = rows[0] >= 0
        return rows[0][found], scores[0][found]

    @cached_property
    def _index(self) -> Any:
        faiss = _faiss()
        count, dimension = self.vectors.shape
        index: Any = faiss.IndexFlatIP(dimension)
        if self.lists is not None:
            index.add(self.lists.centres)
            lists = faiss.IndexIVFFlat(index, dimension, len(self.lists.centres), faiss.METRIC_INNER_PRODUCT)
            for start in range(0, count, _BLOCK):
                block = np.ascontiguousarray(self.vectors[start : start + _BLOCK])
                ids = np.arange(start, start + len(block), dtype=np.int64)
                of = self.lists.list_of[ids].astype(np.int64)
                pointers = (faiss.swig_ptr(array) for array in (block, ids, of))
                lists.add_core(len(block), *pointers)
            return lists
        for start in range(0, count, _BLOCK):
            index.add(np.ascontiguousarray(self.vectors[start : start + _BLOCK]))
        return index

    def load(self) -> None:
        """Make ready to search: otherwise the first query pays for it."""
        if len(self.vectors):
            _ = self._index


def _faiss() -> Any:
    import faiss  # its stubs know neither arrays nor search parameters

    return faiss


def _exact(
    vectors: Matrix, rows: npt.NDArray[np.int64], vector: Matrix, count: int
) -> tuple[npt.NDArray[np.int64], Matrix]:
    scores = vectors[rows] @ vector
    best = np.argsort(-scores, kind="stable")[:count]
    return rows[best], scores[best]


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
