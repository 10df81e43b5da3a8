"""Takes the characters and rules of a page out of pdfium. It knows nothing of lines, columns or paragraphs."""

from __future__ import annotations

import ctypes
import math
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from rag.sources.office.pdf.sheet import LinePiece, Rule, Sheet, is_wide

MOST_CHARACTERS = 400_000
"""Of one page; what is beyond is not read, and the page is said to be cut."""
_GAP = 1.1  # times the size of the letters: a gap that is wider is none between words
_MOST_OBJECTS, _MOST_SEGMENTS = 20_000, 5_000
_THIN = 2.5  # points: a filled box that is thinner is a rule
# Ligatures, and radicals that some programs write for the ideographs that look the same.
_COMPATIBLE = re.compile("[\ufb00-\ufb06\u2f00-\u2fdf]")
_ASKEW = -1
_BLANKS = " \xa0\u3000\r\n\t\0"
_HYPHENS = ("\x02", "\ufffe")  # what pdfium makes of a hyphen at the end of a line

Turned = Callable[[float, float], tuple[float, float]]
Characters = list[tuple[int, str]]
"""Numbers of characters on their page, and the characters."""


def read_sheets(page: Any, number: int) -> list[Sheet]:
    """What stands on a page: most of it first, then what is written in other directions, as if it were upright.

    Raises whatever pdfium does at one that is damaged.
    """
    import pypdfium2.raw as pdf

    if pdf.FPDFPage_GetAnnotCount(page) > 0:
        pdf.FPDFPage_Flatten(page, pdf.FLAT_NORMALDISPLAY)  # what is filled into a form becomes text of the page
        reloaded = page.pdf[number - 1]
        try:
            return _read(reloaded, number, pdf)
        finally:
            reloaded.close()
    return _read(page, number, pdf)


def _read(page: Any, number: int, pdf: Any) -> list[Sheet]:
    text_page = page.get_textpage()
    try:
        sheets: list[Sheet] = []
        for turn, characters in _by_direction(text_page, pdf, page.get_rotation()):
            sheet, place = _sheet(page, number, turn)
            if turn == _ASKEW:
                sheet.pieces = list(_askew(text_page, pdf, characters))
            else:
                sheet.pieces = list(_pieces(text_page, pdf, place, sheet, characters))
            if not sheets:
                _objects(page, pdf, place, sheet)
            sheet.is_aside = bool(sheets)
            sheet.is_cut = not sheets and text_page.count_chars() > MOST_CHARACTERS
            sheets += [sheet] if sheet.pieces or not sheets else []
    finally:
        text_page.close()
    return sheets


def _sheet(page: Any, number: int, turn: int) -> tuple[Sheet, Turned]:
    """An empty sheet for a page that is turned by so many degrees, and where on it a point of the page lies."""
    left, bottom, right, top = page.get_cropbox()
    place: Turned
    if turn == 90:
        place = lambda x, y: (y - bottom, x - left)  # noqa: E731
    elif turn == 180:
        place = lambda x, y: (right - x, y - bottom)  # noqa: E731
    elif turn == 270:
        place = lambda x, y: (top - y, right - x)  # noqa: E731
    else:
        place = lambda x, y: (x - left, top - y)  # noqa: E731
    width, height = (top - bottom, right - left) if turn in (90, 270) else (right - left, top - bottom)
    return Sheet(number, width, height), place


def _by_direction(text_page: Any, pdf: Any, turned: int) -> list[tuple[int, Characters]]:
    """(by how many degrees a page has to be turned to read them, characters), the most of them first.

    turned: what the page is turned by as it is shown. What is at no right angle to the edges (a stamp across the page)
    is _ASKEW. A blank has no direction: it belongs to what stands before it.
    """
    groups: dict[int, Characters] = {turned: []}
    counts: dict[int, int] = {turned: 0}
    turn = turned
    for index in range(min(text_page.count_chars(), MOST_CHARACTERS)):
        char = chr(pdf.FPDFText_GetUnicode(text_page, index))
        if char not in _BLANKS:
            angle = max(0.0, math.degrees(pdf.FPDFText_GetCharAngle(text_page, index)))
            turn = -round(angle / 90) % 4 * 90 if abs(angle / 90 - round(angle / 90)) < 0.1 else _ASKEW
            counts[turn] = counts.get(turn, 0) + 1
        groups.setdefault(turn, []).append((index, char))
    return sorted(groups.items(), key=lambda group: (group[0] == _ASKEW, -counts[group[0]]))


def _pieces(text_page: Any, pdf: Any, place: Turned, sheet: Sheet, characters: Characters) -> Iterator[LinePiece]:
    """Characters that follow each other on one line, as pieces; blanks that a program only guessed are weighed."""
    box = pdf.FS_RECTF()
    piece: LinePiece | None = None
    blank = False
    box_before = (0.0, 0.0, 0.0, 0.0)
    seen: set[tuple[str, int, int]] = set()
    before = -1
    for index, char in characters:
        blank = blank or index != before + 1
        before = index
        if char in _BLANKS:
            blank = True
            continue
        if char in _HYPHENS:
            char = "-"
        if not pdf.FPDFText_GetLooseCharBox(text_page, index, box):
            continue
        (ax, ay), (bx, by) = place(box.left, box.top), place(box.right, box.bottom)
        x0, x1, y0, y1 = min(ax, bx), max(ax, bx), min(ay, by), max(ay, by)
        if not (0 <= (x0 + x1) / 2 <= sheet.width and 0 <= (y0 + y1) / 2 <= sheet.height):
            continue  # off the page, where nobody sees it
        if char == "-" and piece is not None and x1 - x0 < 0.1:
            x0 = x1 = piece.x1
            y0, y1 = piece.y0, piece.y1
        if piece is not None and not blank and (x0, x1, y0, y1) == box_before:
            _add(piece, char, piece.x1, y0, x1, y1, False)  # another letter of one ligature
            continue
        box_before = (x0, x1, y0, y1)
        if (char, round(x0), round(y0)) in seen and piece is not None:
            continue  # drawn twice, to look bold
        seen.add((char, round(x0), round(y0)))
        if piece is not None and _follows(piece, char, x0, y0, x1, y1, blank):
            if len(piece.text) == 1 and not piece.text.isalnum() and not piece.is_vertical:
                piece.size, piece.bold, piece.is_fixed = _font(
                    text_page, pdf, index
                )  # a bullet's font is not the line's
            _add(piece, char, x0, y0, x1, y1, blank)
        else:
            if piece is not None:
                yield _finished(piece)
            size, bold, fixed = _font(text_page, pdf, index)
            piece = LinePiece(char, x0, y0, x1, y1, size or y1 - y0, bold, fixed, False, array("f", [x0]))
        blank = False
    if piece is not None:
        yield _finished(piece)


def _askew(text_page: Any, pdf: Any, characters: Characters) -> Iterator[LinePiece]:
    """What runs across the page, as a program wrote it: a piece for each of its lines, one below another."""
    text = "".join(char for _, char in characters)
    size, bold, fixed = _font(text_page, pdf, characters[0][0])
    for number, line in enumerate(filter(None, (" ".join(line.split()) for line in text.splitlines()))):
        y, width = 2 * size * number, size * len(line)
        lefts = array("f", (size * at for at in range(len(line))))
        yield _finished(LinePiece(line, 0.0, y, width, y + size, size, bold, fixed, False, lefts))


def _follows(piece: LinePiece, char: str, x0: float, y0: float, x1: float, y1: float, blank: bool) -> bool:
    """Whether a character goes on with a piece: to the right of it, or below it in vertical writing."""
    size = max(piece.size, 1.0)
    if piece.is_vertical or (len(piece.text) == 1 and not blank and is_wide(piece.text + char)):
        # pdfium knows the right edge of a vertical character; the left one may be anywhere.
        below = abs(x1 - piece.x1) < 0.3 * size and -0.5 * size < y0 - piece.y1 < 0.6 * size
        if below or piece.is_vertical:
            return below
    overlap = min(piece.y1, y1) - max(piece.y0, y0)
    if overlap < 0.5 * min(piece.y1 - piece.y0, y1 - y0):
        return False
    return -0.6 * size < x0 - piece.x1 < _GAP * size


def _add(piece: LinePiece, char: str, x0: float, y0: float, x1: float, y1: float, blank: bool) -> None:
    if len(piece.text) == 1 and y0 > piece.middle and is_wide(piece.text + char):
        piece.is_vertical = True
    if piece.is_vertical:
        x0 = piece.x0 = max(piece.x0, piece.x1 - piece.size)
    gap = x0 - piece.x1
    if not piece.is_vertical and (blank or gap > 0.25 * piece.size):
        last = piece.text[-1]
        # Between ideographs a blank is only one where there is room for it: justified lines are spaced out.
        if ord(last) < 0x2E80 or ord(char) < 0x2E80 or gap > 0.45 * piece.size:
            piece.text += " "
            piece.lefts.append(piece.x1)
    piece.text += char
    piece.lefts.append(x0)
    piece.x0, piece.x1 = min(piece.x0, x0), max(piece.x1, x1)
    piece.y0, piece.y1 = min(piece.y0, y0), max(piece.y1, y1)


def _close_up(piece: LinePiece) -> None:
    """Join letters that are only spaced out (S p a c e d); where the blank is wider, a word ends."""
    text = piece.text
    if len(text) < 7 or any(char != " " for char in text[1::2]) or " " in text[::2]:
        return
    gaps = [piece.lefts[i + 1] - piece.lefts[i] for i in range(1, len(text) - 1, 2)]
    usual = median(gaps)
    kept = [i for i in range(len(text)) if i % 2 == 0 or gaps[i // 2] > 1.6 * usual + 0.1]
    piece.text = "".join(text[i] for i in kept)
    piece.lefts = array("f", (piece.lefts[i] for i in kept))


def _finished(piece: LinePiece) -> LinePiece:
    """With ligatures and halves of characters put right; the left edges still fit the text where they matter."""
    _close_up(piece)
    text = piece.text
    if "\xad" in text:  # a soft hyphen is only seen where a line ends
        text = text[:-1].replace("\xad", "") + text[-1]
    if any("\ud800" <= char <= "\udfff" for char in text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match.group()), text)
    if len(text) != len(piece.text):
        last = len(piece.lefts) - 1
        lefts = (piece.lefts[min(i * len(piece.lefts) // len(text), last)] for i in range(len(text)))
        piece.lefts = array("f", lefts)
    piece.text = text
    return piece


def _font(text_page: Any, pdf: Any, index: int) -> tuple[float, bool, bool]:
    """The size on the page, in points, and whether the font is bold, and of one width."""
    matrix = pdf.FS_MATRIX()
    scale = 1.0
    if pdf.FPDFText_GetMatrix(text_page, index, matrix):
        scale = math.hypot(matrix.c, matrix.d) or 1.0
    buffer = ctypes.create_string_buffer(128)
    flags = ctypes.c_int()
    size = pdf.FPDFText_GetFontInfo(text_page, index, buffer, 128, flags)
    name = buffer.raw[: max(min(size, 128) - 1, 0)].decode("latin-1").lower()
    bold = any(word in name for word in ("bold", "black", "heavy", "demi", "-w6", "-w7", "-w8")) or bool(
        flags.value & (1 << 18)
    )
    fixed = bool(flags.value & 1) or any(word in name for word in ("mono", "courier", "consol", "typewriter", "cmtt"))
    return round(pdf.FPDFText_GetFontSize(text_page, index) * scale, 1), bold, fixed


def _objects(page: Any, pdf: Any, place: Turned, sheet: Sheet) -> None:
    """Straight rules of paths, and how many pictures there are."""
    kinds = (pdf.FPDF_PAGEOBJ_PATH, pdf.FPDF_PAGEOBJ_IMAGE)
    for count, item in enumerate(page.get_objects(filter=kinds, max_depth=4)):
        if count >= _MOST_OBJECTS:
            break
        if item.type == pdf.FPDF_PAGEOBJ_IMAGE:
            sheet.pictures += 1
            continue
        if item.level:  # inside of a form, whose own place is not known here
            continue
        for x0, y0, x1, y1 in _strokes(item.raw, pdf, place):
            if abs(y1 - y0) <= _THIN < abs(x1 - x0):
                sheet.rules.append(Rule(min(x0, x1), (y0 + y1) / 2, max(x0, x1), (y0 + y1) / 2))
            elif abs(x1 - x0) <= _THIN < abs(y1 - y0):
                sheet.rules.append(Rule((x0 + x1) / 2, min(y0, y1), (x0 + x1) / 2, max(y0, y1)))


def _strokes(path: Any, pdf: Any, place: Turned) -> Iterator[tuple[float, float, float, float]]:
    """The straight parts of a path; a thin filled box is one line."""
    matrix = pdf.FS_MATRIX()
    pdf.FPDFPageObj_GetMatrix(path, matrix)
    x, y = ctypes.c_float(), ctypes.c_float()
    points: list[tuple[float, float]] = []
    lines: list[tuple[float, float, float, float]] = []
    start = (0.0, 0.0)
    for index in range(min(pdf.FPDFPath_CountSegments(path), _MOST_SEGMENTS)):
        segment = pdf.FPDFPath_GetPathSegment(path, index)
        pdf.FPDFPathSegment_GetPoint(segment, x, y)
        point = place(
            matrix.a * x.value + matrix.c * y.value + matrix.e, matrix.b * x.value + matrix.d * y.value + matrix.f
        )
        kind = pdf.FPDFPathSegment_GetType(segment)
        if kind == pdf.FPDF_SEGMENT_MOVETO:
            start = point
        elif kind == pdf.FPDF_SEGMENT_LINETO and points:
            lines.append((*points[-1], *point))
        points.append(point)
        if pdf.FPDFPathSegment_GetClose(segment) and point != start:
            lines.append((*point, *start))
    if 4 <= len(points) <= 6:
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        if min(max(xs) - min(xs), max(ys) - min(ys)) <= _THIN:
            yield min(xs), min(ys), max(xs), max(ys)
            return
    yield from lines
