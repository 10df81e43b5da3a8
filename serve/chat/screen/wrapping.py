"""Characters on rows of a width. It knows nothing of Markdown.

Text breaks behind spaces and beside wide characters (Chinese, Japanese, Korean), but closing marks do not begin a row
and opening ones do not end it (the strict part of JIS X 4051).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from serve.chat.screen.glyphs import Glyph, plain_glyphs

Row = list[Glyph]
_NOT_FIRST = frozenset("、。，．・：；？！」』）］｝】〉》〕”’ーぁぃぅぇぉっゃゅょァィゥェォッャュョ々,.!?)]}:;%")
_BEFORE_TEXT = re.compile(r" *(?:[*] )?(?:\d+\. )?")
_NOT_LAST = frozenset("「『（［｛【〈《〔“‘([{")


def row_width(row: Sequence[Glyph]) -> int:
    """Columns of a row."""
    return sum(glyph.width for glyph in row)


def wrapped(glyphs: Sequence[Glyph], width: int) -> list[Row]:
    """Rows of at most `width` columns, one at least; a longer word is cut. Spaces at a row's end may hang."""
    rows: list[Row] = []
    start, used, last_break = 0, 0, 0
    for at, glyph in enumerate(glyphs):
        if at > start and _may_break(glyphs[at - 1], glyph):
            last_break = at
        if used + glyph.width > width and at > start and not glyph.text.isspace():
            cut = last_break if last_break > start else at
            rows.append(list(glyphs[start:cut]))
            start, last_break = cut, cut
            used = row_width(glyphs[start:at])
        used += glyph.width
    return [*rows, list(glyphs[start:])]


def text_rows(text: str, width: int) -> list[str]:
    """Plain text in rows of at most `width` columns; what a line has before its text is left free below it."""
    rows: list[str] = []
    for line in text.split("\n"):
        before = _BEFORE_TEXT.match(line)
        head = before[0] if before and len(before[0]) < width // 2 else ""
        for row in wrapped(plain_glyphs(line[len(head) :]), width - len(head)):
            rows.append((head + "".join(glyph.text for glyph in without_end(row))).rstrip())
            head = " " * len(head)
    return rows


def _may_break(before: Glyph, behind: Glyph) -> bool:
    if behind.text.isspace() or behind.text in _NOT_FIRST or before.text in _NOT_LAST:
        return False
    return before.text.isspace() or before.width > 1 or behind.width > 1


def without_end(row: Sequence[Glyph]) -> Row:
    """The row without the spaces at its end."""
    end = len(row)
    while end and row[end - 1].text.isspace():
        end -= 1
    return list(row[:end])
