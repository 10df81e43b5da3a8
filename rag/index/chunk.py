"""Cuts documents into chunks that fit an embedder, along headings, paragraphs and sentences.

It knows nothing of embedders: `measure` tells the size of a text in whatever unit the limit has. No text is
lost, none is repeated except the header row of a table that had to be torn. The work grows with the length of the
text and not faster: no more is measured at once than may be a chunk, and where it ends is guessed from the last one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from rag.document import Document, is_table_rule

# A sentence ends after 。！？ and their closing brackets, or after . ! ? before white space; a line end ends it too.
_SENTENCE = re.compile(r".*?(?:[。！？][」』）)】\"”]*|[.!?][\"')\]”’]*(?=\s)|\n|\Z)\s*", re.DOTALL)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
# A context line has no more than this share of the limit, so that text has room.
_CONTEXT_SHARE = 0.4
_JOINT = " > "
# No chunk has more characters than this for each unit of the limit: blanks may cost nothing, and yet fill a prompt.
_CHARACTERS_A_UNIT = 16
_GUESSED_CHARACTERS_A_UNIT = 2

Fits = Callable[[str], bool]


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. `ordinal` counts the chunks of the document from 0.

    context: where it stands, in one line that leaves room for the text.
    """

    title: str
    headings: tuple[str, ...]
    text: str
    source: str
    lang: str
    ordinal: int
    context: str

    @property
    def heading(self) -> str:
        return " > ".join(self.headings)

    @property
    def indexed_text(self) -> str:
        """What is searched of it, by vectors and by words: its context line and its text."""
        return f"{self.context}\n{self.text}" if self.context else self.text


def context_line(title: str, headings: tuple[str, ...]) -> str:
    """Where a chunk stands, in one line: page title and heading path."""
    return _JOINT.join(_parts(title, headings))


def _parts(title: str, headings: tuple[str, ...]) -> list[str]:
    return [part for part in (title, *headings) if part]


def _fits(before: str, limit: int, measure: Callable[[str], int]) -> Fits:
    """Whether a text fits into the limit after what is before it; one that is far too long is not measured at all."""
    most = limit * _CHARACTERS_A_UNIT
    return lambda text: len(text) <= most and measure(before + text) <= limit


def chunk_document(document: Document, limit: int, measure: Callable[[str], int]) -> list[Chunk]:
    """The chunks of a document; context line and text of each measure at most `limit`.

    measure must not grow when text is cut off at the end.
    """
    chunks: list[Chunk] = []
    room = int(limit * _CONTEXT_SHARE)
    before: list[str] = []
    for section in document.sections:
        parts = _parts(document.title, section.headings)
        line = _JOINT.join(parts)
        context = next(_pieces(line, room, _fits("", room, measure)), "").rstrip()
        # What the line has no room for begins the text, unless the section before has it already.
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before, parts, strict=False))))
        known = len(_JOINT.join(parts[:same]))
        rest = line[max(len(context), known) :].strip(_JOINT)
        before = parts
        # A heading alone still says something; it stands for the text it does not have.
        text = section.text or (section.headings[-1] if section.headings and not rest else "")
        fits = _fits(context + "\n" if context else "", limit, measure)
        blocks = [*_blocks(rest), *_blocks(text)]
        for piece in _gather(blocks, "\n\n", fits, partial(_tear, limit=limit, fits=fits)):
            place = document.title, section.headings
            chunks.append(Chunk(*place, piece, document.source, document.lang, len(chunks), context))
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


def _tear(block: str, limit: int, fits: Fits) -> Iterator[str]:
    """Cut a block at its best places: code at line ends, a table between rows, text after sentences."""

    def cut(part: str) -> Iterator[str]:
        return _pieces(part, limit, fits)

    lines = block.split("\n")
    if _FENCE.match(block):
        return _gather([line + "\n" for line in lines], "", fits, cut)
    if len(lines) > 2 and "|" in lines[0] and is_table_rule(lines[1]):
        header = "\n".join(lines[:2]) + "\n"
        if fits(header * 2):

            def below(text: str) -> bool:
                return fits(header + text)

            rows = _gather([line + "\n" for line in lines[2:]], "", below, lambda row: _pieces(row, limit, below))
            return (header + piece for piece in rows)
    return _gather([match.group() for match in _SENTENCE.finditer(block) if match.group()], "", fits, cut)


def _gather(parts: Sequence[str], joint: str, fits: Fits, cut: Callable[[str], Iterator[str]]) -> Iterator[str]:
    """Join neighbouring parts while they fit; one that does not fit alone is cut, its last piece joined to the next."""
    current, number, guess = "", 0, 1
    while number < len(parts):
        start = [current] if current else []

        def joined(count: int, start: list[str] = start, number: int = number) -> str:
            return joint.join([*start, *parts[number : number + count]])

        count = _longest(len(parts) - number, joined, fits, guess)
        if count:
            current, number, guess = joined(count), number + count, count
        elif not current:
            *whole, current = cut(parts[number])
            number += 1
            yield from (piece.rstrip() for piece in whole if piece.strip())
            continue
        if number < len(parts):
            if current.strip():
                yield current.rstrip()
            current = ""
    if current.strip():
        yield current.rstrip()


def _pieces(text: str, limit: int, fits: Fits) -> Iterator[str]:
    """Cut a text between words, at last between characters; every piece has at least one, whatever its size."""
    start, guess = 0, limit * _GUESSED_CHARACTERS_A_UNIT
    while start < len(text):

        def first(count: int, start: int = start) -> str:
            return text[start : start + count]

        guess = count = max(1, _longest(len(text) - start, first, fits, guess))
        end = start + count
        if end < len(text):
            space = max(text.rfind(" ", start + 1, end), text.rfind("、", start + 1, end))
            end = space + 1 if space - start > count // 2 else end
        yield text[start:end]
        start = end


def _longest(most: int, piece: Callable[[int], str], fits: Fits, guess: int) -> int:
    """About the greatest count from 0 to `most` whose piece fits (exactly, below 32), in growing steps from a guess.

    Never one that does not fit; what is cut off a piece that fits must leave one that fits.
    """
    low, high = 0, most + 1
    count, step = min(max(1, guess), most), 1 + guess // 8
    while high - low > (1 if high > most else 1 + low // 32):
        low, high = (count, high) if fits(piece(count)) else (low, count)
        if high > most:
            count = min(most, low + step)
        elif low == 0:
            count = max(1, high - step)
        else:
            count = (low + high) // 2
        step *= 2
    return low
