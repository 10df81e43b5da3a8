"""Reads single files that may be of Confluence: exported pages, pages in the storage format, an entities.xml.

HTML of any other origin is read as that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from rag.document import NO_META
from rag.sources.confluence.archive import csv_export
from rag.sources.confluence.attached import LARGEST_FILE, Stored
from rag.sources.confluence.body.around import Around
from rag.sources.confluence.body.nodes import Node
from rag.sources.confluence.body.storage import markdown_of_nodes, read_nodes
from rag.sources.confluence.html_export import ExportIndex, is_export_page, read_export_page, read_index
from rag.sources.confluence.page import alone, page_read
from rag.sources.confluence.xml_export import read_entities
from rag.sources.html.page import declared_charset, read_html
from rag.sources.reader import LARGEST_PAGE, LeftOut, Read, ReadOptions, Whole
from slm.errors import DamagedFileError, UnsupportedError
from slm.paths import composed
from slm.text.encoding.decode import decode

_SUFFIXES = (".xml", ".html", ".htm", ".xhtml")
_OWN = re.compile(rb"<(?:ac|ri):[a-z][a-z-]+[\s/>]")
_ENTITIES = re.compile(rb"<hibernate-generic\b|<object\s[^<>]{0,200}\bclass=")
_BLOCKS = re.compile(
    rb"\s*(?:<\?xml[^>]{0,200}>|<!--.{0,1000}?-->|\s)*<(?:p|h[1-6]|ul|ol|table|div|blockquote|pre|hr|section)\b",
    re.DOTALL,
)


def read_page_file(path: Path, wanted: ReadOptions) -> Iterator[Read | LeftOut | Whole]:
    """A file of HTML or XHTML, of an export's index nothing. Raises DamagedFileError (empty, no text)."""
    raw, name = _bytes_of(path), composed(path.stem)
    if is_export_page(raw):
        index = _index_beside(path.parent)
        if path.name == "index.html" and index is not None:
            yield Whole()  # it lists the pages, and is none that could be missed
            return
        # Without an index the files beside a page are files of their own.
        stored = _stored_below(path.parent) if index is not None else None
        page, *attached = read_export_page(raw, name, wanted, index, stored)
        yield alone(page) if isinstance(page, Read) else page
        yield from attached
    elif _OWN.search(raw):
        yield _storage(raw, path)
    else:
        yield read_html(raw, name)


def read_xml_file(path: Path, wanted: ReadOptions) -> Iterator[Read | LeftOut | Whole]:
    """A page in the storage format, or an XML export's entities. Raises UnsupportedError for any other XML."""
    with path.open("rb") as file:
        head = file.read(10_000)
        if _ENTITIES.search(head):
            file.seek(0)
            yield from read_entities(file, wanted, _stored_below(path.parent))
            return
    raw = _bytes_of(path)
    if not _OWN.search(raw) and not _BLOCKS.match(raw):
        raise UnsupportedError("it is XML, but no page or export of Confluence")
    yield _storage(raw, path)


def explain_descriptor(path: Path, wanted: ReadOptions) -> Iterator[Read | LeftOut | Whole]:
    """Raise UnsupportedError: what an export is described by is read only to say why its folder is not."""
    raise UnsupportedError(csv_export())
    yield


def _storage(raw: bytes, path: Path) -> Read:
    decoded, name = decode(raw, declared=declared_charset(raw)), composed(path.stem)
    around = Around("", name, lambda space, title: _page_beside(path.parent, title))
    read = page_read("", name, markdown_of_nodes(read_nodes(decoded.text), around), NO_META)
    return alone(Read(read.document, "; ".join(filter(None, (decoded.note, read.note)))))


def _page_beside(folder: Path, title: str) -> Node | None:
    """The page of this title in a folder of pages in the storage format, which are called by their files' names."""
    found = _pages_in(folder, folder.stat().st_mtime_ns).get(composed(title).casefold())
    if found is None or not found.is_file() or found.stat().st_size > LARGEST_PAGE:
        return None
    raw = found.read_bytes()
    is_page = _OWN.search(raw) or (found.suffix.lower() == ".xml" and _BLOCKS.match(raw))
    if not is_page or is_export_page(raw) or _ENTITIES.search(raw[:10_000]):
        return None
    return read_nodes(decode(raw, declared=declared_charset(raw)).text)


@lru_cache(maxsize=16)
def _pages_in(folder: Path, written: int) -> dict[str, Path]:
    files = (file for file in sorted(folder.iterdir(), reverse=True) if file.suffix.lower() in _SUFFIXES)
    return {composed(file.stem).casefold(): file for file in files}


def _bytes_of(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_PAGE:
        raise UnsupportedError(f"it has {path.stat().st_size} bytes, more than any page that somebody wrote")
    raw = path.read_bytes()
    if not raw.strip():
        raise DamagedFileError("it is empty")
    return raw


def _stored_below(folder: Path) -> Stored:
    """The files of an unpacked export."""

    def stored(path: str) -> bytes | None:
        file = folder / path
        if not path or not file.is_file():
            return None
        if file.stat().st_size > LARGEST_FILE:
            raise UnsupportedError(f"it has {file.stat().st_size} bytes, more than is read of one file")
        return file.read_bytes()

    return stored


def _index_beside(folder: Path) -> ExportIndex | None:
    """What the index of an unpacked export says, from the folder that holds it."""
    path = folder / "index.html"
    if not path.is_file() or path.stat().st_size > LARGEST_PAGE:
        return None
    return _index_of(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _index_of(path: Path, written: int) -> ExportIndex | None:
    raw = path.read_bytes()
    return read_index(raw) if is_export_page(raw) else None
