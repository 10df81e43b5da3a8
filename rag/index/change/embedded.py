"""Documents to chunks with their vectors; what is known already is not computed again. It knows nothing of stores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from rag.document import Document
from rag.index.chunk import Chunk, chunk_document
from rag.index.embed import Embedder, Vectors
from rag.index.embedders.base import BatchEmbedder, passages_of
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
    texts = _texts(chunks)
    vectors = dict(known)
    if cache is not None:
        vectors.update({text: kept for text in texts if text not in known and (kept := cache.get(text)) is not None})
    batches = _batches(texts, vectors)
    new, done = sum(map(len, batches)), 0
    for batch, found in passages_of(embedder, batches):
        if cache is not None:
            cache.add(batch, found)
        vectors.update(zip(batch, found, strict=True))
        done += len(batch)
        on_chunks(done, new)
    return Addition(chunks, _rows(texts, vectors, embedder))


def grouped(documents: Sequence[Document], chunks: Mapping[str, Sequence[Chunk]]) -> list[list[Document]]:
    """Documents in groups that are embedded together: each with a batch of chunks or more. chunks: by source."""
    groups: list[list[Document]] = []
    size = BATCH
    for document in documents:
        if size >= BATCH:
            groups.append([])
            size = 0
        groups[-1].append(document)
        size += len(chunks[document.source])
    return groups


def embedded_groups(
    groups: Sequence[Sequence[Chunk]], embedder: Embedder, known_of: Callable[[int], Mapping[str, Vectors]]
) -> Iterator[tuple[int, Vectors]]:
    """(number of a group, the vectors of its chunks), each as soon as it is there, so that it can be written.

    known_of: the vectors that are known of a group, asked when they are needed. An embedder of many batches is handed
    those of all groups at once; they are the batches that a group by itself is embedded in.
    """
    if not isinstance(embedder, BatchEmbedder):
        for number, group in enumerate(groups):
            yield number, embedded(group, embedder, known_of(number), None, _silent).vectors
        return
    batches = [_batches(_texts(group), known_of(number)) for number, group in enumerate(groups)]
    waiting: dict[tuple[str, ...], list[int]] = defaultdict(list)  # whose a batch is; two groups may say the same
    for number, own in enumerate(batches):
        for texts in own:
            waiting[tuple(texts)].append(number)
    left = [len(own) for own in batches]
    found: dict[int, dict[str, Vectors]] = defaultdict(dict)

    def whole(number: int) -> tuple[int, Vectors]:
        texts, vectors = _texts(groups[number]), {**known_of(number), **found.pop(number, {})}
        for gone in _batches(texts, vectors):  # known before, and not there any more: somebody else is writing too
            vectors.update(zip(gone, embedder.passages(gone), strict=True))
        return number, _rows(texts, vectors, embedder)

    yield from (whole(number) for number, count in enumerate(left) if not count)
    for batch, vectors in embedder.in_batches([batch for own in batches for batch in own]):
        number = waiting[tuple(batch)].pop()
        found[number].update(zip(batch, vectors, strict=True))
        left[number] -= 1
        if not left[number]:
            yield whole(number)


def _texts(chunks: Sequence[Chunk]) -> list[str]:
    """What is embedded of chunks."""
    return [comparable(chunk.indexed_text) for chunk in chunks]


def _batches(texts: Sequence[str], known: Mapping[str, Vectors]) -> list[list[str]]:
    """The texts that are not known, once each, in batches."""
    new = [text for text in dict.fromkeys(texts) if text not in known]
    return [new[start : start + BATCH] for start in range(0, len(new), BATCH)]


def _rows(texts: Sequence[str], vectors: Mapping[str, Vectors], embedder: Embedder) -> Vectors:
    """The vectors of texts, (texts, dimension) float32."""
    rows = np.empty((len(texts), embedder.identity.dimension), dtype=np.float32)
    for row, text in enumerate(texts):
        rows[row] = vectors[text]
    return rows


def _silent(done: int, total: int) -> None:
    """Nobody looks on."""
