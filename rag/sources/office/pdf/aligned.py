"""Tables without rules: rows whose pieces stand in the same columns. Pure geometry."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

from rag.sources.office.markup import TableCell, escape, html_table
from rag.sources.office.pdf.sheet import LinePiece, joined

_MARK = re.compile(r"[•‣▪·◦\-–—*○●■□◆◇・※]|[\[(（]?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,5})[.)）\]]?|[①-⑳]|第.{1,4}[条章節項]")
_NUMBER = re.compile(r"[-+(]?[¥$€£]?\d[\d,.:/%)]*")
_APART = 2.2  # times the height of a line: rows further apart belong to different tables
_CLOSE = 1.35


@dataclass
class Aligned:
    """A table of a flow's rows from `start` to before `end`."""

    start: int
    end: int
    rows: list[list[str]] = field(default_factory=list)

    @property
    def html(self) -> str:
        return html_table([[TableCell(escape(text)) for text in row] for row in self.rows])


def aligned_table(rows: list[list[LinePiece]], start: int) -> Aligned | None:
    """The table that begins at a row; None where none does."""
    if len(rows[start]) < 2 or any(piece.html for piece in rows[start]):
        return None
    columns: list[tuple[float, float]] = []
    end = start
    while end < len(rows):
        grown = _grown(columns, rows[end])
        if grown is None or (end > start and _pitch(rows, end) > _APART):
            break
        columns = grown
        end += 1
    while end > start and len(rows[end - 1]) < 2 and rows[end - 1][0].x0 < columns[0][1]:
        end -= 1
    full = [row for row in rows[start:end] if len(row) > 1]
    if len(full) < (2 if len(columns) > 2 else 3) or 2 * len(full) < end - start:
        return None
    if all(_MARK.fullmatch(row[0].text) for row in full):
        return None  # a list, whose marks stand apart
    table = Aligned(start, end)
    for number in range(start, end):
        texts = [""] * len(columns)
        for piece in rows[number]:
            at = next(i for i, (x0, x1) in enumerate(columns) if piece.x0 < x1 and piece.x1 > x0)
            texts[at] = joined(texts[at], piece.text)
        close = number > start and _pitch(rows, number) < _CLOSE
        if close and not texts[0] and not any(_NUMBER.fullmatch(text) for text in texts):
            table.rows[-1] = [joined(one, other) for one, other in zip(table.rows[-1], texts, strict=True)]
        else:
            table.rows.append(texts)
    return table if len(table.rows) > 1 else None


def _pitch(rows: list[list[LinePiece]], number: int) -> float:
    """The distance of a row from the one above it, in heights of a line."""
    one, other = rows[number - 1][0], rows[number][0]
    return (other.middle - one.middle) / max(min(one.y1 - one.y0, other.y1 - other.y0), 1.0)


def _grown(columns: list[tuple[float, float]], row: list[LinePiece]) -> list[tuple[float, float]] | None:
    """The columns with a row's pieces in them; None where a piece stands in two of them."""
    grown = list(columns)
    for piece in row:
        if piece.html or piece.is_vertical:
            return None
        hit = [i for i, (x0, x1) in enumerate(grown) if piece.x0 < x1 and piece.x1 > x0]
        if len(hit) > 1:
            return None
        if hit:
            x0, x1 = grown[hit[0]]
            grown[hit[0]] = (min(x0, piece.x0), max(x1, piece.x1))
        else:
            grown.append((piece.x0, piece.x1))
    grown.sort()
    apart = all(one[1] <= other[0] for one, other in pairwise(grown))
    return grown if apart else None
