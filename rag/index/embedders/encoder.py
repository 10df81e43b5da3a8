"""Token ids to vectors or states by llama.cpp: contexts of one thread a core, each fed batch by batch.

Batches of a few hundred tokens are too small to be shared out between cores: whole ones side by side are. It knows
nothing of texts.
"""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rag.index.embedders.base import Vectors
from slm.native.batches import batches
from slm.native.llama import embeddings_in, open_embedder, open_model, physical_cores, states_in

# Tokens and texts of a batch; llama.cpp compares every token of a batch with every other, whichever text it is of.
_TOKENS, _TEXTS = 256, 64
_T = TypeVar("_T")
_R = TypeVar("_R")


class SideBySide:
    """A context a core, and work that is shared out between them.

    opened: makes one; it is called with the most tokens and texts of a batch. longest: the most tokens of one text.
    """

    def __init__(self, opened: Callable[[int, int], Any], longest: int) -> None:
        self._cores = physical_cores()
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._cores):
            self._free.put(opened(max(_TOKENS, longest), _TEXTS))

    def computed(
        self, texts: Sequence[_T], sizes: Sequence[int], compute: Callable[[Any, list[_T]], list[_R]]
    ) -> list[_R]:
        """What `compute` makes of batches of the texts in a context, in their order. sizes: of each, in tokens."""
        planned = list(batches(sizes, _TOKENS, _TEXTS, longest_first=True))
        rows: dict[int, _R] = {}

        def run(batch: list[int]) -> None:
            context = self._free.get()
            try:
                found = compute(context, [texts[number] for number in batch])
            finally:
                self._free.put(context)
            rows.update(zip(batch, found, strict=True))

        with ThreadPoolExecutor(self._cores) as pool:
            try:
                list(pool.map(run, planned))
            except BaseException:  # Ctrl-C: what has not begun is not computed
                pool.shutdown(cancel_futures=True)
                raise
        return [rows[number] for number in range(len(texts))]


class GgufEncoder:
    """An embedding model in a GGUF file. `longest`: the most tokens that one text may have.

    pooled: it gives vectors of texts (`embedded`), else the states of their tokens (`states`).
    """

    def __init__(self, file: Path, longest: int, *, pooled: bool = True) -> None:
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)
        self.model: Any = open_model(self._stack, file)

        def opened(tokens: int, texts: int) -> Any:
            return open_embedder(self._stack, self.model, n_ctx=tokens, n_seq_max=texts, n_threads=1, pooled=pooled)

        self._contexts = SideBySide(opened, longest)

    def embedded(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """The vectors of texts given as token ids, (texts, dimension) float32 of length 1. Raises EngineError."""
        return np.asarray(self._computed(texts, embeddings_in), dtype=np.float32)

    def states(self, texts: Sequence[Sequence[int]]) -> list[Vectors]:
        """The last hidden states of texts given as token ids, each (tokens, dimension) float32. Raises EngineError."""
        return self._computed(texts, states_in)

    def _computed(
        self, texts: Sequence[Sequence[int]], compute: Callable[[Any, Any, list[list[int]]], list[_R]]
    ) -> list[_R]:
        def in_context(context: Any, batch: list[Sequence[int]]) -> list[_R]:
            return compute(self.model, context, [list(ids) for ids in batch])

        return self._contexts.computed(texts, [len(ids) for ids in texts], in_context)
