"""Cuts documents into chunks that fit an embedder, along headings, paragraphs and sentences.

It knows nothing of embedders: `measure` tells the size of a text in whatever unit the limit has. No text is
lost, none is repeated except the header row of a table that had to be torn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rag.document import Document

# A sentence ends after 。！？ and their closing brackets, or after . ! ? before white space; a line end ends it too.
_SENTENCE = re.compile(r".*?(?:[。！？][」』）)】\"”]*|[.!?][\"')\]”’]*(?=\s)|\n|\Z)\s*", re.DOTALL)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_TABLE_RULE = re.compile(r"^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
# Headings longer than this share of the limit are shortened in what is embedded, so that text has room.
_HEADING_SHARE = 0.4


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. `ordinal` counts the chunks of the document from 0."""

    title: str
    headings: tuple[str, ...]
    text: str
    source: str
    lang: str
    ordinal: int

    @property
    def heading(self) -> str:
        return " > ".join(self.headings)


def context_line(title: str, headings: tuple[str, ...]) -> str:
    """Where a chunk stands, in one line: page title and heading path."""
    return " > ".join(part for part in (title, *headings) if part)


def indexed_text(chunk: Chunk, limit: int, measure: Callable[[str], int]) -> str:
    """What is embedded and searched of a chunk: its context line and its text, within the limit."""
    return _context(chunk.title, chunk.headings, limit, measure) + chunk.text


def _context(title: str, headings: tuple[str, ...], limit: int, measure: Callable[[str], int]) -> str:
    line = context_line(title, headings)
    room = int(limit * _HEADING_SHARE)
    return next(_pieces(line, room, measure)).rstrip() + "\n" if line else ""


def chunk_document(document: Document, limit: int, measure: Callable[[str], int]) -> list[Chunk]:
    """The chunks of a document; context line and text of each measure at most `limit`.

    measure must not grow when text is cut off at the end.
    """
    chunks: list[Chunk] = []
    for section in document.sections:
        context = _context(document.title, section.headings, limit, measure)
        # A heading alone still says something; it stands for the text it does not have.
        text = section.text or (section.headings[-1] if section.headings else "")

        def size(piece: str, context: str = context) -> int:
            return measure(context + piece)

        for piece in _pack(_blocks(text), limit, size):
            chunks.append(Chunk(document.title, section.headings, piece, document.source, document.lang, len(chunks)))
    return chunks


def _blocks(text: str) -> list[str]:
    """Paragraphs, tables and fenced code, each with the blank lines inside code kept."""
    blocks: list[list[str]] = [[]]
    fence = ""
    for line in text.split("\n"):
        marker = _FENCE.match(line)
        if fence:
            blocks[-1].append(line)
            if marker and marker.group(1).startswith(fence):
                fence = ""
                blocks.append([])
        elif marker:
            fence = marker.group(1)
            blocks.append([line])
        elif not line.strip():
            blocks.append([])
        else:
            blocks[-1].append(line)
    return ["\n".join(lines) for lines in blocks if any(line.strip() for line in lines)]


def _pack(blocks: list[str], limit: int, size: Callable[[str], int]) -> Iterator[str]:
    """Join neighbouring blocks while they fit; a block that does not fit alone is torn at its best places."""
    current = ""
    for block in blocks:
        joined = f"{current}\n\n{block}" if current else block
        if size(joined) <= limit:
            current = joined
            continue
        if current:
            yield current
            current = ""
        if size(block) <= limit:
            current = block
            continue
        *whole, current = _tear(block, limit, size)
        yield from whole
    if current:
        yield current


def _tear(block: str, limit: int, size: Callable[[str], int]) -> list[str]:
    lines = block.split("\n")
    if _FENCE.match(block):
        return list(_gather([line + "\n" for line in lines], limit, size))
    if len(lines) > 2 and "|" in lines[0] and _TABLE_RULE.match(lines[1]):
        header = "\n".join(lines[:2]) + "\n"
        if size(header) <= limit // 2:
            rows = _gather([line + "\n" for line in lines[2:]], limit, lambda text: size(header + text))
            return [header + piece for piece in rows]
    return list(_gather([match.group() for match in _SENTENCE.finditer(block) if match.group()], limit, size))


def _gather(parts: list[str], limit: int, size: Callable[[str], int]) -> Iterator[str]:
    """Join parts while they fit; a part that does not fit alone is cut between words, at last between characters."""
    current = ""
    for part in parts:
        if size(current + part) <= limit:
            current += part
            continue
        if current.strip():
            yield current.rstrip()
        current = part
        if size(part) > limit:
            *whole, current = _pieces(part, limit, size)
            yield from (piece.rstrip() for piece in whole if piece.strip())
    if current.strip():
        yield current.rstrip()


def _pieces(text: str, limit: int, size: Callable[[str], int]) -> Iterator[str]:
    """Cut a text without sentence ends; every piece has at least one character, whatever its size."""
    while text and size(text) > limit:
        low, high = 1, len(text) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if size(text[:middle]) <= limit:
                low = middle
            else:
                high = middle - 1
        space = max(text.rfind(" ", 1, low), text.rfind("、", 1, low))
        cut = space + 1 if space > low // 2 else low
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text
