"""Reads a Word document: the body in its order, titled by its title, its only top heading or its properties."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

from rag.sources.office.markup import document_of
from rag.sources.office.package import Package, child
from rag.sources.office.word.blocks import Blocks
from rag.sources.reader import Read
from slm.errors import DamagedFileError


def read_word(raw: bytes, name: str) -> Read:
    """A .docx file as a document. Raises DamagedFileError, UnsupportedError (encrypted, of another format)."""
    package = Package(raw)
    part = package.main_part("word/document.xml")
    body = child(package.tree(part), "w:body")
    if body is None:
        raise DamagedFileError("it is no Word document")
    blocks = Blocks(package, part)
    html = blocks.html(body)
    title = unescape(re.sub(r"<[^>]*>", " ", blocks.title))
    if not title and len(re.findall(r"<h2>", html)) != 1:
        title = package.title()
    document = replace(document_of(html, title, name), meta=package.meta())
    return Read(document, "; ".join(dict.fromkeys(blocks.problems)))
