"""Reads files of delimited values (CSV, TSV): any encoding, any usual delimiter, the header over its rows."""

from __future__ import annotations

import csv
from collections import Counter
from io import StringIO
from itertools import islice

from rag.document import Document, Section
from rag.sources.office.grid import cell_text, markdown_of_rows
from rag.sources.reader import Read
from slm.text.encoding.decode import decode

_DELIMITERS = ",\t;|"
_SAMPLE_ROWS = 200
_MOST_LINES_A_CELL = 500
MOST_ROWS = 100_000


def read_delimited(raw: bytes, name: str) -> Read:
    """A file of values as one section. Raises DamagedFileError (no text)."""
    decoded = decode(raw)
    text = decoded.text.replace("\0", "")
    delimiter, text = _delimiter(text)
    notes = [decoded.note] if decoded.note else []
    rows = [[cell_text(cell) for cell in row] for row in _rows(text, delimiter, MOST_ROWS + 1)]
    if len(rows) > MOST_ROWS:
        notes.append(f"it is cut after {MOST_ROWS:,} rows")
    markdown = markdown_of_rows(rows[:MOST_ROWS])
    sections = (Section((), markdown),) if markdown.strip() else ()
    return Read(Document(name, "", "und", sections), "; ".join(notes))


def _rows(text: str, delimiter: str, most: int) -> list[list[str]]:
    """The first rows; where a quote has no end, quotes are only characters."""
    csv.field_size_limit(1 << 30)
    for strict in (True, False):
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=strict)
        try:
            rows = list(islice(reader, most))
        except csv.Error as error:
            if "end of data" in str(error):  # only the strict reader says so
                break
            continue
        if all(cell.count("\n") < _MOST_LINES_A_CELL for row in rows for cell in row):
            return rows
    return list(islice(csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE), most))


def _delimiter(text: str) -> tuple[str, str]:
    """The delimiter that cuts most of the first rows into one same number of cells; the text without `sep=;`."""
    first, _, rest = text.partition("\n")
    named = first.strip().lower()
    if named.startswith("sep=") and len(named) == 5:
        return named[4], rest
    if first.strip("\r") == "sep=\t":
        return "\t", rest
    best, best_score = ",", (0.0, False, 0)
    for delimiter in _DELIMITERS:
        widths = [len(row) for row in _rows(text[: 1 << 18], delimiter, _SAMPLE_ROWS) if row]
        wide = Counter(width for width in widths if width > 1)
        if wide:
            width, count = wide.most_common(1)[0]
            # A quote of another delimiter's can swallow all lines into one row, which is as even as can be.
            score = (round(count / len(widths), 2), count > 1, width)
            best, best_score = (delimiter, score) if score > best_score else (best, best_score)
    return best, text
