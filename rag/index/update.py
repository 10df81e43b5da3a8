"""Changes an index of files: documents in, documents out. Each change is a new generation
(rag.index.generation.current). What it does is decided in rag.index.change.

It knows nothing of ranking or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rag.document import Document
from rag.index.change.embedded import CHUNK_TOKENS, chunked, embedded
from rag.index.change.gone import Departed, Seen
from rag.index.change.planned import AS_IT_IS, PAGE, AddOptions, Change, ChangePlan, Told, check_identity, planned
from rag.index.embed import Embedder, Vectors
from rag.index.embedders.cache import VectorCache
from rag.index.generation.current import drop_others, exclusive, make_current, next_folder, require_free, told_of_memory
from rag.index.generation.inventory import Inventory, Place
from rag.index.generation.part import Part
from rag.index.generation.write import Addition, Next, write_generation
from rag.index.lexical.pairs import terms_of
from rag.index.lexical.terms import Wording, kept_wording, wording_of_change
from rag.index.names import command_anew, documents_named, index_name, is_index
from rag.index.store import load_parts, open_inventory, read_places, told_as_damage
from rag.index.variants import comparable
from slm.errors import InputError

__all__ = ["CHUNK_TOKENS", "PAGE", "Change", "Told", "add_documents", "check_embedder", "remove_documents"]

_CACHE = ".embedded"


def check_embedder(generation: Inventory, embedder: Embedder) -> None:
    """Raise MismatchError unless the embedder is the one the index was made with."""
    check_identity(generation.manifest["embedder"], embedder.identity.as_dict())


def add_documents(
    path: Path,
    documents: Sequence[Document],
    embedder: Embedder,
    on_chunks: Callable[[int, int], None] = lambda done, total: None,
    *,
    seen: Seen | Told | None = None,
    fresh: bool = False,
    options: AddOptions = AS_IT_IS,
) -> Change:
    """Put documents into an index, making it when it is not there; one with a known source replaces the old one.

    on_chunks is told (chunks embedded, chunks to embed). seen: what was looked through, so that documents that are no
    longer there go (`rag.index.change.gone`), or what the caller knows of documents that are no files. fresh: whatever
    was in the index is forgotten. Raises InputError (no documents, too many are gone), MismatchError (another embedder,
    other words), MissingExtraError, DamagedFileError, or ResourceError (no space, no memory, another process is
    changing the index).
    """
    if not documents and not (seen and is_index(path)):
        raise InputError("there are no documents to add")
    if not is_index(path):
        require_free(path)
    with exclusive(path), told_of_memory(path):
        base = open_inventory(path) if is_index(path) and not fresh else None
        if base is not None:
            check_embedder(base, embedder)
        words = _wording(path, base, options.words)
        known, sources = (base.documents, base.sources) if base else ({}, {})
        return _add(path, base, planned(known, sources, documents, seen, sure=options.sure), embedder, words, on_chunks)


def _wording(path: Path, base: Inventory | None, asked: str | None) -> Wording:
    name, sources = index_name(path), base.sources if base else {}
    kept = kept_wording(base.words) if base else None
    return wording_of_change(kept, asked, name, partial(command_anew, name, sources))


def _add(
    path: Path,
    base: Inventory | None,
    plan: ChangePlan,
    embedder: Embedder,
    words: Wording,
    on_chunks: Callable[[int, int], None],
) -> Change:
    if base is not None and plan.same:
        drop_others(base.folder)
        return plan.change(base.count)
    with VectorCache(path / _CACHE, embedder.identity) as cache:

        def addition(old: Mapping[str, Vectors]) -> Addition:
            return embedded(chunked(plan.embed, embedder), embedder, old, cache, on_chunks)

        chunks = _write(path, base, plan, embedder.identity.as_dict(), words, addition)
        cache.discard()
    return plan.change(chunks)


def _known_vectors(
    parts: Mapping[str, Part], places: Mapping[str, Place], sources: Collection[str]
) -> dict[str, Vectors]:
    """The vectors of the chunks of these documents, by the text that was embedded."""
    known = {}
    for source in sources:
        part, first, count = places.get(source, Place("", 0, 0))
        for row in range(first, first + count):
            known[comparable(parts[part].chunk(row, source).indexed_text)] = np.array(parts[part].dense.vectors[row])
    return known


def remove_documents(path: Path, names: Sequence[str], *, every: bool = False) -> list[str]:
    """Remove documents by source, by the end of it (`ja/03-leave.md`) or by a folder; the removed sources.

    What the last document of is removed is no longer synced either.

    Raises UnknownNameError when a name fits nothing and InputError when it fits several (unless `every`), in which
    case nothing is removed.
    """
    open_inventory(path)
    with exclusive(path), told_of_memory(path):
        base = open_inventory(path)
        gone = {source for name in names for source in documents_named(base.documents, name, every=every)}
        table = {source: dict(entry) for source, entry in base.documents.items() if source not in gone}
        left = {root for entry in table.values() for root in entry.get("roots", ())}
        lost = {root for source in gone for root in base.documents[source].get("roots", ())} - left
        sources = {root: source for root, source in base.sources.items() if root not in lost}
        _write(path, base, _removal(gone, table, sources), base.made_with, kept_wording(base.words))
        return sorted(gone)


def _removal(gone: Collection[str], table: dict[str, dict[str, Any]], sources: Mapping[str, Any]) -> ChangePlan:
    return ChangePlan({}, {}, {}, {}, gone, table, sources, Departed({}, {}), same=False)


def _write(
    path: Path,
    base: Inventory | None,
    plan: ChangePlan,
    identity: Mapping[str, Any],
    words: Wording,
    embed: Callable[[Mapping[str, Vectors]], Addition] | None = None,
) -> int:
    """Write the next generation and make it current; its number of chunks.

    embed: given the vectors that are known of the old texts of the documents to embed, their chunks with vectors.
    """
    replaced = [source for source in plan.drop if source not in plan.carry] if plan.embed else []
    parts, places = read_places(path, base, replaced) if base else ({}, {})
    added = Addition([], np.empty((0, int(identity["dimension"])), dtype=np.float32))
    if embed is not None:
        with told_as_damage(path, base.sources if base else ()):
            known = _known_vectors(parts, places, replaced)
        added = embed(known)
    kept = {
        plan.carry[source].source if source in plan.carry else source: place
        for source, place in places.items()
        if source not in plan.drop or source in plan.carry
    }

    def open_parts(names: Sequence[str]) -> Mapping[str, Part]:
        if base is None or not names:
            return {}
        with told_as_damage(path, base.sources):
            return {**parts, **load_parts(base, [name for name in names if name not in parts])}

    manifest = {
        "embedder": dict(identity), "chunk_tokens": min(CHUNK_TOKENS, int(identity["max_tokens"])),
        "sources": dict(plan.sources), "words": words.as_dict(),
    }  # fmt: skip
    folder = next_folder(path, base.folder if base else None)
    # What is removed needs no dictionary.
    terms = words.terms(index_name(path)) if added.chunks else terms_of
    count = write_generation(folder, base, Next(plan.table, kept, added, manifest), open_parts, terms)
    make_current(folder)
    return count
