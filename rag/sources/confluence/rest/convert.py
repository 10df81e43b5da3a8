"""A page of a Confluence site as a document: by the converter of the storage format, else of what the site shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rag.document import Meta
from rag.sources.confluence.body.around import Around
from rag.sources.confluence.body.nodes import Node
from rag.sources.confluence.body.storage import markdown_of_nodes, read_nodes
from rag.sources.confluence.html_export import nodes_of_html
from rag.sources.confluence.page import iso_time, page_id, page_read, person_name
from rag.sources.confluence.rest.content import Page
from rag.sources.html.page import parse_html
from rag.sources.reader import Read, language_of


def read_page(page: Page, around: Around, comments: Sequence[Page] = ()) -> Read | None:
    """The page with the comments on it as a document; None when it holds no visible text."""
    said = [comment_text(comment, around.user) for comment in comments]
    read = page_read(page.title, page.url, markdown_of_nodes(nodes_of(page), around), meta_of(page), comments=said)
    document = read.document
    if not any(section.text.strip() or section.headings for section in document.sections):
        return None
    return replace(read, document=replace(document, lang=language_of(document)))


def comment_text(comment: Page, user: Callable[[str], str]) -> str:
    """A comment with the name of who wrote it; "" for one without text."""
    text = markdown_of_nodes(nodes_of(comment), Around(user=user)).markdown.strip()
    name = person_name(comment.author)
    return f"{name}: {text}" if name and text else text


def meta_of(page: Page) -> Meta:
    """What is known of a page or an attached file beside its text."""
    return Meta(
        id=page_id(page.id), url=page.url, space=page.space, ancestors=page.ancestors, labels=page.labels,
        author=person_name(page.author), created=iso_time(page.created), modified=iso_time(page.modified),
        version=page.version, restrictions=page.restrictions,
    )  # fmt: skip


def nodes_of(page: Page) -> Node:
    """The nodes of a page's body in the best form that the site gave."""
    if (page.storage or "").strip() or not (page.view or "").strip():
        return read_nodes(page.storage or "")
    return nodes_of_html(parse_html(page.view or "").body)
