"""Lines become paragraphs, headings and list items: by size, distance and indent. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median
from textwrap import dedent

from rag.sources.office.pdf.aligned import aligned_table
from rag.sources.office.pdf.sheet import LinePiece, Sheet, is_wide, joined

_BULLET = re.compile(r"([•‣▪◦●○■□◆◇・]|[*–—-](?= ))\s*(?=\S)")
_COUNT = re.compile(r"(\d{1,3})[.)．]\s+(?=\S)")
_ITEM = re.compile(r"[(（\[][\da-zA-Zア-ン]{1,3}[)）\]]\s?|[①-⑳]|第[\d一二三四五六七八九十百]{1,4}[条章節項]|※")
_SECTION = re.compile(r"(\d{1,2}(?:\.\d{1,2}){0,4})\.?\s+\S")
_LEADERS = re.compile(r"(?:[.．]\s?){4,}|[…‥]{2,}|[・]{4,}")
_ENDED = tuple('.。!?！？:：」』）)”"…;；')
_BIGGER = 1.12  # times the size of the text, for a heading
_MOST_HEADING, _MOST_BOLD = 200, 90
_MOST_LEVELS = 4


@dataclass
class PdfLine:
    """One line of a flow."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    size: float
    bold: bool
    is_fixed: bool = False
    is_leader: bool = False
    is_vertical: bool = False


@dataclass(frozen=True)
class Flow:
    """Where the lines of a flow begin and end, and their usual distance."""

    left: float
    right: float
    bottom: float
    pitch: float


@dataclass
class Block:
    """A paragraph ("p"), a heading ("h"), a list item ("li"), code ("pre") or a table ("table", `text` is HTML)."""

    kind: str
    text: str
    size: float = 0.0
    bold: bool = False
    x0: float = 0.0
    number: str = ""
    level: int = 0


class Book:
    """What is known of a whole file: the size of its text, its words, the sizes of its headings."""

    def __init__(self, sheets: Iterable[Sheet]) -> None:
        sizes: Counter[float] = Counter()
        bold = fixed = total = 0
        self.words: Counter[str] = Counter()
        for sheet in sheets:
            for piece in sheet.pieces:
                sizes[piece.size] += len(piece.text)
                total += len(piece.text)
                bold += len(piece.text) if piece.bold else 0
                fixed += len(piece.text) if piece.is_fixed else 0
                self.words.update(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", piece.text.lower()))
        self.size = sizes.most_common(1)[0][0] if sizes else 10.0
        self.is_bold, self.is_fixed = 2 * bold > total, 2 * fixed > total

    def joined(self, one: str, other: str) -> str:
        """Two lines of one paragraph; a word that was divided between them is whole again."""
        bare = one.rstrip()
        if not bare.endswith(("-", "\xad", "‐")) or len(bare) < 2 or not bare[-2].isalpha() or not other:
            glued = bare and other and (is_wide(bare[-1]) or is_wide(other[0]))
            return bare + other if glued else joined(one.replace("\xad", "-"), other)
        first = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*$", bare[:-1].lower())
        second = re.findall(r"^[^\W\d_]+", other.lower())
        if not other[0].islower() or not first or not second:
            return bare[:-1] + "-" + other
        whole, apart = first[0] + second[0], f"{first[0]}-{second[0]}"
        keeps = self.words[apart] > self.words[whole]
        return bare[:-1] + ("-" if keeps else "") + other


def parts_of(rows: list[list[LinePiece]], book: Book) -> list[Block]:
    """What a flow of rows is, in its order."""
    parts: list[Block] = []
    lines: list[PdfLine] = []
    at = 0
    while at < len(rows):
        table = aligned_table(rows, at)
        if table is not None:
            parts += _paragraphs(lines, book)
            lines = []
            parts.append(Block("table", table.html))
            at = table.end
            continue
        lines_here: list[LinePiece] = []
        for piece in rows[at]:
            if piece.html:
                parts += _paragraphs(lines, book)
                lines = []
                parts.append(Block("table", piece.html))
            else:
                lines_here.append(piece)
        if lines_here:
            lines.append(_line(lines_here))
        at += 1
    return parts + _paragraphs(lines, book)


def _line(row: list[LinePiece]) -> PdfLine:
    text = ""
    for piece in row:
        text = joined(text, piece.text)
    size = Counter({p.size: 0 for p in row})
    for piece in row:
        size[piece.size] += len(piece.text)
    shown, leaders = _LEADERS.subn(" ", text)
    is_fixed = all(p.is_fixed for p in row) and not any(map(is_wide, text))
    return PdfLine((text if is_fixed else shown).strip(), min(p.x0 for p in row), min(p.y0 for p in row),
                max(p.x1 for p in row), max(p.y1 for p in row), size.most_common(1)[0][0],
                all(p.bold for p in row), is_fixed, leaders > 0, row[0].is_vertical)  # fmt: skip


def _paragraphs(lines: Sequence[PdfLine], book: Book) -> list[Block]:
    if not lines:
        return []
    pitches = [b.y0 - a.y0 for a, b in pairwise(lines) if b.y0 > a.y0]
    flow = Flow(min(line.x0 for line in lines), max(line.x1 for line in lines), max(line.y1 for line in lines),
                median(pitches) if pitches else 0.0)  # fmt: skip
    parts: list[Block] = []
    last: PdfLine | None = None
    first: PdfLine = lines[0]
    columns = _columns_of_code(lines)
    for line in lines:
        if not line.text:
            continue
        if line.is_fixed and not book.is_fixed:
            _add_code(parts, line, last, columns[id(line)])
        elif last is None or last.is_fixed or _begins(line, last, first, flow, parts[-1]):
            first = line
            parts.append(_part(line))
        else:
            parts[-1].text = book.joined(parts[-1].text, line.text)
        last = line
    for part in parts:
        part.text = dedent(part.text) if part.kind == "pre" else part.text.replace("\xad", "-")
        if part.kind in ("p", "li") and _is_heading(part, book):
            part.kind = "h"
    return parts


def _columns_of_code(lines: Sequence[PdfLine]) -> dict[int, int]:
    """By line of code the blanks before it: how far it is from the leftmost of the lines it stands with."""
    columns: dict[int, int] = {}
    for is_fixed, run in groupby(filter(lambda line: line.text, lines), key=lambda line: line.is_fixed):
        code = list(run)
        width = max(median((line.x1 - line.x0) / len(line.text) for line in code), 1)
        left = min(line.x0 for line in code)
        columns |= {id(line): round((line.x0 - left) / width) for line in code if is_fixed}
    return columns


def _add_code(parts: list[Block], line: PdfLine, last: PdfLine | None, indent: int) -> None:
    """A line of code with the blanks before it, under the one before it."""
    text = " " * indent + line.text
    if last is not None and last.is_fixed and parts[-1].kind == "pre":
        gap = "\n\n" if line.y0 - last.y1 > 0.6 * (last.y1 - last.y0) else "\n"
        parts[-1].text += gap + text
    else:
        parts.append(Block("pre", text, line.size, False, line.x0))


def _part(line: PdfLine) -> Block:
    bullet, count = _BULLET.match(line.text), _COUNT.match(line.text)
    if bullet:
        return Block("li", line.text[bullet.end() :], line.size, line.bold, line.x0)
    if count:
        return Block("li", line.text[count.end() :], line.size, line.bold, line.x0, count.group(1))
    return Block("p", line.text, line.size, line.bold, line.x0)


def _begins(line: PdfLine, last: PdfLine, first: PdfLine, flow: Flow, part: Block) -> bool:
    """Whether a line begins a paragraph of its own."""
    if line.is_vertical and last.is_vertical:
        return line.y0 - last.y0 > 0.8 * line.size or (
            last.text.endswith(_ENDED) and last.y1 < flow.bottom - 2 * line.size
        )
    height = last.y1 - last.y0
    if abs(line.size - last.size) > 0.06 * last.size or line.bold != last.bold:
        return line.bold != part.bold or abs(line.size - part.size) > 0.06 * part.size
    if _BULLET.match(line.text) or _ITEM.match(line.text):
        return True
    if _COUNT.match(line.text) and (last.text.endswith(_ENDED) or part.number or abs(line.x0 - last.x0) > line.size):
        return True
    if line.y0 - last.y1 > 0.75 * height or (flow.pitch and line.y0 - last.y0 > 1.4 * flow.pitch):
        return True
    if line.y0 < last.y0 - height:  # the next column of a vertical or a divided page
        return False
    if last.text.endswith(("-", "\xad")):
        return False
    indent = line.x0 - last.x0
    if indent > 0.8 * line.size and part.kind == "p" and last is not first:
        return True
    if indent > 1.2 * line.size and part.kind == "p" and last.text.endswith(_ENDED):
        return True
    if part.kind == "li" and line.x0 < part.x0 - 0.5 * line.size:
        return True
    if last.is_leader or line.is_leader:
        return True
    room = flow.right - last.x1
    ended = last.text.endswith(_ENDED)
    if is_wide(line.text[0]):
        return room > (2.5 * line.size if ended else 0.3 * (flow.right - flow.left))
    if not ended and not line.text[0].isupper():
        return False
    word = line.text.split(" ", 1)[0]
    share = (line.x1 - line.x0) / max(len(line.text), 1)
    return room > (len(word) + 1) * share + (1.5 if ended else 4) * line.size


def _is_heading(part: Block, book: Book) -> bool:
    if not any(char.isalpha() for char in part.text):
        return False
    if part.size >= _BIGGER * book.size:
        return len(part.text) <= _MOST_HEADING
    if not part.bold or book.is_bold or len(part.text) > _MOST_BOLD or part.size < 0.95 * book.size:
        return False
    return not part.text.endswith(tuple(".。!?！？:：;；,、")) and (part.kind == "p" or bool(part.number))


def levels(parts: Sequence[Block]) -> None:
    """Give headings their level, by size and then by weight: the biggest is 1."""
    kinds: Counter[tuple[float, bool]] = Counter()
    for part in parts:
        if part.kind == "h":
            kinds[round(part.size), part.bold] += 1
    order = sorted(kinds, reverse=True)
    for part in parts:
        if part.kind == "h":
            part.level = min(order.index((round(part.size), part.bold)) + 1, _MOST_LEVELS)
            if part.number:
                part.text = f"{part.number}. {part.text}"


def across_breaks(flows: Sequence[list[Block]], book: Book) -> list[Block]:
    """All parts in their order; a paragraph that a column or page divides is whole again."""
    parts: list[Block] = []
    for flow in flows:
        if parts and flow and _goes_on(parts[-1], flow[0]):
            parts[-1].text = book.joined(parts[-1].text, flow[0].text)
            flow = flow[1:]
        parts += flow
    return parts


def _goes_on(one: Block, other: Block) -> bool:
    if one.kind not in ("p", "li") or other.kind != "p" or abs(one.size - other.size) > 0.3 or one.bold != other.bold:
        return False
    if one.text.endswith(_ENDED) or not other.text or len(one.text) < 12:
        return False
    if is_wide(other.text[0]):
        return any(map(is_wide, one.text)) and not _ITEM.match(other.text)
    return other.text[0].islower()
