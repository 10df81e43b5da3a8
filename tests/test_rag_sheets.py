"""Workbooks and delimited values: each row with its header, each value as the sheet shows it."""

from __future__ import annotations

import csv
import datetime as dt
import re
import zipfile
from io import BytesIO, StringIO
from pathlib import Path

import openpyxl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rag.sources.office import delimited, workbook
from rag.sources.office.shown import shown
from slm.errors import DamagedFileError
from tests.office_files import document, markdown, repacked, saved

_MOMENT = dt.datetime(2024, 3, 5, 14, 7, 9)


@pytest.mark.parametrize(
    ("value", "number_format", "text"),
    [
        (0.125, "0.0%", "12.5%"), (1234567.891, "#,##0.00", "1,234,567.89"), (-1234, "#,##0;[Red](#,##0)", "(1,234)"),
        (7, "000", "007"), (1234567, "000-0000", "123-4567"), (1500, '"¥"#,##0', "¥1,500"), (0, '0;-0;"-"', "-"),
        (1500, "[$¥-411]#,##0", "¥1,500"), (1234500, '#,##0,"千円"', "1,235千円"), (0.1 + 0.2, "General", "0.3"),
        (12345678901234, "General", "12345678901234"), (-5, "General", "-5"),
        (-5.5, "General", "-5.5"), (-5, 'General"名"', "-5名"), (-5, "General;General", "5"),
        (3, 'General"名"', "3名"), (0.000123, "0.00E+00", "1.23E-04"),
        (1234.5, '_(* #,##0.00_);_(* \\(#,##0.00\\);_(* "-"??_);_(@_)', "1,234.50"), (2.5, "# ?/?", "2.5"),
        (90, '[=1]"yes";General', "90"), (True, "General", "TRUE"), ("text", "0.00", "text"), (-3.5, "0.0", "-3.5"),
        (_MOMENT, "yyyy/m/d", "2024/3/5"), (_MOMENT, 'yyyy"年"m"月"d"日"', "2024年3月5日"),
        (_MOMENT, '[$-411]ggge"年"m"月"d"日"', "令和6年3月5日"), (dt.date(1989, 1, 7), 'ggge"年"', "昭和64年"),
        (_MOMENT, "d-mmm-yy", "5-Mar-24"), (_MOMENT, "h:mm AM/PM", "2:07 PM"),
        (_MOMENT, "yyyy/m/d(aaa)", "2024/3/5(火)"),
        (dt.datetime(2024, 3, 5), "mm-dd-yy", "2024-03-05"), (_MOMENT, "General", "2024-03-05 14:07"),
        (dt.time(9, 30), "h:mm", "9:30"), (dt.timedelta(hours=30, minutes=5), "[h]:mm", "30:05"), (None, "0", ""),
    ],
)  # fmt: skip
def test_a_value_is_shown_as_the_sheet_shows_it(value: object, number_format: str, text: str) -> None:
    assert shown(value, number_format) == text


@given(
    st.floats(allow_nan=False) | st.integers() | st.datetimes() | st.booleans(),
    st.text('0#?,.%;"[]\\yYmdhsgeAP/ E+-@_*', max_size=20),
)
def test_no_number_format_ends_the_reading(value: object, number_format: str) -> None:
    assert isinstance(shown(value, number_format), str)


def test_a_sheet_keeps_titles_grouped_headers_merged_cells_and_formats(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "料金表"
    for row in (["2024年度 料金表"], ["区分", "料金", None, "開始日"], [None, "一般", "会員", None],
                ["会議室", 1500, 1200, dt.date(2024, 4, 1)], [None, 900, "a|b\nc", dt.date(2024, 5, 1)], [],
                ["備考"], ["# 予約は前日まで"]):  # fmt: skip
        sheet.append(row)
    for merged in ("A1:D1", "B2:C2", "A2:A3", "D2:D3", "A4:A5"):
        sheet.merge_cells(merged)
    sheet["B4"].number_format = '"¥"#,##0'
    book.create_sheet("secret")["A1"] = "HIDDEN"
    book["secret"].sheet_state = "hidden"
    book.create_sheet("Staff").append(["name", "phone"])
    book["Staff"].append(["Sato", "03-1234"])
    read, note = document(tmp_path, "fees.xlsx", saved(book))
    assert [section.headings for section in read.sections] == [("料金表",), ("Staff",)]
    assert read.sections[0].text == (
        "2024年度 料金表\n\n| 区分 | 料金 一般 | 料金 会員 | 開始日 |\n| --- | --- | --- | --- |\n"
        "| 会議室 | ¥1,500 | 1200 | 2024-04-01 |\n| 会議室 | 900 | a\\|b c | 2024-05-01 |\n\n備考\n\\# 予約は前日まで"
    )
    assert read.sections[1].text == "| name | phone |\n| --- | --- |\n| Sato | 03-1234 |"
    assert note == "1 hidden sheet is left out"


def test_rows_after_an_empty_one_keep_the_header_where_they_go_on(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["item", "price"], ["pen", 1], [], ["ink", 2], [], ["name", "room"], ["Sato", "A"]):
        book.active.append(row)
    assert markdown(tmp_path, "a.xlsx", saved(book)).count("| item | price |") == 2
    assert "| name | room |\n| --- | --- |\n| Sato | A |" in markdown(tmp_path, "a.xlsx", saved(book))


def test_formulas_give_their_saved_value_and_those_without_one_are_counted(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["a", "b"], [1, "=A2*2"], [2, "=A3*2"]):
        book.active.append(row)
    raw = saved(book)
    read, note = document(tmp_path, "a.xlsx", raw)
    assert "holds 2 formulas without a saved value" in note and "A2*2" not in read.sections[0].text
    xml = zipfile.ZipFile(BytesIO(raw)).read("xl/worksheets/sheet1.xml").decode()
    xml = re.sub("<f>A2\\*2</f>(<v ?/>|<v></v>)", "<f>A2*2</f><v>2</v>", xml)
    read, note = document(tmp_path, "b.xlsx", repacked(raw, {"xl/worksheets/sheet1.xml": xml.encode()}))
    assert "| 1 | 2 |" in read.sections[0].text and "holds 1 formula without" in note


def test_one_damaged_sheet_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["lost"])
    book.create_sheet("Good").append(["kept"])
    raw = repacked(saved(book), {"xl/worksheets/sheet1.xml": b"<worksheet><sheetData><row"})
    read, note = document(tmp_path, "a.xlsx", raw)
    assert [section.text for section in read.sections] == ["kept"]
    assert note == "its sheet 'Sheet' is damaged and only read in part"
    half = (
        b"<worksheet xmlns='http://schemas.openxmlformats.org/spreadsheetml/2006/main'><sheetData><row r='1'>"
        b"<c r='A1' t='inlineStr'><is><t>early</t></is></c></row><row"
    )
    read, note = document(tmp_path, "b.xlsx", repacked(raw, {"xl/worksheets/sheet1.xml": half}))
    assert [section.text for section in read.sections] == ["early", "kept"] and "only read in part" in note


def test_a_huge_sheet_is_cut_with_a_note_and_a_lonely_far_cell_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbook, "MOST_ROWS", 50)
    book = openpyxl.Workbook()
    for number in range(80):
        book.active.append([f"row {number}", number])
    read, note = document(tmp_path, "a.xlsx", saved(book))
    assert note == "its sheet 'Sheet' is cut after 50 rows"
    assert "row 49" in read.sections[0].text and "row 50" not in read.sections[0].text
    far = openpyxl.Workbook()
    far.active["A1"], far.active["B1048576"] = "near", "far"
    assert "near" in markdown(tmp_path, "far.xlsx", saved(far))


@pytest.mark.parametrize(
    ("raw", "rows"),
    [
        ("a,b\n1,2\n", ["a", "b", "1", "2"]),
        ("a;b\n1,5;2\n3,4;5\n", ["a", "b", "1,5", "2", "3,4", "5"]),
        ("sep=|\na|b\n1|2", ["a", "b", "1", "2"]),
        ("名前\t部屋\r\n山田\t3\r\n", ["名前", "部屋", "山田", "3"]),
        ('id,name\n007,"x, ""y"""\n8,"multi\nline"\n', ["id", "name", "007", 'x, "y"', "8", "multi line"]),
        ('a,b\n"open,1\n2,3\n', ["a", "b", '"open', "1", "2", "3"]),
    ],
)  # fmt: skip
def test_delimiters_and_quotes_are_understood(tmp_path: Path, raw: str, rows: list[str]) -> None:
    text = document(tmp_path, "a.csv", raw.encode())[0].sections[0].text
    lines = [line.strip("| ").split(" | ") for line in text.split("\n")]
    assert [cell for line in lines if "---" not in line for cell in line] == rows


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "utf-16", "utf-8-sig", "utf-8"])
def test_values_in_any_encoding_are_read(tmp_path: Path, encoding: str) -> None:
    raw = "名前,部屋,備考\n渡辺,第三会議室,予約は前日までにお願いします\n高橋,食堂,\n".encode(encoding)
    assert markdown(tmp_path, "名簿.csv", raw) == (
        "# 名簿\n\n| 名前 | 部屋 | 備考 |\n| --- | --- | --- |\n"
        "| 渡辺 | 第三会議室 | 予約は前日までにお願いします |\n| 高橋 | 食堂 |  |"
    )


def test_lines_before_a_table_one_column_and_nothing_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = markdown(tmp_path, "a.csv", b"Report 2024\n\nid,name\n1,x\n2,y\n")
    assert text == "# a\n\nReport 2024\n\n| id | name |\n| --- | --- |\n| 1 | x |\n| 2 | y |"
    assert markdown(tmp_path, "b.csv", b"x\ny\n") == "# b\n\nx\ny"
    with pytest.raises(DamagedFileError, match="no visible text"):
        document(tmp_path, "c.csv", b",,\n,,\n")
    monkeypatch.setattr(delimited, "MOST_ROWS", 3)
    assert document(tmp_path, "d.csv", b"a,b\n" * 9)[1] == "it is cut after 3 rows"


@example([["a", "a", ",|"], ["a", "a", ",|"], ["a", ",|", 'a"a']])
@given(
    st.lists(st.lists(st.text('ab|,"\n 字#-', min_size=1, max_size=5), min_size=3, max_size=3), min_size=2, max_size=6)
)
def test_every_cell_of_a_table_is_in_its_text(rows: list[list[str]]) -> None:
    buffer = StringIO()
    csv.writer(buffer).writerows(rows)
    if not buffer.getvalue().strip():
        return
    sections = delimited.read_delimited(buffer.getvalue().encode(), "a").document.sections
    text = sections[0].text if sections else ""
    for cell in (cell for row in rows for cell in row):
        assert " ".join(cell.split()).replace("|", "\\|") in text or "|" in cell
