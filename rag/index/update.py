"""Changes an index: documents in, documents out. Each change is a new generation (rag.index.generation.current).

It knows nothing of ranking or prompts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rag.document import NO_META, Document
from rag.index.chunk import chunk_document
from rag.index.embed import Embedder, Vectors
from rag.index.embedders.base import passages_of
from rag.index.embedders.cache import VectorCache
from rag.index.generation.current import drop_others, exclusive, make_current, next_folder, require_free, told_of_memory
from rag.index.generation.inventory import Inventory, Place
from rag.index.generation.part import Part
from rag.index.generation.write import Addition, Next, write_generation
from rag.index.gone import Departed, Seen, confirm_removal, departed, successors
from rag.index.lexical import terms_of
from rag.index.names import composed, documents_named, is_index
from rag.index.store import load_parts, open_inventory, read_places, told_as_damage
from rag.index.variants import comparable
from slm.errors import InputError, MismatchError

# Chunks are short so that three of them fit into a small model's prompt beside the question.
CHUNK_TOKENS = 240
# Enough to keep all cores busy, and few enough to be lost when a run is broken off.
_BATCH = 64
_CACHE = ".embedded"
PAGE = "page"
"""The key of an entry for what a sync knows of a document that is no file."""


@dataclass(frozen=True)
class Change:
    """What an update did, in numbers of documents, and the chunks now in the index.

    gone: sources that were removed, kept: sources that keep their old text; both with the reason. moved: documents
    that only changed their place.
    """

    added: int
    replaced: int
    unchanged: int
    chunks: int
    moved: int = 0
    gone: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Update:
    """What the next generation gets: documents to embed, documents to carry over under a new source, and the table."""

    embed: Sequence[Document]
    carry: Mapping[str, Document]
    drop: Collection[str]
    table: dict[str, dict[str, Any]]
    sources: Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """What a caller knows of documents that are no files, and the index is to remember.

    root: the source they came by, and what there is to know of it (as in `Inventory.sources`). pages: by a document's
    source what its entry keeps under PAGE. gone: sources to remove, with the reason.
    """

    root: str
    source: Mapping[str, Any]
    pages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)


def check_embedder(generation: Inventory, embedder: Embedder) -> None:
    """Raise MismatchError unless the embedder is the one the index was made with."""
    made_with, given = generation.manifest["embedder"], embedder.identity.as_dict()
    if made_with != given:
        differs = [key for key in given if made_with.get(key) != given[key]]
        raise MismatchError(
            f"the index was made with another embedder ({', '.join(differs)})",
            found=f"{made_with.get('name')} [{made_with.get('revision')}], not {given['name']} [{given['revision']}]",
            hint="Make a new index, or use the embedder it was made with.",
        )


def _digest(document: Document) -> str:
    """The SHA-256 of a document; what is known of it beside its text counts only where there is any."""
    fields = asdict(document)
    if document.meta == NO_META:
        del fields["meta"]
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False).encode()).hexdigest()


def _meta(document: Document) -> dict[str, Any]:
    """What is known of a document beside its text, as the manifest keeps it: without what is empty."""
    return {key: value for key, value in json.loads(json.dumps(asdict(document.meta))).items() if value}


def add_documents(
    path: Path,
    documents: Sequence[Document],
    embedder: Embedder,
    on_chunks: Callable[[int, int], None] = lambda done, total: None,
    *,
    seen: Seen | Told | None = None,
    fresh: bool = False,
    sure: bool = False,
) -> Change:
    """Put documents into an index, making it when it is not there; one with a known source replaces the old one.

    on_chunks is told (chunks embedded, chunks to embed). seen: what was looked through, so that documents that are no
    longer there go (`rag.index.gone`), or what the caller knows of documents that are no files; sure: even if that is
    most of them. fresh: whatever was in the index is forgotten. Raises InputError (no documents, too many are gone),
    MismatchError (another embedder), DamagedFileError, or ResourceError (no space, no memory, another process is
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
        return _add(path, base, documents, embedder, on_chunks, seen or Seen(), sure=sure)


def _add(
    path: Path,
    base: Inventory | None,
    documents: Sequence[Document],
    embedder: Embedder,
    on_chunks: Callable[[int, int], None],
    seen: Seen | Told,
    *,
    sure: bool,
) -> Change:
    seen, told = (seen, None) if isinstance(seen, Seen) else (Seen(), seen)
    known = base.documents if base else {}
    incoming = {composed(document.source): document for document in documents}
    # Pages of a site are kept in step by its sync alone.
    left = departed({s: entry for s, entry in known.items() if PAGE not in entry}, seen, os.path.exists)
    if told is not None:
        left = Departed({**left.gone, **{s: why for s, why in told.gone.items() if s in known}}, left.kept)
    digests = {source: _digest(document) for source, document in incoming.items()}
    texts = {source: _digest(replace(document, source="", meta=NO_META)) for source, document in incoming.items()}
    named = {composed(source): source for source in known}
    # A page is the same one by its id, whatever file it came in before.
    by_id = {entry["meta"]["id"]: source for source, entry in known.items() if entry.get("meta", {}).get("id")}
    if told is not None:  # two sites number their pages alike
        by_id = {id_: source for id_, source in by_id.items() if PAGE not in known[source]}
    named |= {s: by_id[d.meta.id] for s, d in incoming.items() if s not in named and d.meta.id in by_id}
    new = {s: (d.title, texts[s]) for s, d in incoming.items() if s in seen.files and s not in named}
    moved_on = successors(known, left, new, seen.roots, os.path.lexists)
    named |= moved_on
    changed = {s: d for s, d in incoming.items() if s not in named or known[named[s]]["sha256"] != digests[s]}
    left = replace(left, gone={**left.gone, **_moved_away(known, left, changed, texts, seen)})
    # A document is moved when its text was known under a source that is gone or written otherwise (NFD).
    homeless = {known[source].get("text_sha256"): source for source in left.gone}
    carry = {}
    for source, document in changed.items():
        old = named.get(source) if source in named else homeless.get(texts[source])
        if old is not None and known[old].get("text_sha256") == texts[source] and old not in carry:
            carry[old] = document
    if not sure:
        confirm_removal(known, left.gone, carry, seen)
    table = {source: dict(entry) for source, entry in known.items()}
    drop = {*left.gone, *(named[source] for source in changed if source in named)}
    for source in drop:
        del table[source]
    for source, document in incoming.items():
        place = document.source if source in changed else named[source]
        came_by = set(known[named[source]].get("roots", ())) if source in named and source not in moved_on else set()
        table[place] = {
            "title": document.title, "lang": document.lang, "sha256": digests[source], "text_sha256": texts[source],
            "roots": [told.root] if told else sorted(came_by | set(seen.files.get(source, ()))),
        }  # fmt: skip
        if document.meta != NO_META:
            table[place]["meta"] = _meta(document)
    sources = dict(base.sources) if base else {}
    sources.update({root: {"kind": "files", **seen.asked} for root in seen.roots})
    if told is not None:
        sources[told.root] = dict(told.source)
        for place, page in told.pages.items():
            table[place][PAGE] = dict(page)
    embed = [document for document in changed.values() if document not in carry.values()]
    update = _Update(embed, carry, drop, table, sources)
    same = base is not None and sources == base.sources and _without_counts(known) == _without_counts(table)
    if base is not None and same and not changed and not left.gone:
        chunks = base.count
        drop_others(base.folder)
    else:
        with VectorCache(path / _CACHE, embedder.identity) as cache:

            def embedded(old: Mapping[str, Vectors]) -> Addition:
                return _embedded(update.embed, embedder, old, cache, on_chunks)

            chunks = _write(path, base, update, embedder.identity.as_dict(), embedded)
            cache.discard()
    replaced = sum(source in named for source in changed)
    moved = sum(old in left.gone for old in carry)
    gone = {source: why for source, why in left.gone.items() if source not in carry}
    unchanged = len(incoming) - len(changed)
    return Change(len(changed) - replaced - moved, replaced, unchanged, chunks, moved, gone, left.kept)


def _moved_away(
    known: Mapping[str, Mapping[str, Any]],
    left: Departed,
    changed: Collection[str],
    texts: Mapping[str, str],
    seen: Seen,
) -> dict[str, str]:
    """Sources of folders that were not given, whose files are not there and whose very texts now come from other files.

    So a folder that was moved and is added from its new place does not answer twice. Pages inside an export are known
    by their ids instead: their sources are no paths of files.
    """
    named = {composed(source) for source in known}
    new = {texts[source] for source in changed if source in seen.files and source not in named}
    return {
        source: "its text is now in another file"
        for source, entry in known.items()
        if entry.get("text_sha256") in new and source not in left.gone and source not in left.kept
        and "meta" not in entry and Path(source).is_absolute() and not os.path.lexists(source)
    }  # fmt: skip


def _without_counts(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {source: {k: v for k, v in entry.items() if k != "chunks"} for source, entry in documents.items()}


def _embedded(
    documents: Sequence[Document],
    embedder: Embedder,
    known: Mapping[str, Vectors],
    cache: VectorCache,
    on_chunks: Callable[[int, int], None],
) -> Addition:
    """The chunks of documents and their vectors; for texts that are known (as they are embedded), those known."""
    limit = min(CHUNK_TOKENS, embedder.identity.max_tokens)
    chunks = [chunk for document in documents for chunk in chunk_document(document, limit, embedder.count_tokens)]
    texts = [comparable(chunk.indexed_text) for chunk in chunks]
    vectors = dict(known)
    vectors.update({text: kept for text in texts if text not in known and (kept := cache.get(text)) is not None})
    new = [text for text in dict.fromkeys(texts) if text not in vectors]
    done = 0
    for batch, found in passages_of(embedder, [new[start : start + _BATCH] for start in range(0, len(new), _BATCH)]):
        cache.add(batch, found)
        vectors.update(zip(batch, found, strict=True))
        done += len(batch)
        on_chunks(done, len(new))
    whole = np.empty((len(chunks), embedder.identity.dimension), dtype=np.float32)
    for row, text in enumerate(texts):
        whole[row] = vectors[text]
    return Addition(chunks, whole)


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
        _write(path, base, _Update([], {}, gone, table, sources), base.manifest["embedder"])
        return sorted(gone)


def _write(
    path: Path,
    base: Inventory | None,
    update: _Update,
    identity: Mapping[str, Any],
    embed: Callable[[Mapping[str, Vectors]], Addition] | None = None,
) -> int:
    """Write the next generation and make it current; its number of chunks.

    embed: given the vectors that are known of the old texts of the documents to embed, their chunks with vectors.
    """
    replaced = [source for source in update.drop if source not in update.carry] if update.embed else []
    parts, places = read_places(path, base, replaced) if base else ({}, {})
    added = Addition([], np.empty((0, int(identity["dimension"])), dtype=np.float32))
    if embed is not None:
        with told_as_damage(path, base.sources if base else ()):
            known = _known_vectors(parts, places, replaced)
        added = embed(known)
    kept = {
        update.carry[source].source if source in update.carry else source: place
        for source, place in places.items()
        if source not in update.drop or source in update.carry
    }

    def open_parts(names: Sequence[str]) -> Mapping[str, Part]:
        if base is None or not names:
            return {}
        with told_as_damage(path, base.sources):
            return {**parts, **load_parts(base, [name for name in names if name not in parts])}

    manifest = {
        "embedder": dict(identity), "chunk_tokens": min(CHUNK_TOKENS, int(identity["max_tokens"])),
        "sources": dict(update.sources),
    }  # fmt: skip
    folder = next_folder(path, base.folder if base else None)
    count = write_generation(folder, base, Next(update.table, kept, added, manifest), open_parts, terms_of)
    make_current(folder)
    return count
