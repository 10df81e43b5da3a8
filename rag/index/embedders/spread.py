"""An embedder whose many passages are embedded by the machines of a Ray cluster, an actor each.

Batches are those of one machine, and one actor embeds the whole of each: so the vectors are the same to the bit. It
knows nothing of chunks or indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rag.index.embedders.base import Embedder, Identity, Vectors
from slm.errors import MismatchError
from slm.native.ray_data import ActorPlan, mapped

Opener = Callable[[], Embedder]


class SpreadEmbedder:
    """An embedder (rag.index.embedders.base.Embedder). opener: opens the same one on any machine; it is pickled."""

    def __init__(self, local: Embedder, opener: Opener, plan: ActorPlan) -> None:
        self._local, self._opener, self._plan = local, opener, plan
        self.identity = local.identity

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._local.queries(texts)

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._local.passages(texts)

    def count_tokens(self, text: str) -> int:
        return self._local.count_tokens(text)

    def in_batches(self, batches: Sequence[Sequence[str]]) -> Iterator[tuple[Sequence[str], Vectors]]:
        """Each batch with its vectors, in the order they are ready. Raises MismatchError where a machine has another
        embedder, and what an actor raises."""
        items = [list(batch) for batch in batches]
        for number, raw in mapped(_Embedding, (self._opener, self.identity), items, self._plan):
            vectors = np.frombuffer(raw, dtype="<f4").reshape(len(batches[number]), self.identity.dimension)
            yield batches[number], vectors.astype(np.float32)


class _Embedding:
    """What an actor does."""

    def __init__(self, opener: Opener, identity: Identity) -> None:
        self._embedder = opener()
        if self._embedder.identity != identity:
            there = self._embedder.identity
            raise MismatchError(
                f"another machine has the embedder '{there.name}' as [{there.revision}], this one as "
                f"[{identity.revision}]",
                hint="Install the same versions on every machine, as constraints.txt says.",
            )

    def __call__(self, texts: list[str]) -> Any:
        return self._embedder.passages(texts).astype("<f4").tobytes()
