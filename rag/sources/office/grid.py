"""Makes the rows of a sheet into Markdown: titles as lines, tables with their header, each part with its own.

It knows nothing of files: rows of shown texts in, Markdown out. A header stands once over its table; whoever cuts
the table repeats it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rag.sources.clean import clean, without_data_uris

Row = Sequence[str]
_VALUE = re.compile(r"[-+(]?[¥$€£￥]?\d[\d,./:\- %年月日時分)]*")
# Rows are filled up to so many columns; one that is wider ends with its last cell. A merged range of more places than
# these has its text in its first one alone: without bounds a wide row over many short ones would be all of them wide.
_FILLED, _MOST_MERGED = 500, 100_000
_BLOCK_MARK = re.compile(r"(#{1,6}(?=\s)|`{3,}|~{3,}|(?:=+|-{2,})(?=\s*$))")


@dataclass(frozen=True)
class CellSpan:
    """A merged range: rows and columns from 0, the last ones included."""

    top: int
    left: int
    bottom: int
    right: int


def markdown_of_rows(rows: Sequence[Row], spans: Sequence[CellSpan] = ()) -> str:
    """The rows as paragraphs and tables; an empty row ends a table, one that goes on below keeps its header."""
    filled = [list(row) for row in rows]
    bands: set[int] = set()  # rows that are one cell across several columns: lines and no values
    for span in spans:
        _fill(filled, span, bands)
    parts: list[str] = []
    header: list[str] = []
    place: tuple[int, int] = (0, 0)
    for first, block in _blocks(filled):
        used = sorted({n for row in block for n, text in enumerate(row) if text})
        cut = [_chosen(row, used) for row in block]
        names = [first + number in bands for number in range(len(cut))]
        goes_on = place == (used[0], used[-1]) and len(header) == len(used) and _has_values(cut[0])
        text, header = _block(cut, names, header if goes_on else [], [n - first for n in _group_rows(spans, first)])
        place = (used[0], used[-1])
        parts.append(text)
    return "\n\n".join(part for part in parts if part)


def _chosen(row: Row, used: Sequence[int]) -> list[str]:
    """The cells of these columns, in their order; past the row's end empty ones, up to a width."""
    own = bisect_left(used, len(row))
    return [row[n] for n in used[:own]] + [""] * (min(len(used), _FILLED) - own)


def _fill(rows: list[list[str]], span: CellSpan, bands: set[int]) -> None:
    """What stands in a merged range stands in each of its places; across a row of its own it stands once."""
    if span.top >= len(rows) or span.left >= len(rows[span.top]):
        return
    text = rows[span.top][span.left]
    bottom = min(span.bottom, len(rows) - 1)
    if span.top == bottom and not any(
        text for n, text in enumerate(rows[span.top]) if not span.left <= n <= span.right
    ):
        bands.add(span.top)
        return
    width = min(span.right + 1, max(len(row) for row in rows[span.top : bottom + 1]) + 1)
    if (bottom + 1 - span.top) * (width - span.left) > _MOST_MERGED:
        return
    for row in rows[span.top : bottom + 1]:
        row.extend([""] * (width - len(row)))
        row[span.left : width] = [text] * (width - span.left)


def _group_rows(spans: Sequence[CellSpan], first: int) -> list[int]:
    return [span.top for span in spans if span.right > span.left and span.top >= first]


def _blocks(rows: list[list[str]]) -> list[tuple[int, list[list[str]]]]:
    """Rows between empty ones, with the number of the first."""
    blocks: list[tuple[int, list[list[str]]]] = []
    is_open = False
    for number, row in enumerate(rows):
        if not any(row):
            is_open = False
        elif is_open:
            blocks[-1][1].append(row)
        else:
            blocks.append((number, [row]))
            is_open = True
    return blocks


def _has_values(row: Row) -> bool:
    return any(_VALUE.fullmatch(cell) for cell in row)


def _block(rows: list[list[str]], bands: list[bool], header: list[str], groups: list[int]) -> tuple[str, list[str]]:
    """Lines before the table, and the table; with the header that it has."""
    lines: list[str] = []
    start = 0
    if not header:
        while start < len(rows) and (bands[start] or sum(map(bool, rows[start])) < 2):
            lines.append(next(filter(None, rows[start])))
            start += 1
        if start == len(rows) or len(rows[0]) < 2:
            texts = [_BLOCK_MARK.sub(r"\\\1", line, count=1) for line in lines]
            return "\n".join(texts), []
        header = rows[start]
        if start in groups and start + 1 < len(rows) and not bands[start] and not _has_values(rows[start + 1]):
            below = rows[start + 1]  # names of groups over names of columns
            header = [" ".join(dict.fromkeys(filter(None, pair))) for pair in zip_longest(header, below, fillvalue="")]
            start += 1
        start += 1
    table = [_line(header), _line(["---"] * len(header))]
    for row, band in zip(rows[start:], bands[start:], strict=True):
        table.append(_line([next(filter(None, row))] + [""] * (len(row) - 1) if band else row))
    texts = [_BLOCK_MARK.sub(r"\\\1", line, count=1) for line in lines]
    return "\n\n".join(filter(None, ["\n".join(texts), "\n".join(table)])), header


def _line(texts: Row) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def cell_text(text: str) -> str:
    """A cell's text in one line, without what nobody sees."""
    return " ".join(without_data_uris(clean(text)).split())
