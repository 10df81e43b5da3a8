"""Writes rows to a terminal. It knows nothing of what they mean.

Only the row being written is ever drawn anew, and only where more text does not simply go behind it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from serve.chat.screen.glyphs import Glyph
from serve.chat.screen.markdown import ASCII_SIGNS, DrawnSoFar, MarkdownStream, Signs
from serve.chat.screen.wrapping import Row, row_width
from slm.text.visible import without_controls


def terminal_columns() -> int:
    """The terminal's width now."""
    return shutil.get_terminal_size().columns


class Painter:
    """One answer on a terminal. write: takes text and escape sequences; what it is given is to be seen at once."""

    def __init__(
        self, write: Callable[[str], None], columns: Callable[[], int] = terminal_columns, *, ascii_only: bool = False
    ) -> None:
        self._write, self._columns = write, columns
        self._stream = MarkdownStream(columns, ASCII_SIGNS if ascii_only else Signs())
        self._drawn: Row = []

    def feed(self, text: str) -> None:
        """More of the answer; control characters in it do nothing."""
        self._paint(self._stream.feed(without_controls(text)))

    def end(self) -> None:
        """The answer is over; the cursor is at the beginning of a row."""
        self._paint(self._stream.end())

    def _paint(self, written: DrawnSoFar) -> None:
        codes = ""
        for row in written.finished:
            codes += self._to(row) + "\n"
            self._drawn = []
        codes += self._to(written.pending)
        self._drawn = written.pending
        if codes:
            self._write(codes)

    def _to(self, row: Row) -> str:
        """What turns the row that is drawn into another one."""
        drawn = self._drawn
        if same_looks(row[: len(drawn)], drawn):
            return painted(row[len(drawn) :])
        if (
            row_width(drawn) >= self._columns()
            and len(row) >= len(drawn)
            and same_looks(row[: len(drawn) - 1], drawn[:-1])
        ):
            grown = row[
                len(drawn) - 1
            ]  # a row of code of several rows of the screen: its last character has got a mark
            return grown.text.removeprefix(drawn[-1].text) + painted(row[len(drawn) :])
        return f"\r{painted(row)}\x1b[K"


def same_looks(one: Row, other: Row) -> bool:
    """Whether two rows look alike."""
    return [(g.text, g.style) for g in one] == [(g.text, g.style) for g in other]


def painted(row: list[Glyph]) -> str:
    """A row with its escape sequences (ECMA-48, SGR)."""
    codes, style = "", ""
    for glyph in row:
        if glyph.style != style:
            codes += ("\x1b[0m" if style else "") + (f"\x1b[{glyph.style}m" if glyph.style else "")
            style = glyph.style
        codes += glyph.text
    return codes + ("\x1b[0m" if style else "")
