"""Reads a PDF file: its text in the order of reading, with headings, lists and tables. Nothing in it is run.

Pages that hold pictures only, or that are damaged, are named, and the others read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rag.sources.office.markup import document_of, escape, html_list
from rag.sources.office.package import told_title
from rag.sources.office.pdf.characters import MOST_CHARACTERS, read_sheets
from rag.sources.office.pdf.columns import flows_of
from rag.sources.office.pdf.paragraphs import Block, Book, across_breaks, levels, parts_of
from rag.sources.office.pdf.ruled import ruled_tables
from rag.sources.office.pdf.running import without_running
from rag.sources.office.pdf.sheet import LinePiece, Sheet
from rag.sources.properties import told_meta
from rag.sources.reader import Read
from slm.errors import DamagedFileError, UnsupportedError

MOST_PAGES = 5_000
_PROPERTIES = ("Author", "Keywords", "CreationDate", "ModDate")


def read_pdf(raw: bytes, name: str) -> Read:
    """A PDF file as a document. Raises DamagedFileError, UnsupportedError (encrypted, pictures only)."""
    import pypdfium2 as pdfium

    try:
        pdf = pdfium.PdfDocument(raw)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise UnsupportedError("it is encrypted with a password; save it without one") from error
        raise DamagedFileError(f"it is no PDF file that can be read ({error})") from error
    try:
        if pdf.get_formtype():
            pdf.init_forms()
        count = len(pdf)
        sheets, damaged = _sheets(pdf, min(count, MOST_PAGES))
        title = told_title(pdf.get_metadata_value("Title"))
        meta = told_meta({key: pdf.get_metadata_value(key) for key in _PROPERTIES})
    finally:
        pdf.close()
    notes = [f"it is cut after {MOST_PAGES:,} of {count:,} pages"] if count > MOST_PAGES else []
    if damaged:
        notes.append(f"{_counted(damaged)} could not be read")
    if cut := [sheet.number for sheet in sheets if sheet.is_cut]:
        notes.append(f"{_counted(cut)} cut after {MOST_CHARACTERS:,} characters")
    pictures = [sheet.number for sheet in sheets if not sheet.pieces and sheet.pictures]
    if pictures:
        notes.append(f"{_counted(pictures)} {'holds' if len(pictures) == 1 else 'hold'} pictures only, whose text "
                     "is not read")  # fmt: skip
    if not any(sheet.pieces for sheet in sheets) and notes:
        hint = "; have their text recognised (OCR) and saved with them" if pictures else ""
        raise UnsupportedError("; ".join(notes) + hint) if pictures else DamagedFileError("; ".join(notes))
    parts = _parts(sheets)
    if not title and len(parts) > 1 and (parts[0].kind, parts[0].level) == ("h", 1):
        title = parts.pop(0).text  # what begins the file and is as large as anything in it
    return Read(replace(document_of(_written(parts), title, name), meta=meta), "; ".join(notes))


def _sheets(pdf: Any, count: int) -> tuple[list[Sheet], list[int]]:
    """What stands on the pages that could be read, and the numbers of the others."""
    sheets: list[Sheet] = []
    damaged: list[int] = []
    for index in range(count):
        try:
            page = pdf[index]
            try:
                sheets += read_sheets(page, index + 1)
            finally:
                page.close()
        except Exception:  # whatever one page makes the library fail at, the others are read
            damaged.append(index + 1)
    return sheets, damaged


def _counted(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    return f"{len(numbers)} {'page' if len(numbers) == 1 else 'pages'} ({listed})"


def _parts(sheets: Sequence[Sheet]) -> list[Block]:
    """What is on all pages, in the order of reading."""
    without_running([sheet for sheet in sheets if not sheet.is_aside])
    book = Book(sheets)
    flows: list[list[Block]] = []
    asides: list[list[Block]] = []
    for sheet in sheets:
        tables, pieces = ruled_tables(sheet.rules, sheet.pieces, book.joined)
        pieces = pieces + [LinePiece("", t.x0, t.y0, t.x1, t.y1, book.size, html=t.html) for t in tables]
        if pieces:
            made = [parts_of(flow, book) for flow in flows_of(pieces)]
            if sheet.is_aside:
                asides += made
            else:
                flows += made
    parts = across_breaks(flows, book) + [part for flow in asides for part in flow]
    levels(parts)
    return parts


def _written(parts: Sequence[Block]) -> str:
    out: list[str] = []
    items: list[Block] = []

    def close() -> None:
        if items:
            places = sorted({round(item.x0 / 6) for item in items})
            out.append(html_list([(places.index(round(i.x0 / 6)), i.number, escape(i.text)) for i in items]))
            items.clear()

    for part in parts:
        if part.kind == "li":
            items.append(part)
            continue
        close()
        if part.kind == "table":
            out.append(part.text)
        elif part.kind == "pre":
            out.append(f"<pre>{escape(part.text)}</pre>\n")
        elif part.kind == "h":
            out.append(f"<h{part.level}>{escape(part.text)}</h{part.level}>\n")
        else:
            out.append(f"<p>{escape(part.text)}</p>\n")
    close()
    return "".join(out)
