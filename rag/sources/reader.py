"""What readers are: of a file (bytes and a name in, a document out), and of a file that holds many documents.

A source without files gives the same as a Collection does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rag.document import Document, Section
from slm.text.language import detect

_LANG_SAMPLE = 4000
LARGEST_PAGE = 50_000_000
"""Bytes of one page; what is larger is no page that somebody wrote."""


@dataclass(frozen=True)
class Read:
    """What one file gave; `note` says what is not certain about it, without its name ("" where all is)."""

    document: Document
    note: str = ""


FileReader = Callable[[bytes, str], Read]
"""Reads the bytes of a file; the name, without suffix, titles what has no title of its own.

Raises DamagedFileError for bytes that are not of its kind. `source` and `lang` are left to the caller.
"""


@dataclass(frozen=True)
class LeftOut:
    """What a file holds and a reader could not read: its name inside of the file, why in words, and its Meta's id
    where it has one: it is there, and what an index holds of it stays."""

    name: str
    reason: str
    id: str = ""


@dataclass(frozen=True)
class Whole:
    """Said of a file after all that it holds: the spaces of which it gave every page, a note ("" for none), and when
    it was made (ISO 8601; "" where it does not say)."""

    spaces: tuple[str, ...] = ()
    note: str = ""
    made: str = ""


@dataclass(frozen=True)
class ReadOptions:
    """What a user asked for beside the pages: their comments, and addresses below the site that an export is from."""

    comments: bool = False
    base_url: str = ""


Collection = Callable[[Path, ReadOptions], Iterator[Read | LeftOut | Whole]]
"""Reads a file that may hold many documents; `source` is the name of each in it ("" where it is the file's only one).

Raises InputError for a file that is not of its kind or cannot be read at all. `lang` is left to the caller.
"""


def titled(sections: list[Section], title: str, name: str) -> Document:
    """A document with its title; a single top heading that is the title is taken out of the heading paths."""
    first = sections[0].headings if sections else ()
    if first and all(section.headings[:1] == first[:1] for section in sections) and title in ("", first[0]):
        title = first[0]
        sections = [Section(section.headings[1:], section.text) for section in sections]
    title = title or (first[0] if first else name)
    return Document(title, "", "und", tuple(section for section in sections if section.text or section.headings))


def failure_of(error: Exception) -> str:
    """Why something was not read at which a reader failed as nobody foresaw."""
    return f"it could not be read: {type(error).__name__}: {error}"[:300]


def language_of(document: Document) -> str:
    """The language that most of a document's beginning is in; "und" where that is not known."""
    sample = " ".join([document.title, *(section.text for section in document.sections)])[:_LANG_SAMPLE]
    return detect(sample).language or "und"


def markdown_of(document: Document) -> str:
    """A document as one Markdown text, under its title."""
    parts = [f"# {document.title}"]
    path: tuple[str, ...] = ()
    for section in document.sections:
        shared = 0
        while shared < min(len(path), len(section.headings)) and path[shared] == section.headings[shared]:
            shared += 1
        # A section under headings that are open already begins anew under the last of them.
        start = min(shared, max(len(section.headings) - 1, 0))
        for depth, heading in enumerate(section.headings[start:], start=start):
            parts.append(f"{'#' * min(depth + 2, 6)} {heading}")
        path = section.headings
        if section.text:
            parts.append(section.text)
    return "\n\n".join(parts) + "\n"
