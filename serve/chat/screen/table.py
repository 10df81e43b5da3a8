"""A Markdown table as aligned rows. It knows nothing of what is before and behind it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from serve.chat.screen.glyphs import Glyph, marked_glyphs, plain_glyphs
from serve.chat.screen.wrapping import Row, row_width, without_end, wrapped

_DELIMITER = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")
_NARROWEST = 4


def is_table(lines: Sequence[str]) -> bool:
    """Whether lines are a table: a head, a line of dashes, rows."""
    return len(lines) >= 2 and bool(_DELIMITER.fullmatch(lines[1])) and "-" in lines[1]


def table_rows(lines: Sequence[str], width: int, rule: str = "─", bar: str = "│") -> list[Row] | None:
    """The table's rows of at most `width` columns, long cells on several; None where it has too many columns."""
    head, marks, *body = (_cells(line) for line in lines)
    columns = len(head)
    rows = [head, *body]
    cells = [
        [marked_glyphs(cell, style="1" if n == 0 else "", final=True) for cell in row] for n, row in enumerate(rows)
    ]
    cells = [(row + [[] for _ in range(columns)])[:columns] for row in cells]
    widths = _fit([max(1, *(row_width(row[n]) for row in cells)) for n in range(columns)], width - 3 * (columns - 1))
    if widths is None:
        return None
    sides = [(mark.startswith(":"), mark.endswith(":")) for mark in (*marks, *[""] * columns)][:columns]
    shown: list[Row] = []
    for number, row in enumerate(cells):
        parts = [[without_end(part) for part in wrapped(cell, wide)] for cell, wide in zip(row, widths, strict=True)]
        for line in zip_longest(*parts, fillvalue=[]):
            joined: Row = []
            for n, (part, wide, side) in enumerate(zip(line, widths, sides, strict=True)):
                joined += plain_glyphs(f" {bar} ", "2") if n else []
                joined += _aligned(part, wide, side)
            shown.append(without_end(joined))
        if number == 0:
            shown.append(plain_glyphs(f"{rule}{'┼' if rule == '─' else '+'}{rule}".join(rule * w for w in widths), "2"))
    return shown


def _cells(line: str) -> list[str]:
    inside = line.strip().removeprefix("|")
    if inside.endswith("|") and not inside.endswith("\\|"):
        inside = inside[:-1]
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inside)]


def _fit(widths: list[int], room: int) -> list[int] | None:
    """The widths, the widest made narrower until they fit."""
    widths = list(widths)
    while sum(widths) > room:
        widest = max(widths)
        if widest <= _NARROWEST:
            return None
        widths[widths.index(widest)] = widest - 1
    return widths


def _aligned(cell: Sequence[Glyph], width: int, side: tuple[bool, bool]) -> Row:
    left = (side == (True, True) and (width - row_width(cell)) // 2) or 0
    space = width - row_width(cell)
    left = space if side == (False, True) else left
    return [*plain_glyphs(" " * left), *cell, *plain_glyphs(" " * (space - left))]
