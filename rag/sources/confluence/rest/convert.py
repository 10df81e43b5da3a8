"""A page of a Confluence site as a document: by the converter of the storage format, else of what the site shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rag.document import Document, Meta
from rag.sources.confluence.body.macros import Around
from rag.sources.confluence.body.nodes import Node
from rag.sources.confluence.body.storage import markdown_of_nodes, read_nodes
from rag.sources.confluence.html_export import nodes_of_html
from rag.sources.confluence.page import iso_time, page_id, page_read, person_name
from rag.sources.confluence.rest.content import Page
from rag.sources.html.page import parse_html
from rag.sources.reader import Read
from slm.text.language import detect

_LANG_SAMPLE = 4000


def read_page(page: Page, included: Callable[[str, str], Node | None] = lambda space, title: None) -> Read | None:
    """The page as a document; None when it holds no visible text.

    included: the nodes of another page that this one includes, by its space ("": the same) and title.
    """
    around = Around(page.space, page.title, body=included)
    meta = Meta(
        id=page_id(page.id), url=page.url, space=page.space, ancestors=page.ancestors, labels=page.labels,
        author=person_name(page.author), created=iso_time(page.created), modified=iso_time(page.modified),
        version=page.version, restrictions=page.restrictions,
    )  # fmt: skip
    read = page_read(page.title, page.url, markdown_of_nodes(nodes_of(page), around), meta)
    document = read.document
    if not any(section.text.strip() or section.headings for section in document.sections):
        return None
    return replace(read, document=replace(document, lang=_language(document)))


def nodes_of(page: Page) -> Node:
    """The nodes of a page's body in the best form that the site gave."""
    if (page.storage or "").strip() or not (page.view or "").strip():
        return read_nodes(page.storage or "")
    return nodes_of_html(parse_html(page.view or "").body)


def _language(document: Document) -> str:
    sample = " ".join([document.title, *(section.text for section in document.sections)])[:_LANG_SAMPLE]
    return detect(sample).language or "und"
