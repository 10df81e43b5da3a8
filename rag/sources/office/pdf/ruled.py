"""Tables that are drawn with rules: the grid, its merged cells, and the text in each. Pure geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rag.sources.office.markup import TableCell, escape, html_table
from rag.sources.office.pdf.sheet import LinePiece, Rule

Join = Callable[[str, str], str]
_NEAR = 3.0  # points within which two rules are one, or meet
_MOST_RULES = 4_000


@dataclass
class Ruled:
    """A table on a page: where it is, and its HTML."""

    x0: float
    y0: float
    x1: float
    y1: float
    html: str


def ruled_tables(rules: Sequence[Rule], pieces: list[LinePiece], join: Join) -> tuple[list[Ruled], list[LinePiece]]:
    """The tables, and the pieces that are in none of them; `join` puts two lines of a cell together."""
    tables: list[Ruled] = []
    if not 4 <= len(rules) <= _MOST_RULES:
        return tables, pieces
    for group in _groups(rules):
        across = _positions([rule.y0 for rule in group if rule.y0 == rule.y1])
        down = _positions([rule.x0 for rule in group if rule.x0 == rule.x1])
        if len(across) < 3 or len(down) < 3 or len(across) * len(down) > 20_000:
            continue
        table = Ruled(down[0], across[0], down[-1], across[-1], "")
        inside = [piece for piece in pieces if _is_inside(piece, table)]
        html = _table(across, down, group, inside, join)
        if html:
            table.html = html
            tables.append(table)
            pieces = [piece for piece in pieces if not _is_inside(piece, table)]
    return tables, pieces


def _is_inside(piece: LinePiece, table: Ruled) -> bool:
    middle = (piece.x0 + piece.x1) / 2
    return table.x0 <= middle <= table.x1 and table.y0 - 1 <= piece.middle <= table.y1 + 1


def _groups(rules: Sequence[Rule]) -> list[list[Rule]]:
    """Rules that meet each other, directly or over others."""
    across = sorted((rule for rule in rules if rule.y0 == rule.y1), key=lambda rule: rule.y0)
    down = [rule for rule in rules if rule.x0 == rule.x1]
    parent = list(range(len(across) + len(down)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for number, line in enumerate(down, start=len(across)):
        for other, rule in enumerate(across):
            if rule.y0 > line.y1 + _NEAR:
                break
            if rule.y0 >= line.y0 - _NEAR and rule.x0 - _NEAR <= line.x0 <= rule.x1 + _NEAR:
                parent[root(number)] = root(other)
    groups: dict[int, list[Rule]] = {}
    for index, rule in enumerate([*across, *down]):
        groups.setdefault(root(index), []).append(rule)
    return [group for group in groups.values() if len(group) >= 4]


def _positions(values: Sequence[float]) -> list[float]:
    """Places of rules, those that are one line as one."""
    found: list[float] = []
    for value in sorted(values):
        if not found or value - found[-1] > _NEAR:
            found.append(value)
    return found


def _table(across: list[float], down: list[float], rules: list[Rule], pieces: list[LinePiece], join: Join) -> str:
    rows, columns = len(across) - 1, len(down) - 1

    def is_ruled_right(row: int, column: int) -> bool:
        x, y = down[column + 1], (across[row] + across[row + 1]) / 2
        return any(r.x0 == r.x1 and abs(r.x0 - x) <= _NEAR and r.y0 - 1 <= y <= r.y1 + 1 for r in rules)

    def is_ruled_below(row: int, column: int) -> bool:
        y, x = across[row + 1], (down[column] + down[column + 1]) / 2
        return any(r.y0 == r.y1 and abs(r.y0 - y) <= _NEAR and r.x0 - 1 <= x <= r.x1 + 1 for r in rules)

    owner: dict[tuple[int, int], tuple[int, int]] = {}
    cells: dict[tuple[int, int], TableCell] = {}
    for row in range(rows):
        for column in range(columns):
            if (row, column) in owner:
                continue
            right, below = column, row
            while right + 1 < columns and (row, right + 1) not in owner and not is_ruled_right(row, right):
                right += 1
            while below + 1 < rows and not any(is_ruled_below(below, c) for c in range(column, right + 1)):
                below += 1
            cells[row, column] = TableCell("", right - column + 1, below - row + 1)
            for place in ((r, c) for r in range(row, below + 1) for c in range(column, right + 1)):
                owner.setdefault(place, (row, column))
    texts: dict[tuple[int, int], list[LinePiece]] = {}
    for piece in pieces:
        row = min(max(sum(y <= piece.middle for y in across) - 1, 0), rows - 1)
        for cell, part in _cut(piece, [owner[row, column] for column in _columns(piece, down)]):
            texts.setdefault(cell, []).append(part)
    for place, parts in texts.items():
        cells[place].html = escape(text_of(parts, join))
    if len(cells) < 4 or len(texts) < 2:
        return ""
    lines = [[cells[row, column] for column in range(columns) if (row, column) in cells] for row in range(rows)]
    return html_table(lines)


def _columns(piece: LinePiece, down: list[float]) -> list[int]:
    """The column that each character of a piece stands in."""
    return [min(max(sum(x <= left + 0.5 for x in down) - 1, 0), len(down) - 2) for left in piece.lefts]


def _cut(piece: LinePiece, places: list[tuple[int, int]]) -> list[tuple[tuple[int, int], LinePiece]]:
    """A piece that runs over rules, as one part a cell; places: the cell of each character."""
    parts: list[tuple[tuple[int, int], LinePiece]] = []
    start = 0
    for index in range(1, len(places) + 1):
        if index == len(places) or places[index] != places[start]:
            text = piece.text[start:index].strip()
            if text:
                parts.append(
                    (places[start], LinePiece(text, piece.lefts[start], piece.y0, piece.x1, piece.y1, piece.size))
                )
            start = index
    return parts


def text_of(pieces: Sequence[LinePiece], join: Join) -> str:
    """Pieces as one text, line by line from the top."""
    text = ""
    for piece in in_lines(pieces):
        text = join(text, piece.text) if text else piece.text
    return text


def in_lines(pieces: Sequence[LinePiece]) -> list[LinePiece]:
    """Pieces in the order of their lines, each line from the left; vertical lines from the right."""
    if sum(piece.is_vertical for piece in pieces) * 2 > len(pieces):
        return sorted(pieces, key=lambda piece: (-piece.x0, piece.y0))
    return [piece for row in rows_of_pieces(pieces) for piece in row]


def rows_of_pieces(pieces: Sequence[LinePiece]) -> list[list[LinePiece]]:
    """Pieces that stand on one line, together and from the left; lines from the top."""
    rows: list[list[LinePiece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.middle):
        last = rows[-1][0] if rows else None
        if last is not None and piece.middle - last.middle < 0.5 * min(piece.y1 - piece.y0, last.y1 - last.y0):
            rows[-1].append(piece)
        else:
            rows.append([piece])
    return [sorted(row, key=lambda piece: piece.x0) for row in rows]
