"""Presentations: each slide under its title, tables and charts as tables, notes; what is hidden or furniture is out."""

from __future__ import annotations

from pathlib import Path

from pptx import Presentation
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from tests.office_files import document, markdown, repacked, saved

_P = "http://schemas.openxmlformats.org/presentationml/2006/main"
_BOX = (0, 0, Inches(4), Inches(2))


def test_titles_nested_points_tables_charts_groups_and_notes_are_read_in_their_order(tmp_path: Path) -> None:
    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[0])
    slide.shapes.title.text, slide.placeholders[1].text = "Plan 2025", "Sales team"
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "議題"
    frame = slide.placeholders[1].text_frame
    frame.text = "売上"
    for text, level in (("関東", 1), ("予算", 0)):
        paragraph = frame.add_paragraph()
        paragraph.text, paragraph.level = text, level
    slide.notes_slide.notes_text_frame.text = "Say <thanks>."
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Prices"
    table = slide.shapes.add_table(3, 2, *_BOX).table
    for row, texts in enumerate((("Item", "Price"), ("Pen", "1"), ("", "2"))):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    data = CategoryChartData()
    data.categories = ["East", "West"]
    data.add_series("Q1", (1.5, 2))
    data.add_series("Q2", (3, 4))
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, *_BOX, data)
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(*_BOX).text_frame.text = "# in a group"
    assert markdown(tmp_path, "deck.pptx", saved(deck)) == (
        "# Plan 2025\n\n## Plan 2025\n\nSales team\n\n## 議題\n\n- 売上\n  - 関東\n- 予算\n\nSay <thanks>.\n\n"
        "## Prices\n\n| Item | Price |\n| --- | --- |\n| Pen | 1 |\n| Pen | 2 |\n\n"
        "|  | Q1 | Q2 |\n| --- | --- | --- |\n| East | 1.5 | 3 |\n| West | 2 | 4 |\n\n## Slide 4\n\n\\# in a group"
    )


def test_hidden_and_damaged_slides_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    deck = Presentation()
    for text in ("first", "HIDDEN", "lost", "last"):
        slide = deck.slides.add_slide(deck.slide_layouts[5])
        slide.shapes.title.text = text
        if text == "HIDDEN":
            slide._element.set("show", "0")
    raw = repacked(saved(deck), {"ppt/slides/slide3.xml": b"<p:sld"})
    read, note = document(tmp_path, "deck.pptx", raw)
    assert [section.headings for section in read.sections] == [("first",), ("last",)]
    assert note.startswith("its slide 3 could not be read (its part ppt/slides/slide3.xml is no XML")
    assert note.endswith("; 1 hidden slide is left out")


def test_slides_come_in_the_order_of_the_show_and_without_dates_and_page_numbers(tmp_path: Path) -> None:
    deck = Presentation()
    for text in ("one", "two"):
        slide = deck.slides.add_slide(deck.slide_layouts[5])
        slide.shapes.title.text = text
        box = slide.shapes.add_textbox(*_BOX)
        box.text_frame.text = "FOOTER 7"
        box._element.nvSpPr.nvPr.append(
            box._element.makeelement(
                "{http://schemas.openxmlformats.org/presentationml/2006/main}ph", {"type": "sldNum"}
            )
        )
    order = deck.slides._sldIdLst
    order.insert(0, order[1])
    read, _ = document(tmp_path, "deck.pptx", saved(deck))
    assert [section.headings for section in read.sections] == [("two",), ("one",)]
    assert not any(section.text for section in read.sections)
