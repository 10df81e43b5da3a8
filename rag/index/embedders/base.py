"""What every embedder is: texts to L2-normalised vectors, and an identity that an index records.

It knows nothing of chunks, indexes or particular models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from slm.errors import DamagedFileError

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Identity:
    """What makes two embedders comparable: vectors of different identities must not meet in one index."""

    name: str
    revision: str
    query_prefix: str
    passage_prefix: str
    dimension: int
    max_tokens: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Embedder(Protocol):
    """Texts to vectors, (n, dimension) float32 of length 1; count_tokens includes the passage prefix."""

    @property
    def identity(self) -> Identity: ...

    def queries(self, texts: Sequence[str]) -> Vectors: ...

    def passages(self, texts: Sequence[str]) -> Vectors: ...

    def count_tokens(self, text: str) -> int: ...


@runtime_checkable
class BatchEmbedder(Embedder, Protocol):
    """One that embeds several batches at once."""

    def in_batches(self, batches: Sequence[Sequence[str]]) -> Iterator[tuple[Sequence[str], Vectors]]: ...


def passages_of(embedder: Embedder, batches: Sequence[Sequence[str]]) -> Iterator[tuple[Sequence[str], Vectors]]:
    """Each batch of passages with its vectors, in the order they are ready."""
    if isinstance(embedder, BatchEmbedder):
        yield from embedder.in_batches(batches)
        return
    for batch in batches:
        yield batch, embedder.passages(batch)


def normalised(vectors: Any) -> Vectors:
    """Rows scaled to length 1. Raises DamagedFileError for a row that has no direction."""
    rows = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths)) or np.any(lengths == 0):
        raise DamagedFileError("the embedder gave a vector that is zero or not finite", hint="Pull the embedder again.")
    return np.ascontiguousarray(rows / lengths, dtype=np.float32)
