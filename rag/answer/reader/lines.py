"""The lines of a passage that may answer a question: sentences, list items, table rows, lines of code.

Each knows where it stands in the passage, so that an answer can be shown in its place. It knows nothing of questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rag.document import is_table_rule
from slm.text.visible import one_line, visible

_ITEM = re.compile(r"[ \t]*(?:>[ \t]*)*(?:(?:[-*+]|\d+[.)])[ \t]+|[•・][ \t]*)?(?:\[[ xX]\][ \t]+)?")
# ```code``` within a row opens none.
_FENCE = re.compile(r"[ \t]*(`{3,}(?!.*`)|~{3,})")
# Where a sentence may end: after 。！？ and what closes with them, or after . ! ? and its closing marks before a blank.
_END = re.compile(r"[。！？]+[」』）)】\"”]*|(?<![.!?])[.!?]+[\"')\]”’]*(?=\s)")
# A full stop after these ends no sentence: titles, "No. 5", "e.g. this", a capital (J. Smith), a number (3. May).
_SHORT = re.compile(
    r"(?:\b(?:Mrs?|Ms|Dr|Prof|No|Nos|Fig|Tel|[Ee]xt|[Aa]pprox|vs|cf|e\.g|i\.e|[A-Z])|(?:^|[(\s])\d{1,2})\.$"
)
# What follows a quotation or a bracket whose sentence goes on: 「...？」と聞く, （...。）から.
_GOES_ON = re.compile(r"[とのをにはがもでへ]|から|まで|より")
_BLANKS = re.compile(r"\s*")
_OPENING, _CLOSING = "「『（(【", "」』）)】"


@dataclass(frozen=True)
class Line:
    """A line in one piece of text as a reader sees it; text[start:end] of its passage is where it came from.

    A table's row reads "column: cell, column: cell", so that it says what it means by itself.
    """

    text: str
    start: int
    end: int


def lines_of(text: str) -> list[Line]:
    """The lines of a passage in order. Rules, fences and what has no letter or digit are none; nothing is in two."""
    lines: list[Line] = []
    columns: list[str] = []
    fence = ""
    rows = [(m.start(), m.group()) for m in re.finditer(r"[^\n]+|(?<=\n)(?=\n)", text)]
    for number, (start, row) in enumerate(rows):
        following = rows[number + 1][1] if number + 1 < len(rows) else ""
        marker = _FENCE.match(row)
        if marker and (not fence or (not row.strip().strip(fence[0]) and marker.group(1).startswith(fence))):
            fence = "" if fence else marker.group(1)
            columns = []
        elif fence:
            lines += _line(row, start, row)
        elif "|" in row and "|" in following and is_table_rule(following):
            columns = _cells(row)
        elif columns and "|" in row:
            if not is_table_rule(row):
                lines += _line(row, start, _named(columns, _cells(row)))
        else:
            columns = []
            lines += _sentences(row, start)
    return lines


def _line(raw: str, start: int, shown: str) -> Iterator[Line]:
    """The line of a stretch of the passage, its blanks at both ends taken off; none without a letter or digit."""
    shown = one_line(visible(shown)).strip()
    if any(letter.isalnum() for letter in shown):
        yield Line(shown, start + len(raw) - len(raw.lstrip()), start + len(raw.rstrip()))


def _sentences(row: str, start: int) -> Iterator[Line]:
    """The sentences of a row; the mark of a list item belongs to the first one's place, not to its text."""
    marker = _ITEM.match(row)
    text_at = marker.end() if marker else 0
    begin = 0
    for end in [*_ends(row, text_at), len(row)]:
        piece = row[begin:end]
        yield from _line(piece, start + begin, row[max(begin, text_at) : end])
        begin = end


def _ends(row: str, start: int) -> Iterator[int]:
    """Where sentences end before the row does; not inside brackets that close later in the row."""
    depth, at = 0, start
    last_closing = max(row.rfind(closing) for closing in _CLOSING)
    for found in _END.finditer(row, start):
        depth += sum((c in _OPENING) - (c in _CLOSING) for c in row[at : found.end()])
        at = found.end()
        depth = max(0, depth) if last_closing >= at else 0
        following = _BLANKS.match(row, at)
        rest = row[following.end() : following.end() + 2] if following else ""
        if depth or not rest or rest[0].islower() or (found.group()[-1] in _CLOSING and _GOES_ON.match(rest)):
            continue
        if found.group() == "." and _SHORT.search(row[max(start, at - 12) : at]):
            continue
        yield at


def _cells(row: str) -> list[str]:
    inside = row.strip().removeprefix("|")
    inside = inside if inside.endswith("\\|") else inside.removesuffix("|")
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inside)]


def _named(columns: list[str], cells: list[str]) -> str:
    named = [f"{column}: {cell}" if column else cell for column, cell in zip(columns, cells, strict=False) if cell]
    return ", ".join([*named, *(cell for cell in cells[len(columns) :] if cell)])
