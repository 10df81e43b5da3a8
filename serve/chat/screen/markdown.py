"""Markdown as it streams, as rows of a terminal: those that are finished, and the one that is being written.

A finished row is never changed again. Where the end of a row falls into a bold passage, the rest goes on from there.
It knows nothing of terminals but their width. Rows of code are as long as they are: a terminal wraps them, and what is
copied from it has no line ends of ours. A table is drawn when it is whole; until then its last line is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from serve.chat.screen.glyphs import marked_glyphs, plain_glyphs
from serve.chat.screen.table import is_table, table_rows
from serve.chat.screen.wrapping import Row, row_width, without_end, wrapped

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+")
_RULE = re.compile(r"\s*([-*_])(?:\s*\1){2,}\s*")
_BULLET = re.compile(r"(\s*)[-*+][ \t]+(?:\[([ xX])\][ \t]+)?")
_NUMBER = re.compile(r"(\s*)(\d{1,9}[.)])[ \t]+")
_QUOTE = re.compile(r"\s*(>[ \t]?)+")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})([^`]*)")
_INDENT = re.compile(r"\s*")
_RULE_COLUMNS = 40
_DIM, _CODE = "2", "36"


@dataclass(frozen=True)
class Signs:
    """What lists, quotes and rules are drawn with."""

    bullet: str = "•"
    bar: str = "│"
    rule: str = "─"
    boxes: tuple[str, str] = ("☐", "☑")


ASCII_SIGNS = Signs("*", "|", "-", ("[ ]", "[x]"))


@dataclass(frozen=True)
class DrawnSoFar:
    """What a piece of text has made of the screen: rows that are finished, and the row being written ([]: none)."""

    finished: list[Row]
    pending: Row


@dataclass(frozen=True)
class _Block:
    """What a line is: what stands before its first row and before the others, its style, where its text begins."""

    first: Row = field(default_factory=list)
    rest: Row = field(default_factory=list)
    style: str = ""
    at: int = 0


class MarkdownStream:
    """One answer. columns(): the width of the terminal; asked anew for every line."""

    def __init__(self, columns: Callable[[], int], signs: Signs = Signs()) -> None:
        self._columns, self._signs = columns, signs
        self._source = ""  # of the line being written, behind its finished rows
        self._open: tuple[str, ...] = ()
        self._block: _Block | None = None  # known once the line's first row is finished
        self._fence = ""
        self._table: list[str] = []

    def feed(self, text: str) -> DrawnSoFar:
        """Take more of the answer."""
        finished: list[Row] = []
        *lines, rest = (text.replace("\t", "    ")).split("\n")
        for line in lines:
            self._source += line
            finished += self._end_line()
        self._source += rest
        finished += self._full_rows()
        return DrawnSoFar(finished, self._pending())

    def end(self) -> DrawnSoFar:
        """The answer is over: what is left of it."""
        finished = self._end_line() if self._source or self._block else []
        return DrawnSoFar(finished + self._end_table(), [])

    @property
    def _width(self) -> int:
        return max(8, self._columns() - 1)  # a terminal goes on to the next row by itself behind the last column

    def _block_of(self, source: str) -> _Block:
        if found := _HEADING.match(source):
            return _Block(style="1;4" if len(found[1]) == 1 else "1", at=found.end())
        if found := _BULLET.match(source):
            sign = self._signs.boxes[found[2] in "xX"] if found[2] else self._signs.bullet
            return self._hanging(found[1], sign, found.end())
        if found := _NUMBER.match(source):
            return self._hanging(found[1], found[2], found.end())
        if found := _QUOTE.match(source):
            bars = plain_glyphs(f"{self._signs.bar} " * found[0].count(">"), _DIM)
            return _Block(bars, bars, at=found.end())
        found = _INDENT.match(source)
        return self._hanging(found[0] if found else "", "", len(found[0]) if found else 0)

    def _hanging(self, indent: str, sign: str, at: int) -> _Block:
        indent = indent[: self._width // 2]
        first = plain_glyphs(f"{indent}{sign}{' ' if sign else ''}")
        return _Block(first, plain_glyphs(" " * row_width(first)), at=at)

    def _rows(self, *, final: bool) -> tuple[_Block, list[Row]]:
        """The rows of the line so far, without what stands before them."""
        block = self._block or self._block_of(self._source)
        glyphs = marked_glyphs(self._source[block.at :], self._open, style=block.style, final=final)
        return block, wrapped(glyphs, max(4, self._width - row_width(block.first)))

    def _full_rows(self) -> list[Row]:
        """Rows that nothing can change any more, which are taken from the line."""
        if self._is_code() or self._table or self._source.lstrip().startswith("|"):
            return []
        block, rows = self._rows(final=False)
        if len(rows) < 2:
            return []
        last = rows[-2][-1]
        self._source, self._open = self._source[block.at + last.end :], last.open
        self._block = _Block(block.rest, block.rest, block.style)
        before = [block.first, *[block.rest] * (len(rows) - 2)]
        return [without_end([*head, *row]) for head, row in zip(before, rows[:-1], strict=True)]

    def _pending(self) -> Row:
        if self._is_code():
            return plain_glyphs(self._source, _CODE if self._fence else _DIM)
        if self._table or self._source.lstrip().startswith("|"):
            line = self._source or (self._table[-1] if self._table else "")
            return wrapped(plain_glyphs(line, _DIM), self._width)[0]
        if not self._source and not self._block:
            return []
        block, rows = self._rows(final=False)
        row = [*block.first, *rows[0]]
        while row_width(row) > self._width and row[-1].text.isspace():  # what hangs would go on to the next row
            row.pop()
        return row

    def _is_code(self) -> bool:
        return bool(self._fence) or (self._block is None and self._source.lstrip().startswith(("```", "~~~")))

    def _end_line(self) -> list[Row]:
        """The rows of a line that is whole."""
        line = self._source
        if self._fence or self._block is None:
            if self._fence:
                self._source = ""
                if self._closes_fence(line):
                    self._fence = ""
                    return [plain_glyphs(line, _DIM)]
                return [plain_glyphs(line, _CODE)]
            if line.lstrip().startswith("|"):
                self._source = ""
                self._table.append(line)
                return []
        finished = self._end_table()
        self._source = ""
        if self._block is None and (found := _FENCE.fullmatch(line)):
            self._fence = found[1]
            return [*finished, plain_glyphs(line, _DIM)]
        if self._block is None and _RULE.fullmatch(line):
            return [*finished, plain_glyphs(self._signs.rule * min(_RULE_COLUMNS, self._width), _DIM)]
        self._source = line.rstrip()
        block, rows = self._rows(final=True)
        self._source, self._open, self._block = "", (), None
        before = [block.first, *[block.rest] * (len(rows) - 1)]
        return finished + [without_end([*head, *row]) for head, row in zip(before, rows, strict=True)]

    def _closes_fence(self, line: str) -> bool:
        bare = line.strip()
        return len(bare) >= len(self._fence) and set(bare) == {self._fence[0]}

    def _end_table(self) -> list[Row]:
        lines, self._table = self._table, []
        if not lines:
            return []
        drawn = table_rows(lines, self._width, self._signs.rule, self._signs.bar) if is_table(lines) else None
        if drawn is not None:
            return drawn
        return [row for line in lines for row in wrapped(plain_glyphs(line), self._width)]
