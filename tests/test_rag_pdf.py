"""PDF: word for word in the order of reading, with headings, lists and tables, without what every page has."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.platypus import (
    BaseDocTemplate,
    Frame,
    ListFlowable,
    PageBreak,
    PageTemplate,
    Paragraph,
    Preformatted,
    Spacer,
    Table,
)

from rag.sources.office.pdf.read import read_pdf
from slm.errors import UnsupportedError
from tests.office_files import document, markdown, pdf

pdfmetrics.registerFont(UnicodeCIDFont("HeiseiMin-W3"))
_STYLES = getSampleStyleSheet()
_JA = ParagraphStyle("ja", fontName="HeiseiMin-W3", fontSize=10, leading=15, wordWrap="CJK")
_GRID = ("GRID", (0, 0), (-1, -1), 0.5, colors.black)
_PROSE = (
    "The quick administration of rooms needs an extraordinary understanding of procedures. Every visitor signs the "
    "register at the entrance, and keeps the badge visible until leaving the building in the evening."
)


def laid_out(story: Sequence[Any], columns: int = 1) -> bytes:
    """Flowing text in columns, with a header and a footer on each page."""
    buffer = io.BytesIO()
    width, height = A4
    each = (width - 100) / columns
    frames = [Frame(50 + i * (each + 10), 60, each - 10 * (columns > 1), height - 140) for i in range(columns)]

    def furniture(canvas: Any, file: Any) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawString(50, height - 40, "ACME Handbook 2024")
        canvas.drawCentredString(width / 2, 30, f"Page {file.page} of 9")

    file = BaseDocTemplate(buffer, pagesize=A4)
    file.addPageTemplates(PageTemplate(frames=frames, onPage=furniture))
    file.build(list(story))
    return buffer.getvalue()


def text(value: str, style: str = "BodyText") -> Paragraph:
    return Paragraph(value, _STYLES[style])


def test_headings_lists_tables_and_pages_without_what_every_page_has(tmp_path: Path) -> None:
    raw = laid_out([
        text("Rooms and fees", "Title"), text("1. Booking", "Heading1"), text(_PROSE), text("1.1 Keys", "Heading2"),
        text(_PROSE), ListFlowable([text("first item"), text(f"second: {_PROSE}")], bulletType="bullet"),
        Table([["Room", "Fee", "Open"], ["A-1", "1,200", "yes"], ["B-2", "900", "no, repairs"]], style=[_GRID]),
        text("After."), PageBreak(), text(f"Second page. {_PROSE}"), PageBreak(), text("Third."),
    ])  # fmt: skip
    assert markdown(tmp_path, "a.pdf", raw) == (
        f"# Rooms and fees\n\n## 1. Booking\n\n{_PROSE}\n\n### 1.1 Keys\n\n{_PROSE}\n\n- first item\n- second: {_PROSE}"
        "\n\n| Room | Fee | Open |\n| --- | --- | --- |\n| A-1 | 1,200 | yes |\n| B-2 | 900 | no, repairs |\n\nAfter."
        f"\n\nSecond page. {_PROSE}\n\nThird."
    )


@pytest.mark.parametrize("columns", [2, 3])
def test_columns_are_read_one_after_the_other(tmp_path: Path, columns: int) -> None:
    words = " ".join(f"w{number}ord" + "." * (number % 9 == 8) for number in range(400))
    raw = laid_out([text("A heading", "Heading2"), text(words)], columns)
    assert markdown(tmp_path, "a.pdf", raw).split("\n\n")[-1] == words


def test_a_title_across_two_columns_comes_before_them(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        canvas.setFont("Helvetica-Bold", 18)
        canvas.drawCentredString(300, 780, "A title that runs across both of the columns")
        for column, x in (("left", 50), ("right", 310)):
            lines = canvas.beginText(x, 750)
            lines.setFont("Times-Roman", 11)
            for number in range(12):
                lines.textLine(f"line {number} of the {column} column goes on and on")
            canvas.drawText(lines)

    shown = markdown(tmp_path, "a.pdf", pdf(page))
    left = " ".join(f"line {n} of the left column goes on and on" for n in range(12))
    right = " ".join(f"line {n} of the right column goes on and on" for n in range(12))
    assert shown == f"# A title that runs across both of the columns\n\n{left} {right}"


def test_japanese_lines_join_without_blanks_in_one_and_two_columns_and_across_pages(tmp_path: Path) -> None:
    story = "".join(f"会議室{n}の予約は、前日の17時までに総務課へ申し込み、鍵を受け取ります。" for n in range(100))
    for columns in (1, 2):
        raw = laid_out([Paragraph(story, _JA)], columns)
        assert markdown(tmp_path, "a.pdf", raw) == "# a\n\n" + story


def test_vertical_writing_is_read_from_the_right(tmp_path: Path) -> None:
    pdfmetrics.registerFont(UnicodeCIDFont("HeiseiKakuGo-W5", isVertical=True))

    def page(canvas: Any) -> None:
        canvas.setFont("HeiseiKakuGo-W5", 12)
        for number, line in enumerate(["縦書きの文章です。会議室", "の鍵は、守衛室にありま", "す。"]):
            canvas.drawString(500 - 20 * number, 780, line)

    assert markdown(tmp_path, "a.pdf", pdf(page)) == "# a\n\n縦書きの文章です。会議室の鍵は、守衛室にあります。"


def test_tables_with_merged_cells_without_rules_and_of_japanese_are_tables(tmp_path: Path) -> None:
    merged = Table([["Item", "Price of a room for everybody", ""], ["", "Day", "Night"], ["Desk", "10", "20"]],
                   style=[_GRID, ("SPAN", (1, 0), (2, 0)), ("SPAN", (0, 0), (0, 1))])  # fmt: skip
    plain = Table([["Name", "Extension", "Floor"], ["Sato", "1234", "3"], ["Suzuki", "2345", "4"]], colWidths=100)
    japanese = Table([["部屋", "料金"], ["第一会議室", "千円"], ["食堂", "無料"]],
                     style=[_GRID, ("FONT", (0, 0), (-1, -1), "HeiseiMin-W3")])  # fmt: skip
    gap = Spacer(1, 30)
    shown = markdown(tmp_path, "a.pdf", laid_out([text(_PROSE), merged, gap, plain, gap, japanese, text(_PROSE)]))
    assert "| Item | Price of a room for everybody Day | Price of a room for everybody Night |\n" in shown
    assert "| Name | Extension | Floor |\n| --- | --- | --- |\n| Sato | 1234 | 3 |\n| Suzuki | 2345 | 4 |" in shown
    assert "| 部屋 | 料金 |\n| --- | --- |\n| 第一会議室 | 千円 |\n| 食堂 | 無料 |" in shown


def test_divided_words_are_joined_and_compounds_keep_their_hyphen(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        lines = canvas.beginText(50, 700)
        lines.setFont("Times-Roman", 12)
        for line in ("The adminis-", "tration of a well-", "known company is docu-", "mented in UTF-",
                     "8 files. A well-known fact about it."):  # fmt: skip
            lines.textLine(line)
        canvas.drawText(lines)

    assert markdown(tmp_path, "a.pdf", pdf(page)) == (
        "# a\n\nThe administration of a well-known company is documented in UTF-8 files. A well-known fact about it."
    )


def test_ligatures_soft_hyphens_overprint_and_spaced_letters_are_plain_words(tmp_path: Path) -> None:
    from reportlab.pdfbase.ttfonts import TTFont

    font = Path(__import__("matplotlib").get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    pdfmetrics.registerFont(TTFont("DejaVu", font))

    def page(canvas: Any) -> None:
        canvas.setFont("DejaVu", 12)
        canvas.drawString(50, 700, "e\ufb03cient \ufb01les and o\ufb00ers in soft\xadware")
        canvas.drawString(50, 650, "Printed twice")
        canvas.drawString(50.3, 650, "Printed twice")
        canvas.drawString(50, 600, "Spaced letters", charSpace=6)

    shown = markdown(tmp_path, "a.pdf", pdf(page)).split("\n\n")[1:]
    assert shown == ["efficient files and offers in software", "Printed twice", "Spaced letters"]


def test_code_keeps_its_lines(tmp_path: Path) -> None:
    code = "def f(a):\n    if a:\n        return a\n    return 0\n\nprint(f(1))"
    raw = laid_out([text(_PROSE), Preformatted(code, _STYLES["Code"]), text(_PROSE)])
    assert f"```\n{code}\n```" in markdown(tmp_path, "a.pdf", raw)


def test_a_chapters_running_header_and_roman_page_numbers_are_dropped(tmp_path: Path) -> None:
    def page(number: int) -> Any:
        def draw(canvas: Any) -> None:
            chapter = number // 2 + 1
            canvas.drawString(50, 810, f"Chapter {chapter}: {'ABCDE'[chapter - 1]} matters   {number + 4}")
            canvas.drawString(50, 700, f"Body of page {number}, which stands in the middle.")
            canvas.drawCentredString(300, 30, ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii"][number])

        return draw

    shown = markdown(tmp_path, "a.pdf", pdf([page(number) for number in range(8)]))
    assert shown.split("\n\n")[1:] == [f"Body of page {n}, which stands in the middle." for n in range(8)]


def picture(canvas: Any) -> None:
    canvas.drawImage(ImageReader(Image.new("RGB", (50, 50), "red")), 0, 0, 500, 500)


def test_pages_of_pictures_only_are_named(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        canvas.drawString(50, 700, "Only this page has text.")

    read, note = document(tmp_path, "a.pdf", pdf([picture, page, picture]))
    assert note == "2 pages (1, 3) hold pictures only, whose text is not read"
    assert [section.text for section in read.sections] == ["Only this page has text."]
    with pytest.raises(UnsupportedError, match=r"1 page \(1\) holds pictures only.*OCR"):
        document(tmp_path, "b.pdf", pdf(picture))


def test_form_fields_are_read_and_a_file_that_only_its_owner_may_change_is_open(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        canvas.drawString(50, 700, "Applicant:")
        canvas.acroForm.textfield(name="n", value="Yamada Taro", x=150, y=690, width=200, height=20)

    for options in ({}, {"encrypt": StandardEncryption("", "owner")}):
        assert markdown(tmp_path, "a.pdf", pdf(page, **options)) == "# a\n\nApplicant: Yamada Taro"


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_turned_pages_are_read_as_they_are_seen(tmp_path: Path, turn: int) -> None:
    def page(canvas: Any) -> None:
        canvas.setPageRotation(turn)
        canvas.translate(*{90: (595, 0), 180: (595, 842), 270: (0, 595)}[turn])
        canvas.rotate(turn)
        canvas.drawString(100, 400, "The first line is above")
        canvas.drawString(100, 386, "the second line.")

    assert markdown(tmp_path, "a.pdf", pdf(page)) == "# a\n\nThe first line is above the second line."


def test_a_page_that_the_library_fails_at_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    def page(number: int) -> Any:
        return lambda canvas: canvas.drawString(50, 700, f"Text of page {number}.")

    raw = pdf([page(1), page(2), page(3)], pageCompression=0)
    objects = [part for part in raw.split(b"endobj") if b"/Type /Page\n" in part or b"/Type /Page " in part]
    number = objects[1].split(b" 0 obj")[0].split()[-1]
    damaged = raw.replace(b"\n" + number + b" 0 obj\n<<", b"\n" + number + b" 0 obj\n[[")
    read = read_pdf(damaged, "a")
    shown = " ".join(section.text for section in read.document.sections)
    assert "Text of page 1." in shown and "Text of page 3." in shown and "page 2" not in shown
    assert read.note == "1 page (2) could not be read"


def test_off_the_page_is_not_read_and_an_empty_file_says_so(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        canvas.drawString(50, 700, "Seen")
        canvas.drawString(50, 5000, "UNSEEN")

    assert markdown(tmp_path, "a.pdf", pdf(page)) == "# a\n\nSeen"


def test_notes_in_other_directions_stand_behind_the_text_and_break_no_line(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        canvas.drawString(50, 700, "The pump runs from six")
        for x, y, turn, text in (
            (30, 690, 90, "printed in May"),
            (570, 720, -90, "see page 4 of"),
            (99, 99, 45, "DRAFT 2"),
        ):
            canvas.saveState()
            canvas.translate(x, y)
            canvas.rotate(turn)
            canvas.drawString(0, 0, text)
            canvas.restoreState()
        canvas.drawString(50, 686, "to nine every day.")

    assert markdown(tmp_path, "a.pdf", pdf(page)) == (
        "# a\n\nThe pump runs from six to nine every day.\n\nprinted in May\n\nsee page 4 of\n\nDRAFT 2"
    )


def test_a_page_that_is_mostly_written_sideways_is_read_so(tmp_path: Path) -> None:
    def page(canvas: Any) -> None:
        canvas.drawString(250, 40, "7")
        canvas.translate(300, 100)
        canvas.rotate(90)
        canvas.drawString(0, 14, "A wide table was turned, and its")
        canvas.drawString(0, 0, "caption with it.")

    assert markdown(tmp_path, "a.pdf", pdf(page)) == "# a\n\nA wide table was turned, and its caption with it.\n\n7"
