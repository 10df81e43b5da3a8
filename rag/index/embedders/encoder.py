"""Token ids to vectors by llama.cpp's encoder: a context of one thread for every core, each fed batch by batch.

Batches of a few hundred tokens are too small to be shared out between cores: whole ones side by side are. It knows
nothing of texts.
"""

from __future__ import annotations

import queue
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rag.index.embedders.base import Vectors
from slm.native.batches import batches
from slm.native.llama import embeddings_in, open_embedder, open_model, physical_cores

# Tokens and texts of a batch; llama.cpp compares every token of a batch with every other, whichever text it is of.
_TOKENS, _TEXTS = 256, 64


class GgufEncoder:
    """An embedding model in a GGUF file. `longest`: the most tokens that one text may have."""

    def __init__(self, file: Path, longest: int) -> None:
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)
        self.model: Any = open_model(self._stack, file)
        self._cores = physical_cores()
        self._size = max(_TOKENS, longest)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._cores):
            self._free.put(open_embedder(self._stack, self.model, n_ctx=self._size, n_seq_max=_TEXTS, n_threads=1))

    def embedded(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """The vectors of texts given as token ids, (texts, dimension) float32 of length 1. Raises EngineError."""
        planned = list(batches([len(tokens) for tokens in texts], _TOKENS, _TEXTS, longest_first=True))
        rows: list[list[float]] = [[]] * len(texts)

        def run(batch: list[int]) -> None:
            context = self._free.get()
            try:
                found = embeddings_in(self.model, context, [list(texts[number]) for number in batch])
            finally:
                self._free.put(context)
            for number, vector in zip(batch, found, strict=True):
                rows[number] = vector

        with ThreadPoolExecutor(self._cores) as pool:
            try:
                list(pool.map(run, planned))
            except BaseException:  # Ctrl-C: what has not begun is not computed
                pool.shutdown(cancel_futures=True)
                raise
        return np.asarray(rows, dtype=np.float32)
