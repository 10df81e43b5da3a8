"""Documents to chunks with their vectors; what is known already is not computed again. It knows nothing of stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rag.document import Document
from rag.index.chunk import Chunk, chunk_document
from rag.index.embed import Embedder, Vectors
from rag.index.embedders.base import passages_of
from rag.index.embedders.cache import VectorCache
from rag.index.generation.write import Addition
from rag.index.variants import comparable

# Chunks are short so that three of them fit into a small model's prompt beside the question.
CHUNK_TOKENS = 240
# Enough to keep all cores busy, and few enough to be lost when a run is broken off.
BATCH = 64


def chunked(documents: Sequence[Document], embedder: Embedder) -> list[Chunk]:
    """The chunks of documents, in their order, each short enough for the embedder."""
    limit = min(CHUNK_TOKENS, embedder.identity.max_tokens)
    return [chunk for document in documents for chunk in chunk_document(document, limit, embedder.count_tokens)]


def embedded(
    chunks: Sequence[Chunk],
    embedder: Embedder,
    known: Mapping[str, Vectors],
    cache: VectorCache | None,
    on_chunks: Callable[[int, int], None],
) -> Addition:
    """Chunks with their vectors; for texts that are known (as they are embedded), those known.

    on_chunks is told (texts embedded, texts to embed).
    """
    texts = [comparable(chunk.indexed_text) for chunk in chunks]
    vectors = dict(known)
    if cache is not None:
        vectors.update({text: kept for text in texts if text not in known and (kept := cache.get(text)) is not None})
    new = [text for text in dict.fromkeys(texts) if text not in vectors]
    done = 0
    for batch, found in passages_of(embedder, [new[start : start + BATCH] for start in range(0, len(new), BATCH)]):
        if cache is not None:
            cache.add(batch, found)
        vectors.update(zip(batch, found, strict=True))
        done += len(batch)
        on_chunks(done, len(new))
    whole = np.empty((len(chunks), embedder.identity.dimension), dtype=np.float32)
    for row, text in enumerate(texts):
        whole[row] = vectors[text]
    return Addition(chunks, whole)
