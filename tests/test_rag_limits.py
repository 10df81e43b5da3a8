"""What is wider or longer than documents usually are: every word of it is read, or the note says what is not."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest

from rag.sources.html.page import html_to_markdown
from rag.sources.office.delimited import read_delimited
from rag.sources.office.grid import CellSpan, markdown_of_rows
from rag.sources.office.pdf import characters, read
from rag.sources.office.pdf.read import read_pdf
from rag.sources.office.word.read import read_word
from rag.sources.office.workbook import read_workbook
from rag.sources.reader import Read, markdown_of

COLUMNS = 1_700


def words_of(read: Read) -> list[str]:
    return markdown_of(read.document).replace("|", " ").split()


@pytest.mark.parametrize("cell", ["td", "th"])
def test_every_cell_of_a_wide_table_of_a_page_is_read(cell: str) -> None:
    row = "".join(f"<{cell} rowspan=2>c{n}" for n in range(COLUMNS))
    text = html_to_markdown(f"<table><tr>{row}<tr><td>below<tr><td colspan=9000>wide<td>last</table>")
    found = text.replace("|", " ").split()
    assert {f"c{n}" for n in range(COLUMNS)} | {"below", "wide", "last"} <= set(found)


def test_every_cell_of_a_wide_sheet_is_read() -> None:
    import xlsxwriter

    buffer = BytesIO()
    with xlsxwriter.Workbook(buffer, {"in_memory": True}) as book:
        sheet = book.add_worksheet("wide")
        sheet.write_row(0, 0, [f"c{n}" for n in range(COLUMNS)])
        sheet.write_row(1, 0, range(COLUMNS))
        sheet.write(2, 16_383, "far")
        sheet.merge_range(3, COLUMNS - 2, 4, COLUMNS - 1, "merged")
    found = read_workbook(buffer.getvalue(), "wide")
    assert {f"c{n}" for n in range(COLUMNS)} | {str(COLUMNS - 1), "far", "merged"} <= set(words_of(found))
    assert found.note == ""


def test_a_wide_row_makes_the_short_ones_below_no_wider() -> None:
    def size(rows: int, columns: int) -> int:
        text = ",".join(["head"] * columns) + "\n" + "a,b\n" * rows
        found = read_delimited(text.encode(), "wide")
        assert words_of(found).count("a") == rows and words_of(found).count("head") == columns
        return len(markdown_of(found.document))

    small, large = size(2_000, 2_000), size(4_000, 4_000)
    assert large < 3 * small


def test_a_merged_range_of_thousands_of_rows_and_columns_has_its_text_once() -> None:
    rows = [["merged", *[""] * 400, "last"], *([*[""] * 401, "last"] for _ in range(400))]
    text = markdown_of_rows(rows, [CellSpan(0, 0, 400, 400)])
    assert text.count("merged") == 1 and text.count("last") >= 400


def test_the_note_of_a_page_with_too_many_letters_says_that_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    from reportlab.pdfgen import canvas

    buffer = BytesIO()
    drawing = canvas.Canvas(buffer)
    for lines in (["short"], ["a long line of words"] * 4):
        for number, line in enumerate(lines):
            drawing.drawString(72, 720 - 14 * number, line)
        drawing.showPage()
    drawing.save()
    monkeypatch.setattr(characters, "MOST_CHARACTERS", 40)
    monkeypatch.setattr(read, "MOST_CHARACTERS", 40)
    assert read_pdf(buffer.getvalue(), "long").note == "1 page (2) cut after 40 characters"


def test_tables_that_are_too_deep_in_each_other_are_named() -> None:
    import docx

    document: Any = docx.Document()
    table = document.add_table(1, 1)
    for depth in range(14):
        table.cell(0, 0).text = f"level {depth}"
        table = table.cell(0, 0).add_table(1, 1)
    buffer = BytesIO()
    document.save(buffer)
    found = read_word(buffer.getvalue(), "deep")
    assert "level 10" in markdown_of(found.document) and "12 deep in each other" in found.note
