"""What every store of an index does. Adding, syncing, asking and copying know a store by this and nothing else.

What a search needs of one state of an index is `rag.index.retrieve.Searched`; what a change does to an index is decided
for all stores in `rag.index.change`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from rag.document import Document
from rag.index.change.gone import Seen
from rag.index.change.planned import Change, Told
from rag.index.chunk import Chunk
from rag.index.embed import Embedder, Vectors
from rag.index.retrieve import Searched

OnChunks = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Nobody looks on."""


class Holdings(Protocol):
    """What an index holds, without its chunks: as `rag.index.generation.inventory.Inventory` has it."""

    @property
    def documents(self) -> Mapping[str, dict[str, Any]]: ...

    @property
    def sources(self) -> Mapping[str, dict[str, Any]]: ...

    @property
    def made_with(self) -> dict[str, Any]:
        """The identity of its embedder, as `Identity.as_dict` tells of it."""
        ...


class OpenIndex(Protocol):
    """An index that is open to be asked, and follows what is changed."""

    @property
    def made_with(self) -> Mapping[str, Any]:
        """The identity of its embedder."""
        ...

    def now(self) -> AbstractContextManager[Searched]:
        """The newest state; whatever is asked of it inside the `with` statement is of one moment."""
        ...


@dataclass(frozen=True)
class HeldDocument:
    """A document as a store holds it: its entry (as `Inventory.documents`), chunks in order, (chunks, dimension)."""

    source: str
    entry: dict[str, Any]
    chunks: Sequence[Chunk]
    vectors: Vectors


@dataclass(frozen=True)
class Contents:
    """A whole index on its way to another store, which makes its own words of them.

    words: their kind (`rag.index.lexical.terms.KINDS`). size: how many documents there will be.
    """

    made_with: Mapping[str, Any]
    words: str
    chunk_tokens: int
    sources: Mapping[str, Mapping[str, Any]]
    size: int
    documents: Iterator[HeldDocument]


class IndexStore(Protocol):
    """One index, be it there or not. Every method raises SlmError where the store cannot be used."""

    @property
    def name(self) -> str:
        """How people and command lines name it; never with a password."""
        ...

    def exists(self) -> bool:
        """Whether the index is there."""
        ...

    def held(self) -> Holdings:
        """What it holds. Raises UnknownNameError where there is none."""
        ...

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
        """Put documents into the index, making it when it is not there; as `rag.index.update.add_documents`."""
        ...

    def remove(self, names: Sequence[str], *, every: bool = False) -> list[str]:
        """Remove documents; as `rag.index.update.remove_documents`."""
        ...

    def status(self) -> dict[str, Any]:
        """What `slm rag status` shows: index, generation, embedder, chunks, size_bytes, parts, documents."""
        ...

    def opening(self) -> AbstractContextManager[OpenIndex]:
        """Open it to be asked."""
        ...

    def contents(self) -> AbstractContextManager[Contents]:
        """All it holds, of one moment, to be copied."""
        ...

    def fill(self, contents: Contents, on_documents: OnChunks = silent) -> int:
        """Make the index of another one's contents; its number of chunks. Raises InputError where there is one."""
        ...
