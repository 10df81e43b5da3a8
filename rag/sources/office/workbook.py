"""Reads Excel workbooks (.xlsx, .xlsm): each sheet that is seen a section, values as the sheet shows them.

Formulas are never evaluated: what the program that saved the file had worked out is read. It knows nothing of how
rows become tables.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from rag.document import Document, Section
from rag.sources.office.grid import CellSpan, cell_text, markdown_of_rows
from rag.sources.office.package import Package, tag, told_title
from rag.sources.office.shown import shown
from rag.sources.reader import Read
from slm.errors import DamagedFileError
from slm.text.visible import one_line

MOST_ROWS, _MOST_COLUMNS, _MOST_CELLS = 50_000, 16_384, 1_000_000  # no sheet has more columns (XFD)
_MOST_SHEET = 1 << 30  # unpacked; a sheet is streamed, and cut at MOST_ROWS
_MOST_GAP = 1_000  # empty rows before what is taken to be another place of the sheet
_SCANNED = 256 << 20
_EMPTY = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData/></worksheet>'
_MERGE = re.compile(rb'<(?:\w+:)?mergeCell\s+ref="\$?([A-Z]{1,3})\$?(\d{1,7}):\$?([A-Z]{1,3})\$?(\d{1,7})"')
_NO_VALUE = re.compile(rb"</(?:\w+:)?f>\s*(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v></(?:\w+:)?v>)?\s*</(?:\w+:)?c>")


def read_workbook(raw: bytes, name: str) -> Read:
    """A workbook as a document. Raises DamagedFileError, UnsupportedError (encrypted, of another format)."""
    package = Package(raw)
    package.check(most=_MOST_SHEET)
    mended: dict[str, bytes] = {}
    try:
        book = _opened(raw)
    except DamagedFileError:  # the library opens all sheets, or none
        mended = _mended(package)
        if not mended:
            raise
        book = _opened(package.replaced(mended))
    sections: list[Section] = []
    notes: list[str] = []
    hidden = 0
    for sheet in book.worksheets:
        if sheet.sheet_state != "visible":
            hidden += 1
            continue
        title = one_line(sheet.title)
        if sheet._worksheet_path.lower() in mended:
            notes.append(f"its sheet '{title}' is damaged and only read in part")
        read = _read_sheet(sheet, package)
        notes += [f"its sheet '{title}' {note}" for note in read.notes]
        if read.markdown.strip():
            sections.append(Section((title,), read.markdown))
    if hidden:
        notes.append(f"{hidden} hidden {'sheet is' if hidden == 1 else 'sheets are'} left out")
    if notes and not sections:
        raise DamagedFileError("; ".join(notes))
    try:
        title = told_title(book.properties.title or "")
    finally:
        book.close()
    return Read(Document(title or name, "", "und", tuple(sections), package.meta()), "; ".join(notes))


def _opened(raw: bytes) -> Any:
    import openpyxl

    try:
        return openpyxl.load_workbook(BytesIO(raw), read_only=True, data_only=True, keep_links=False)
    except Exception as error:  # the library fails in many ways at workbooks that are not whole
        raise DamagedFileError(f"it is no workbook that can be read ({type(error).__name__}: {error})"[:300]) from error


def _mended(package: Package) -> dict[str, bytes]:
    """The sheets that are damaged, with what can be read of them."""
    from lxml import etree

    found: dict[str, bytes] = {}
    for name in (name for name in package.names if "/worksheets/" in name and name.endswith(".xml")):
        try:
            package.tree(name)
        except DamagedFileError:
            try:
                tree = package.tree(name, mended=True)
                found[name] = etree.tostring(tree) if tag(tree).endswith("worksheet") else _EMPTY
            except DamagedFileError:
                found[name] = _EMPTY
    return found


@dataclass
class _Sheet:
    markdown: str
    notes: list[str] = field(default_factory=list)


def _read_sheet(sheet: Any, package: Package) -> _Sheet:
    sheet.reset_dimensions()  # what a file says of its size is often wrong
    rows: list[list[str]] = []
    cells = 0
    notes: list[str] = []
    blank = 0
    for row in _rows(sheet, notes):
        texts = [cell_text(shown(cell.value, cell.number_format)) if cell.value is not None else "" for cell in row]
        while texts and not texts[-1]:
            texts.pop()
        blank = 0 if texts else blank + 1
        # An empty cell before one that is far to the right takes little, and there may be thousands of them.
        cells += sum(map(bool, texts)) + len(texts) // 16
        if len(rows) >= MOST_ROWS or cells > _MOST_CELLS:
            if texts:
                notes.append(f"is cut after {len(rows):,} rows")
                break
            if blank > _MOST_GAP:
                break
            continue
        rows.append(texts)
    spans, unsaved = _scan(sheet, package)
    if unsaved:
        notes.append(f"holds {unsaved:,} formula{'s' * (unsaved > 1)} without a saved value; "
                     "open the file and save it to have them read")  # fmt: skip
    return _Sheet(markdown_of_rows(rows, spans), notes)


def _rows(sheet: Any, notes: list[str]) -> Iterator[Any]:
    """The rows of a sheet; one that is damaged ends with a note."""
    try:
        yield from sheet.iter_rows()  # each row to its own last cell
    except Exception as error:  # one sheet that is damaged must not end the reading of the others
        notes.append(f"is damaged and could not be read to its end ({type(error).__name__}: {error})"[:200])


def _scan(sheet: Any, package: Package) -> tuple[list[CellSpan], int]:
    """Merged ranges, which come after all rows, and how many formulas have no value."""
    spans: list[CellSpan] = []
    unsaved = 0
    tail = b""
    scanned = 0
    try:
        with package.open(sheet._worksheet_path, _MOST_SHEET) as file:
            while scanned < _SCANNED and (chunk := file.read(1 << 20)):
                scanned += len(chunk)
                text = tail + chunk
                end = 0
                for match in _MERGE.finditer(text):
                    left, top, right, bottom = match.groups()
                    spans.append(
                        CellSpan(int(top) - 1, _column(left), int(bottom) - 1, min(_column(right), _MOST_COLUMNS))
                    )
                    end = match.end()
                for match in _NO_VALUE.finditer(text):
                    unsaved += 1
                    end = max(end, match.end())
                tail = text[max(end, len(text) - 200) :]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        pass  # the rows were read; what is damaged after them was told by the reader of rows
    return spans, unsaved


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number - 1
