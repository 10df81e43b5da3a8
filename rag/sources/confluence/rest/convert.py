"""A page of a Confluence site as a document. How its storage format is read is in rag/sources/confluence."""

from __future__ import annotations

from dataclasses import replace

from rag.document import Document
from rag.sources.confluence.rest.content import Page
from rag.sources.html.page import read_html
from rag.sources.reader import Read
from slm.text.language import detect

_LANG_SAMPLE = 4000


def read_page(page: Page) -> Read | None:
    """The page's storage format, else what the site shows, as a document; None when it holds no visible text."""
    read = read_html((page.storage or page.view or "").encode(), page.title)
    document = replace(read.document, title=page.title)
    if not any(section.text.strip() or section.headings for section in document.sections):
        return None
    return replace(read, document=replace(document, source=page.url, lang=_language(document)))


def _language(document: Document) -> str:
    sample = " ".join([document.title, *(section.text for section in document.sections)])[:_LANG_SAMPLE]
    return detect(sample).language or "und"
