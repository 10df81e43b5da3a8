"""The grid of an HTML table: spans filled, header rows joined, written as a Markdown table.

It knows nothing of what is in a cell: it is given a function that renders one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rag.sources.html.tree import is_dropped

# Up to there spans are filled in and short rows filled up; real cells are written however many there are.
_MOST_COLUMNS, _MOST_CELLS = 500, 200_000
# A long table is written in parts of so many characters, each under its header: a cell far from it says nothing.
_LONGEST_PART = 1000


@dataclass(frozen=True)
class Cell:
    """A cell of the grid; the places that it spans hold it too."""

    text: str
    heads: bool
    columns: int = 1


def rows_of(table: Any) -> Iterator[tuple[Any, bool]]:
    """The rows of a table itself, not of those in it, and whether each stands in its <thead>."""
    part = table.child
    while part is not None:
        if part.tag == "tr":
            yield part, False
        elif part.tag in ("thead", "tbody", "tfoot") and not is_dropped(part):
            row = part.child
            while row is not None:
                if row.tag == "tr":
                    yield row, part.tag == "thead"
                row = row.next
        part = part.next


def cells_of(row: Any) -> Iterator[Any]:
    """The cells of a row that are seen."""
    cell = row.child
    while cell is not None:
        if cell.tag in ("td", "th") and not is_dropped(cell):
            yield cell
        cell = cell.next


def captions_of(table: Any) -> Iterator[Any]:
    """The captions of a table that are seen."""
    part = table.child
    while part is not None:
        if part.tag == "caption" and not is_dropped(part):
            yield part
        part = part.next


def markdown_table(table: Any, render: Callable[[Any], str]) -> list[str]:
    """The lines of a table: a label that spans rows or columns stands in each of them."""
    rows = [(row, heads) for row, heads in rows_of(table) if not is_dropped(row)]
    grid, heads = _grid(rows, render)
    if not grid:
        return []
    width = max(map(len, grid))
    grid = [row + [Cell("", False)] * (min(width, _MOST_COLUMNS) - len(row)) for row in grid]
    head = [_line(_joined(grid[:heads], width)), _line(["---"] * width)]
    lines, length = list(head), 0
    for row in grid[heads:]:
        texts = [cell.text for cell in row]
        # One cell across the whole table is a line between its parts and no value of every column.
        if width > 1 and row[0].columns >= width:
            texts = [row[0].text] + [""] * (width - 1)
        if any(texts):
            line = _line(texts)
            if heads and length and length + len(line) > _LONGEST_PART:
                lines += ["", *head]
                length = 0
            lines.append(line)
            length += len(line)
    return lines


def table_rows(table: Any, render: Callable[[Any], str]) -> list[str]:
    """The rows of a table each as one text: first the header, then values under it (Port: 443, Use: public)."""
    grid, heads = _grid([(row, in_head) for row, in_head in rows_of(table) if not is_dropped(row)], render)
    names = _joined(grid[:heads], max(map(len, grid), default=0)) if heads < len(grid) else []
    rows = [", ".join(dict.fromkeys(filter(None, names)))]
    for row in grid[heads:] if names else grid:
        named = dict.fromkeys((names[place] if names else "", cell.text) for place, cell in enumerate(row) if cell.text)
        rows.append(", ".join(f"{name}: {text}" if name else text for name, text in named))
    return [row for row in rows if row]


def _grid(rows: list[tuple[Any, bool]], render: Callable[[Any], str]) -> tuple[list[list[Cell]], int]:
    """The rows of cells with spans filled, and how many of the first ones are the header."""
    grid: list[list[Cell]] = []
    hanging: dict[int, tuple[int, Cell]] = {}  # by column: rows that a cell from above still spans
    heads, count = 0, 0
    for number, (row, in_head) in enumerate(rows):
        line: list[Cell] = []

        def hang(line: list[Cell] = line) -> None:
            while len(line) in hanging:
                left, cell = hanging.pop(len(line))
                if left > 1:
                    hanging[len(line)] = (left - 1, cell)
                line.append(cell)

        cells = list(cells_of(row))
        for node in cells:
            hang()
            across = max(1, min(_span(node, "colspan"), _MOST_COLUMNS - len(line), _MOST_CELLS - count))
            down = _span(node, "rowspan") or len(rows)
            cell = Cell(render(node), node.tag == "th", across)
            for _ in range(across):
                if down > 1 and len(line) < _MOST_COLUMNS:
                    hanging[len(line)] = (down - 1, cell)
                line.append(cell)
            count += across
        hang()
        for column in [column for column in hanging if column >= len(line)]:
            left, _ = hanging[column]  # a gap before a hanging cell: it has no neighbour in this row
            hanging[column] = (left - 1, hanging[column][1])
            if left <= 1:
                del hanging[column]
        is_head = in_head or (bool(cells) and all(node.tag == "th" for node in cells))
        if is_head and heads == number and line:
            heads = number + 1
        grid.append(line)
    if heads == len(grid) and heads > 1:
        heads = 1  # a table of nothing but <th>
    return ([], 0) if not any(cell.text for line in grid for cell in line) else (_narrowed(grid), heads)


def _narrowed(grid: list[list[Cell]]) -> list[list[Cell]]:
    """The rows without columns in which no cell begins: those that cells only span say nothing twice."""
    begun = sorted(
        {place for row in grid for place, cell in enumerate(row) if place == 0 or row[place - 1] is not cell}
    )
    if len(begun) == max(map(len, grid), default=0):
        return grid
    narrow = []
    for row in grid:
        left = [row[place] for place in begun if place < len(row)]
        if left:  # of how many columns the first cell is says whether it is a line of its own
            left[0] = replace(left[0], columns=sum(place < left[0].columns for place in begun))
        narrow.append(left)
    return narrow


def _span(node: Any, name: str) -> int:
    value = (node.attributes.get(name) or "").strip()
    return int(value[:6]) if value.isascii() and value.isdigit() else 1


def _joined(rows: list[list[Cell]], width: int) -> list[str]:
    """Header rows as one: each column named from the top down."""
    names: list[dict[str, None]] = [{} for _ in range(width)]
    for row in rows:
        for cell, parts in zip(row, names, strict=False):
            if cell.text:
                parts[cell.text] = None
    return [" ".join(parts) for parts in names]


def _line(texts: list[str]) -> str:
    return "| " + " | ".join(texts) + " |"
