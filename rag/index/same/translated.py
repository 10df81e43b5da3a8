"""Texts that say the same in two languages, by their vectors.

Vectors of one language lie near each other whatever the texts are about; without that, a text and its translation are
each other's nearest in the other language. It knows nothing of indexes or queries.
"""

from __future__ import annotations

import numpy as np

from rag.index.embedders.base import Vectors
from rag.index.generation.arrays import Mask

# On twelve bilingual organisations of data/reading 98 of a hundred pairs above it stand on two translations of a page,
# at half of it 88.
_NEAR = 0.3


def translations(vectors: Vectors, means: Vectors, own: Mask) -> list[tuple[int, int]]:
    """The (own, other) rows that are each other's nearest of the other side, and near enough.

    vectors, means: (rows, dimension), each row's vector and the mean of its language's; own: (rows,) bool, which are in
    the language that is asked in.
    """
    apart = vectors - means
    apart /= np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-9)
    here, there = np.flatnonzero(own), np.flatnonzero(~own)
    if not len(here) or not len(there):
        return []
    cosines = apart[here] @ apart[there].T
    nearest, nearest_back = cosines.argmax(axis=1), cosines.argmax(axis=0)
    return [
        (int(here[row]), int(there[column]))
        for row, column in enumerate(nearest)
        if nearest_back[column] == row and cosines[row, column] >= _NEAR
    ]
