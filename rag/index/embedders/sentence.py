"""A sentence-transformers checkpoint folder on the CPU, with the prompts that it names itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag.index.embedders.base import Identity, Vectors, normalised
from rag.index.embedders.nano import E5_PASSAGE, E5_QUERY
from slm.artifacts import read_json

_SETTINGS = "config_sentence_transformers.json"
_BATCH, _MAX_TOKENS = 32, 512
# The names under which checkpoints keep what stands before a question and before a passage.
_QUERY_NAMES, _PASSAGE_NAMES = ("query", "search_query"), ("document", "passage", "search_document")


def prefixes_of(name: str, folder: Path) -> tuple[str, str]:
    """What stands before a question and a passage: as the folder says, else E5's own for a model of that name.

    Raises DamagedFileError.
    """
    settings = read_json(folder / _SETTINGS) if (folder / _SETTINGS).exists() else {}
    prompts = settings.get("prompts") or {}
    query = next((str(prompts[key]) for key in _QUERY_NAMES if prompts.get(key)), "")
    passage = next((str(prompts[key]) for key in _PASSAGE_NAMES if prompts.get(key)), "")
    if not (query or passage) and "e5" in name.lower():
        return E5_QUERY, E5_PASSAGE
    return query, passage


class SentenceTransformerFolder:
    """A model that sentence-transformers loads from a folder."""

    def __init__(self, name: str, folder: Path, revision: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        dimension = getattr(self._model, "get_embedding_dimension", None) or (
            self._model.get_sentence_embedding_dimension
        )
        longest = int(self._model.max_seq_length or _MAX_TOKENS)
        self.identity = Identity(name, revision, *prefixes_of(name, folder), int(dimension()), longest)

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._encoded(self.identity.query_prefix, texts)

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._encoded(self.identity.passage_prefix, texts)

    def count_tokens(self, text: str) -> int:
        return len(self._model.tokenizer(self.identity.passage_prefix + text, truncation=False)["input_ids"])

    def _encoded(self, prefix: str, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.identity.dimension), dtype=np.float32)
        # An empty prompt: else the folder's default one would stand before ours.
        vectors = self._model.encode(
            [prefix + text for text in texts], prompt="", batch_size=_BATCH, convert_to_numpy=True,
            show_progress_bar=False,
        )  # fmt: skip
        return normalised(vectors)
