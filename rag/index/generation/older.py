"""Reads generations of the formats 1 to 3: one part, with its chunks, vectors and words in other files.

Words are made anew, so that an index of any age is searched alike. Whatever changes such an index writes it as it is
written now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rag.index.chunk import Chunk
from rag.index.generation.inventory import Inventory, Place
from rag.index.generation.part import Part, chunk_of, joined_lines, line_of, new_part
from rag.index.generation.postings import build_postings
from slm.artifacts import sha256_file

OLDER_PART = "older"
"""What the one part of such a generation is called."""
_CHUNKS, _VECTORS = "chunks.jsonl", "vectors.faiss"
# Of these files the manifests of formats 2 and 3 have checksums.
_FILES = (_CHUNKS, _VECTORS, "lexical.npz", "terms.json")


def open_older(inventory: Inventory, terms: Callable[[str], Sequence[str]]) -> tuple[Part, dict[str, Place]]:
    """The one part of such a generation, in memory, and where the chunks of each document are in it.

    terms: the index terms of a text. Raises OSError, ValueError, KeyError, TypeError and RuntimeError for damage.
    """
    import faiss

    folder, manifest = inventory.folder, inventory.manifest
    for name in _FILES if inventory.format > 1 else ():
        if sha256_file(folder / name) != manifest["files"][name]:
            raise ValueError(f"'{folder / name}' is not what was written")
    rows = _chunks(folder / _CHUNKS)
    store = faiss.read_index(str(folder / _VECTORS))
    if not len(rows) == int(store.ntotal) == inventory.count or store.d != int(manifest["embedder"]["dimension"]):
        raise ValueError("its parts do not have the same number of chunks")
    if any(chunk.source not in inventory.documents for _, chunk in rows):
        raise ValueError("its manifest does not list all documents")
    # A document's chunks follow each other in a part; here only their order was kept.
    number = {source: n for n, source in enumerate(dict.fromkeys(chunk.source for _, chunk in rows))}
    rows.sort(key=lambda row: number[row[1].source])
    vectors = np.empty((len(rows), store.d), dtype=np.float32)
    places: dict[str, Place] = {}
    for at, (id_, chunk) in enumerate(rows):
        vectors[at] = store.reconstruct(id_)
        place = places.get(chunk.source, Place(OLDER_PART, at, 0))
        places[chunk.source] = place._replace(chunks=place.chunks + 1)
    if any(place.chunks != inventory.documents[source]["chunks"] for source, place in places.items()):
        raise ValueError("its manifest does not say how many chunks a document has")
    words = build_postings(terms(chunk.indexed_text) for _, chunk in rows)
    return new_part(joined_lines(line_of(chunk) for _, chunk in rows), vectors, words), places


def _chunks(file: Path) -> list[tuple[int, Chunk]]:
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(int(row["id"]), chunk_of(row, str(row["source"]))) for row in rows]
