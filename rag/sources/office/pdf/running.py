"""What is printed on every page: headers, footers and page numbers. Pure functions over pages."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from rag.sources.office.pdf.ruled import rows_of_pieces
from rag.sources.office.pdf.sheet import LinePiece, Sheet

_MARGIN = 0.15  # of a page's height, above and below
_MOST_ROWS = 4
_NEAR = 6.0  # points by which the place may differ
_ENOUGH = 5  # pages; a chapter's header is not that of the whole book
_NUMBER = re.compile(
    r"\W*(?:page|p\.|seite|頁)?\s*(?:#|[ivxlc]{1,7})\s*(?:(?:/|of|von)\s*#)?\s*(?:ページ|頁)?\W*", re.IGNORECASE
)
_AT_ENDS = re.compile(r"^\d{1,4}(?=\D|$)|(?<!\d)\d{1,4}$")
# What can be nothing but a page's number, on a single page too.
_COUNTED = re.compile(r"[-–—]\s*#\s*[-–—]|(?:page\s*)?#\s*(?:/|of)\s*#|page\s*#|#\s*ページ", re.IGNORECASE)


def without_running(sheets: Sequence[Sheet]) -> None:
    """Take out of the pages what stands at the edge of many of them, digits apart, in the same place."""
    found: dict[str, list[tuple[int, float, list[LinePiece]]]] = defaultdict(list)
    gone: dict[int, set[int]] = defaultdict(set)
    for index, sheet in enumerate(sheets):
        for row in _edge_rows(sheet):
            text = re.sub(r"\d+", "#", " ".join(piece.text for piece in row)).strip()
            if _COUNTED.fullmatch(text):
                gone[index] |= {id(piece) for piece in row}
            key = "#" if _NUMBER.fullmatch(text) else text
            found[key].append((index, row[0].middle, row))
    least = max(2, min(_ENOUGH, (len(sheets) + 1) // 2))
    for index, row in _numbered(sheets):
        gone[index] |= {id(piece) for piece in row}
    for entries in found.values():
        entries.sort(key=lambda entry: entry[1])
        start = 0
        for at in range(1, len(entries) + 1):
            if at == len(entries) or entries[at][1] - entries[at - 1][1] > _NEAR:
                group = entries[start:at]
                if len({index for index, _, _ in group}) >= least:
                    for index, _, row in group:
                        gone[index] |= {id(piece) for piece in row}
                start = at
    if not gone:
        return
    for index, sheet in enumerate(sheets):
        kept = [piece for piece in sheet.pieces if id(piece) not in gone[index]]
        if kept or any(other.pieces for other in sheets):
            sheet.pieces = kept


def _numbered(sheets: Sequence[Sheet]) -> list[tuple[int, list[LinePiece]]]:
    """Outermost rows that begin or end with a number that counts the pages, whatever else they say."""
    found: dict[tuple[int, bool], list[tuple[int, list[LinePiece]]]] = defaultdict(list)
    for index, sheet in enumerate(sheets):
        rows = _edge_rows(sheet)
        for row in rows[:1] + rows[-1:]:
            text = " ".join(piece.text for piece in row).strip()
            for number in {match.group() for match in _AT_ENDS.finditer(text)}:
                found[int(number) - index, row[0].middle < sheet.height / 2].append((index, row))
    least = max(3, (len(sheets) + 2) // 3)
    return [entry for entries in found.values() if len(entries) >= least for entry in entries]


def _edge_rows(sheet: Sheet) -> list[list[LinePiece]]:
    """The first and last rows of a page that stand in its margins, apart from the text."""
    rows = rows_of_pieces([piece for piece in sheet.pieces if not piece.is_vertical])
    top = [row for row in rows if row[0].middle < _MARGIN * sheet.height]
    bottom = [row for row in reversed(rows) if row[0].middle > (1 - _MARGIN) * sheet.height]
    return _apart(top, rows) + _apart(bottom, rows[::-1])[::-1]


def _apart(margin: list[list[LinePiece]], rows: list[list[LinePiece]]) -> list[list[LinePiece]]:
    """The rows of a margin up to the last gap in it, counted from the page's edge."""
    count = 0
    for number, row in enumerate(margin[:_MOST_ROWS]):
        following = rows[number + 1][0] if number + 1 < len(rows) else None
        height = row[0].y1 - row[0].y0
        if following is None or abs(following.middle - row[0].middle) > 1.6 * height:
            count = number + 1
    return margin[:count]
