"""Reads plain text: what it says, without what nobody sees."""

from __future__ import annotations

from rag.document import Document, Section
from rag.sources.clean import clean, without_data_uris
from rag.sources.reader import Read
from slm.text.encoding.decode import decode


def read_text(raw: bytes, name: str) -> Read:
    """A text file as one section without headings. Raises DamagedFileError (no text)."""
    decoded = decode(raw)
    text = without_data_uris(clean(decoded.text)).strip("\n")
    return Read(Document(name, "", "und", (Section((), text),) if text.strip() else ()), decoded.note)
