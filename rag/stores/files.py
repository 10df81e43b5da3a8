"""An index in files of its own (rag.index): one folder, one writer at a time, readers anywhere on the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rag.document import Document
from rag.index.change.gone import Seen
from rag.index.change.planned import AddOptions, Change, Told, check_identity
from rag.index.chunk import Chunk
from rag.index.embed import Embedder, Vectors
from rag.index.generation.current import exclusive, make_current, next_folder, require_free, told_of_memory
from rag.index.generation.inventory import Inventory
from rag.index.generation.write import Addition, Next, write_generation
from rag.index.lexical.terms import installed, kept_wording
from rag.index.names import index_name, is_index
from rag.index.store import Generation, current_folder, open_generation, open_inventory, size_of
from rag.index.update import add_documents, remove_documents
from rag.stores.interface import Contents, HeldDocument, OnChunks, silent
from slm.errors import InputError, SlmError
from slm.terminal.console import note


class FollowedFiles:
    """A generation in memory that gives way to a newer one (implements rag.stores.interface.OpenIndex)."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._looked_at = generation.folder

    @property
    def made_with(self) -> Mapping[str, Any]:
        return self.generation.made_with

    @contextmanager
    def now(self) -> Iterator[Generation]:
        """The generation that is in use now; the one in memory while a newer one cannot be read, which is noted."""
        path = self.generation.folder.parent
        try:
            folder = current_folder(path)
            if folder is not None and folder != self._looked_at:
                self._looked_at = folder
                newer = open_generation(path, self.generation)
                check_identity(newer.made_with, self.made_with)
                self.generation = newer
        except SlmError as error:
            note(f"the index '{path}' is answered from as it was: {error}")
        yield self.generation


class FileStore:
    """The index of a folder (implements rag.stores.interface.IndexStore)."""

    def __init__(self, path: Path, words: str | None = None) -> None:
        self.path, self._words = path, words

    @property
    def name(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return is_index(self.path)

    def held(self) -> Inventory:
        return open_inventory(self.path)

    def add(
        self,
        documents: Sequence[Document],
        embedder: Embedder,
        on_chunks: OnChunks = silent,
        *,
        seen: Seen | Told | None = None,
        fresh: bool = False,
        sure: bool = False,
    ) -> Change:
        options = AddOptions(sure, self._words)
        return add_documents(self.path, documents, embedder, on_chunks, seen=seen, fresh=fresh, options=options)

    def remove(self, names: Sequence[str], *, every: bool = False) -> list[str]:
        return remove_documents(self.path, names, every=every)

    def status(self) -> dict[str, Any]:
        generation = open_generation(self.path)
        return {
            "index": str(generation.folder.parent), "generation": generation.folder.name,
            "embedder": generation.made_with, "words": kept_wording(generation.words).as_dict(),
            "chunks": len(generation.chunks),
            "size_bytes": size_of(generation.folder),
            "parts": [{"chunks": len(part), "search": part.dense.kind} for part in generation.loaded],
            "documents": [{"source": s, **entry} for s, entry in sorted(generation.documents.items())],
        }  # fmt: skip

    @contextmanager
    def opening(self) -> Iterator[FollowedFiles]:
        yield FollowedFiles(open_generation(self.path))

    @contextmanager
    def contents(self) -> Iterator[Contents]:
        generation = open_generation(self.path)
        yield Contents(
            generation.made_with, kept_wording(generation.words).kind, int(generation.manifest["chunk_tokens"]),
            generation.sources, len(generation.documents), _documents(generation),
        )  # fmt: skip

    def fill(self, contents: Contents, on_documents: OnChunks = silent) -> int:
        """Whole or not at all. Raises InputError (there is an index, or something else) and ResourceError."""
        if self.exists():
            raise already_there(index_name(self.path))
        require_free(self.path)
        words = installed(self._words or contents.words)
        with exclusive(self.path), told_of_memory(self.path):
            table: dict[str, dict[str, Any]] = {}
            chunks: list[Chunk] = []
            vectors: list[Vectors] = [np.empty((0, int(contents.made_with["dimension"])), dtype=np.float32)]
            for number, document in enumerate(contents.documents, start=1):
                table[document.source] = dict(document.entry)
                chunks += document.chunks
                vectors.append(document.vectors)
                on_documents(number, contents.size)
            manifest = {
                "embedder": dict(contents.made_with), "chunk_tokens": contents.chunk_tokens,
                "sources": {root: dict(source) for root, source in contents.sources.items()},
                "words": words.as_dict(),
            }  # fmt: skip
            folder = next_folder(self.path, None)
            following = Next(table, {}, Addition(chunks, np.concatenate(vectors)), manifest)
            count = write_generation(folder, None, following, lambda names: {}, words.terms(self.name))
            make_current(folder)
            return count


def already_there(name: str) -> InputError:
    """A copy goes to an index that is not there yet."""
    return InputError(f"there is an index '{name}' already; it was not changed", hint="Copy to another name.")


def _documents(generation: Generation) -> Iterator[HeldDocument]:
    rows: dict[str, list[int]] = {source: [] for source in generation.documents}
    for row in range(len(generation.chunks)):
        rows[generation.chunks.source(row)].append(row)
    dimension = int(generation.made_with["dimension"])
    for source, own in rows.items():
        vectors = np.empty((len(own), dimension), dtype=np.float32)
        for at, row in enumerate(own):
            vectors[at] = generation.vector(row)
        yield HeldDocument(source, generation.documents[source], [generation.chunks[row] for row in own], vectors)
