"""An embedder that keeps the vectors of its last question, for those who search several times with one.

It knows nothing of particular models.
"""

from __future__ import annotations

from collections.abc import Sequence

from rag.index.embedders.base import Embedder, Vectors


class RememberedQuery:
    """An embedder (rag.index.embedders.base.Embedder) to which the same questions twice running are one."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder, self.identity = embedder, embedder.identity
        self._last: tuple[tuple[str, ...], Vectors] | None = None

    def queries(self, texts: Sequence[str]) -> Vectors:
        if self._last is None or self._last[0] != tuple(texts):
            self._last = tuple(texts), self._embedder.queries(texts)
        return self._last[1]

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._embedder.passages(texts)

    def count_tokens(self, text: str) -> int:
        return self._embedder.count_tokens(text)
