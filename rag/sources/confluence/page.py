"""A page of Confluence as a document, whatever way it came: one text and one id for one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote

from rag.document import Meta, Section, sections_of
from rag.sources.clean import clean
from rag.sources.confluence.body.pieces import is_name
from rag.sources.confluence.body.storage import Written
from rag.sources.reader import Read, titled
from slm.text.visible import one_line


def page_id(number: str) -> str:
    """What names a page of Confluence wherever it comes from; "" for no number."""
    return f"confluence:{number}" if number else ""


def page_address(base: str, number: str) -> str:
    """Where a page is read. It stays the same when the page is renamed or moved, in Cloud and Data Center."""
    return f"{base}/pages/viewpage.action?pageId={number}"


def file_address(base: str, number: str, name: str) -> str:
    """Where a page's file is read: at its page."""
    return f"{page_address(base, number)}#{quote(name)}"


def page_read(
    title: str, name: str, written: Written, meta: Meta, *, files: Sequence[str] = (), comments: Sequence[str] = ()
) -> Read:
    """A page with the names of its attachments and, where they are given, its comments.

    A page without a title is titled as any other document is; `name` is its source inside of its file.
    """
    document = titled(sections_of(written.markdown), one_line(clean(title)), name)
    below = {"Attachments": "\n".join(f"- {one_line(file)}" for file in dict.fromkeys(files)),
             "Comments": "\n\n".join(filter(None, (comment.strip() for comment in comments)))}  # fmt: skip
    sections = (*document.sections, *(Section((heading,), text) for heading, text in below.items() if text))
    return Read(replace(document, source=name, sections=sections, meta=meta), written.note)


def alone(read: Read) -> Read:
    """A page that is all that its file holds."""
    return replace(read, document=replace(read.document, source=""))


def person_name(name: str) -> str:
    """A name that may be shown and kept: neither an e-mail address nor the key of an account is one."""
    return one_line(name) if is_name(name) else ""


def iso_time(time: str) -> str:
    """A moment in ISO 8601 as exports and answers write it: with a T, without the time where it has none."""
    time = time.strip()
    return f"{time[:10]}T{time[11:]}" if len(time) > 10 and time[10] == " " else time
