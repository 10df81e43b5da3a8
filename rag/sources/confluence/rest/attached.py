"""A file that is attached to a page, as a document: by the readers of files, by its suffix."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from rag.document import Meta
from rag.sources.confluence.page import iso_time, page_id, person_name
from rag.sources.confluence.rest.content import Page
from rag.sources.files import read_each
from rag.sources.reader import Read


def read_attached(page: Page, raw: bytes) -> Read | None:
    """The document that a file holds; None for no text. Raises what its reader raises."""
    with tempfile.TemporaryDirectory(prefix="slm-") as folder:
        path = Path(folder) / f"attached{Path(page.title).suffix.lower()}"  # no name of a site is one of a path here
        path.write_bytes(raw)
        read = next((read for read in read_each(path) if isinstance(read, Read)), None)
    if read is None or not read.document.sections:
        return None
    meta = Meta(
        id=page_id(page.id), url=page.url, space=page.space, ancestors=page.ancestors, labels=page.labels,
        author=person_name(page.author), created=iso_time(page.created), modified=iso_time(page.modified),
        version=page.version, restrictions=page.restrictions,
    )  # fmt: skip
    return replace(read, document=replace(read.document, title=page.title, source=page.url, meta=meta))
