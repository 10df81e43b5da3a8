"""Which store a name means: an address of PostgreSQL, or a folder. The driver is imported for the first alone."""

from __future__ import annotations

from rag.index.lexical.terms import installed
from rag.index.names import index_path
from rag.stores.files import FileStore
from rag.stores.interface import IndexStore
from slm.text.address import is_postgres


def open_store(index: str, words: str | None = None) -> IndexStore:
    """The store of an index by its name, path or address (postgresql://user@host/db?index=NAME).

    words: the kind of words that it is to have (`rag.index.lexical.terms.KINDS`); None: those it has, or by default.
    Nothing is read yet. Raises InputError for what names no index, and MissingExtraError.
    """
    if words:
        installed(words)  # before anything is read
    if not is_postgres(index):
        return FileStore(index_path(index), words)
    from rag.stores.postgres.database import Database

    return Database(index, words)
