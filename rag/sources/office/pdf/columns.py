"""The order in which a page is read: columns from the left, what runs across them in its place. Pure geometry."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rag.sources.office.pdf.ruled import rows_of_pieces
from rag.sources.office.pdf.sheet import LinePiece, is_wide

PieceRow = list[LinePiece]
_GUTTER = 0.75  # times the size of the letters, at least
_FULL = 0.5  # of a column's width, that most of its lines fill
_LINE = 14  # half-width characters that a line of prose has, at least
_DEEPEST = 8


def flows_of(pieces: Sequence[LinePiece]) -> list[list[PieceRow]]:
    """Runs of rows, each to be read from its top to its end."""
    if sum(piece.is_vertical for piece in pieces) * 2 > len(pieces):
        return [[[piece] for piece in sorted(pieces, key=lambda p: (-p.x0, p.y0))]]
    return _flows(pieces, 0)


def _flows(pieces: Sequence[LinePiece], depth: int) -> list[list[PieceRow]]:
    rows = rows_of_pieces(pieces)
    flows: list[list[PieceRow]] = [[]]
    start = 0
    while start < len(rows):
        end, gutter = _run(rows, start)
        inside = [piece for row in rows[start:end] for piece in row]
        sides = [[p for p in inside if p.x1 <= gutter], [p for p in inside if p.x0 >= gutter]]
        if depth < _DEEPEST and gutter and all(map(_is_prose, sides)):
            flows += [flow for side in sides for flow in _flows(side, depth + 1)]
            flows.append([])
            start = end
        else:
            flows[-1].append(rows[start])
            start += 1
    return [flow for flow in flows if flow]


def _run(rows: list[PieceRow], start: int) -> tuple[int, float]:
    """Where the rows end that leave a gutter free, and the middle of the gutter; 0.0 where there is none."""
    left = min(piece.x0 for row in rows for piece in row)
    right = max(piece.x1 for row in rows for piece in row)
    free = [(left, right)]
    best: tuple[int, float] = (start + 1, 0.0)
    for end in range(start, len(rows)):
        for piece in rows[end]:
            free = [part for a, b in free for part in ((a, min(b, piece.x0)), (max(a, piece.x1), b))
                    if part[1] - part[0] > _GUTTER * max(piece.size, 4)]  # fmt: skip
        inner = [(a, b) for a, b in free if a > left + 1 and b < right - 1]
        if not free:
            break
        inside = [piece for row in rows[start : end + 1] for piece in row]
        between = [
            (b - a, (a + b) / 2) for a, b in inner
            if any(p.x1 <= (a + b) / 2 for p in inside) and any(p.x0 >= (a + b) / 2 for p in inside)
        ]  # fmt: skip
        if between:
            best = (end + 1, max(between)[1])
    return best


def _is_prose(pieces: Sequence[LinePiece]) -> bool:
    """Whether these are lines of a column: long, and most of them nearly as wide as it."""
    rows = rows_of_pieces(pieces)
    if len(rows) < 3:
        return False
    width = max(piece.x1 for piece in pieces) - min(piece.x0 for piece in pieces)
    lines = [(sum(len(p.text) + sum(map(is_wide, p.text)) for p in row), row[-1].x1 - row[0].x0) for row in rows]
    return median(size for size, _ in lines) >= _LINE and median(line for _, line in lines) >= _FULL * width
