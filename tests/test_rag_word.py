"""Word documents: every word that a reader sees, in its place, and none that was deleted or hidden."""

from __future__ import annotations

from pathlib import Path

import docx
import pytest

from slm.errors import DamagedFileError
from tests.office_files import STRICT_W, W, markdown, p, repacked, saved, word
from tests.tiny_rag import read_noted


def text_of(tmp_path: Path, raw: bytes) -> str:
    return markdown(tmp_path, "規程.docx", raw)


def test_headings_lists_and_tables_of_a_written_document_keep_their_order_and_nesting(tmp_path: Path) -> None:
    file = docx.Document()
    file.add_heading("就業規則", 0)
    file.add_heading("休暇", 1)
    file.add_paragraph("年次有給休暇は10日とする。")
    for text, style in (("申請する", "List Bullet"), ("上長へ", "List Bullet 2"), ("記録する", "List Bullet")):
        file.add_paragraph(text, style=style)
    file.add_heading("Steps", 2)
    file.add_paragraph("first", style="List Number")
    file.add_paragraph("second", style="List Number")
    table = file.add_table(4, 3)
    for row, texts in enumerate((("Room", "Fee", ""), ("", "Day", "Night"), ("A|1", "10", "20"), ("", "11", "21"))):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    table.cell(0, 1).merge(table.cell(0, 2))
    table.cell(0, 0).merge(table.cell(1, 0))
    table.cell(2, 0).merge(table.cell(3, 0))
    assert text_of(tmp_path, saved(file)) == (
        "# 就業規則\n\n## 休暇\n\n年次有給休暇は10日とする。\n\n- 申請する\n  - 上長へ\n- 記録する\n\n"
        "### Steps\n\n1. first\n2. second\n\n"
        "| Room | Fee Day | Fee Night |\n| --- | --- | --- |\n| A\\|1 | 10 | 20 |\n| A\\|1 | 11 | 21 |"
    )


@pytest.mark.parametrize("namespace", [W, STRICT_W], ids=["transitional", "strict"])
def test_tracked_changes_are_accepted_and_hidden_text_and_comments_are_out(tmp_path: Path, namespace: str) -> None:
    raw = word(
        "<w:p><w:r><w:t xml:space='preserve'>The fee is </w:t></w:r><w:del><w:r><w:delText>10</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>12</w:t></w:r></w:ins><w:moveFrom><w:r><w:t>GONE</w:t></w:r></w:moveFrom>"
        "<w:moveTo><w:r><w:t xml:space='preserve"
        "'> euros</w:t></w:r></w:moveTo><w:r><w:rPr><w:vanish/></w:rPr><w:t>HIDDEN</w:t></w:r>"
        "<w:commentRangeStart w:id='1'/><w:r><w:commentReference w:id='1'/></w:r></w:p>"
        "<w:p><w:pPr><w:rPr><w:del/></w:rPr></w:pPr><w:r><w:t>One para</w:t></w:r></w:p>" + p("graph.")
        + "<w:del>" + p("DELETED") + "</w:del>"
        "<w:tbl><w:tr>" + "".join(f"<w:tc>{p(t)}</w:tc>" for t in "ab") + "</w:tr>"
        "<w:tr><w:trPr><w:del/></w:trPr>" + "".join(f"<w:tc>{p(t)}</w:tc>" for t in "xy") + "</w:tr>"
        "<w:ins><w:tr>" + "".join(f"<w:tc>{p(t)}</w:tc>" for t in "12") + "</w:tr></w:ins></w:tbl>",
        namespace,
    )  # fmt: skip
    assert text_of(tmp_path, raw) == (
        "# 規程\n\nThe fee is 12 euros\n\nOne paragraph.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"
    )


def test_furigana_is_dropped_and_boxes_content_controls_and_formulas_are_read_once(tmp_path: Path) -> None:
    box = "<w:txbxContent>" + p("枠内の注意") + "</w:txbxContent>"
    raw = word(
        "<w:p><w:r><w:ruby><w:rt><w:r><w:t>ひなん</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>避難</w:t></w:r></w:rubyBase>"
        "</w:ruby></w:r><w:r><w:t>場所</w:t></w:r></w:p>"
        "<w:p><w:r><w:t>Beside</w:t></w:r><w:r><mc:AlternateContent><mc:Choice Requires='wps'>" + box + "</mc:Choice>"
        "<mc:Fallback><w:pict><v:textbox>" + box + "</v:textbox></w:pict></mc:Fallback></mc:AlternateContent></w:r>"
        "</w:p>"
        "<w:sdt><w:sdtPr><w:alias w:val='LEAK'/></w:sdtPr><w:sdtContent>" + p("# no heading")
        + "</w:sdtContent></w:sdt>"
        "<w:p><m:oMath><m:r><m:t>E=m</m:t></m:r><m:sSup><m:e><m:r><m:t>c</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t>"
        "</m:r></m:sup></m:sSup></m:oMath></w:p>"
        "<w:p><w:r><w:t>10</w:t></w:r><w:r><w:rPr><w:vertAlign w:val='superscript'/></w:rPr><w:t>-3</w:t></w:r></w:p>"
        "<w:p><w:r><w:drawing><wp:docPr id='1' descr='Map of floor 2'/></w:drawing></w:r></w:p>",
    )  # fmt: skip
    assert text_of(tmp_path, raw) == (
        "# 規程\n\n避難場所\n\nBeside\n\n枠内の注意\n\n\\# no heading\n\nE=mc^2\n\n10^-3\n\nMap of floor 2"
    )


def test_what_is_chosen_in_a_form_of_before_2007_is_read_once(tmp_path: Path) -> None:
    def field(data: str, shown: str = "") -> str:
        return (
            f"<w:r><w:fldChar w:fldCharType='begin'><w:ffData><w:name w:val='x'/>{data}</w:ffData></w:fldChar></w:r>"
            f"<w:r><w:instrText> FORM </w:instrText></w:r>{shown}<w:r><w:fldChar w:fldCharType='end'/></w:r>"
        )

    entries = "".join(f"<w:listEntry w:val='{entry}'/>" for entry in ("Tokyo", "Nagoya &amp; Gifu", "Osaka"))
    shown = "<w:r><w:fldChar w:fldCharType='separate'/></w:r><w:r><w:t>Osaka</w:t></w:r>"
    fields = [
        field(f"<w:ddList><w:result w:val='1'/>{entries}</w:ddList>"),
        field(f"<w:ddList><w:default w:val='2'/>{entries}</w:ddList>"),
        field(f"<w:ddList>{entries}</w:ddList>"),
        field(f"<w:ddList><w:result w:val='9'/>{entries}</w:ddList>"),
        field(f"<w:ddList><w:result w:val='2'/>{entries}</w:ddList>", shown),
        field("<w:checkBox><w:default w:val='0'/><w:checked/></w:checkBox>"),
        field("<w:checkBox><w:default w:val='0'/></w:checkBox>"),
    ]
    raw = word("".join(f"<w:p><w:r><w:t>Site: </w:t></w:r>{one}<w:r><w:t>.</w:t></w:r></w:p>" for one in fields))
    assert [line.removeprefix("Site:").strip() for line in text_of(tmp_path, raw).split("\n\n")[1:]] == [
        "Nagoya & Gifu.", "Osaka.", "Tokyo.", ".", "Osaka.", "☑.", "☐.",
    ]  # fmt: skip


def test_footnotes_and_endnotes_stand_under_their_paragraph(tmp_path: Path) -> None:
    raw = word(
        "<w:p><w:r><w:t>Closed on Mondays</w:t></w:r><w:r><w:footnoteReference w:id='2'/></w:r></w:p>" + p("Next."),
        footnotes="<w:footnote w:id='0' w:type='separator'>" + p("----") + "</w:footnote>"
        "<w:footnote w:id='2'><w:p><w:r><w:footnoteRef/></w:r><w:r><w:t>祝日を除く。</w:t></w:r></w:p></w:footnote>",
    )  # fmt: skip
    assert text_of(tmp_path, raw) == "# 規程\n\nClosed on Mondays[^1]\n\n[^1]: 祝日を除く。\n\nNext."
    note = "<w:footnote w:id='2'><w:p><w:r><w:t>Itself</w:t><w:footnoteReference w:id='2'/></w:r></w:p></w:footnote>"
    raw = word("<w:p><w:r><w:t>a</w:t><w:footnoteReference w:id='2'/></w:r></w:p>", footnotes=note)
    assert text_of(tmp_path, raw) == "# 規程\n\na[^1]\n\n[^1]: Itself[^1]"


def test_headings_are_known_by_style_inheritance_and_outline_and_carry_their_numbers(tmp_path: Path) -> None:
    styles = (
        "<w:style w:type='paragraph' w:styleId='1'><w:name w:val='heading 1'/><w:pPr><w:numPr><w:numId w:val='7'/>"
        "</w:numPr></w:pPr></w:style>"
        "<w:style w:type='paragraph' w:styleId='mine'><w:name w:val='社内見出し'/><w:basedOn w:val='1'/></w:style>"
        "<w:style w:type='paragraph' w:styleId='toc'><w:name w:val='toc 1'/></w:style>"
        "<w:style w:type='paragraph' w:styleId='loop'><w:name w:val='x'/><w:basedOn w:val='loop'/></w:style>"
    )
    numbering = (
        "<w:abstractNum w:abstractNumId='3'><w:lvl w:ilvl='0'><w:numFmt w:val='decimal'/><w:lvlText w:val='第%1章'/>"
        "</w:lvl></w:abstractNum><w:num w:numId='7'><w:abstractNumId w:val='3'/></w:num>"
    )
    raw = word(
        p("総則", "<w:pStyle w:val='1'/>") + p("総則 ..... 1", "<w:pStyle w:val='toc'/>")
        + p("a", "<w:pStyle w:val='loop'/>")
        + p("休暇", "<w:pStyle w:val='mine'/>") + p("種類", "<w:outlineLvl w:val='1'/>") + p("b"),
        styles=styles, numbering=numbering,
    )  # fmt: skip
    assert text_of(tmp_path, raw) == "# 規程\n\n## 第1章 総則\n\na\n\n## 第2章 休暇\n\n### 種類\n\nb"


@pytest.mark.parametrize(
    ("kind", "pattern", "labels"),
    [("upperRoman", "%1.", ["I.", "II."]), ("lowerLetter", "(%1)", ["(a)", "(b)"]), ("aiueo", "%1)", ["ア)", "イ)"]),
     ("iroha", "%1.", ["イ.", "ロ."]), ("japaneseCounting", "%1、", ["一、", "二、"]),
     ("decimalEnclosedCircle", "%1", ["①", "②"]), ("decimalFullWidth", "%1．", ["１．", "２．"])],
)  # fmt: skip
def test_numbers_of_lists_are_those_that_word_shows(tmp_path: Path, kind: str, pattern: str, labels: list[str]) -> None:
    numbering = (
        f"<w:abstractNum w:abstractNumId='1'><w:lvl w:ilvl='0'><w:numFmt w:val='{kind}'/><w:lvlText w:val='{pattern}'/>"
        "</w:lvl></w:abstractNum><w:num w:numId='1'><w:abstractNumId w:val='1'/></w:num>"
    )
    item = "<w:numPr><w:ilvl w:val='0'/><w:numId w:val='1'/></w:numPr>"
    raw = word(p("one", item) + p("two", item), numbering=numbering)
    assert text_of(tmp_path, raw) == f"# 規程\n\n- {labels[0]} one\n- {labels[1]} two"


def test_code_keeps_its_lines_and_indents(tmp_path: Path) -> None:
    styles = "<w:style w:type='paragraph' w:styleId='c'><w:name w:val='Source Code'/></w:style>"
    code = "<w:pStyle w:val='c'/>"
    raw = word(p("def f(a):", code) + p("    return a &lt; 1", code) + p("After"), styles=styles)
    assert text_of(tmp_path, raw) == "# 規程\n\n```\ndef f(a):\n    return a < 1\n```\n\nAfter"


def test_tables_in_cells_one_cell_boxes_and_deep_tables_are_read(tmp_path: Path) -> None:
    def table(*rows: list[str]) -> str:
        lines = ("".join(f"<w:tc>{cell}</w:tc>" for cell in row) for row in rows)
        return "<w:tbl>" + "".join(f"<w:tr>{line}</w:tr>" for line in lines) + "</w:tbl>"

    inner = table([p("in1"), p("in2")]) + p("")
    raw = word(table([p("Name"), p("More")], [p("x"), inner]) + p("between") + table([p("Only a box")]))
    text = text_of(tmp_path, raw)
    assert "| Name | More |\n| --- | --- |\n| x | in1; in2 |" in text
    assert text.endswith("between\n\nOnly a box")
    across = "<w:tcPr><w:gridSpan w:val='2'/></w:tcPr>" + p("Fees of 2024")
    text = text_of(tmp_path, word(table([across], [p("Room"), p("Fee")], [p("A"), p("10")])))
    assert text == "# 規程\n\nFees of 2024\n\n| Room | Fee |\n| --- | --- |\n| A | 10 |"
    deep = p("bottom")
    for _ in range(60):
        deep = table([deep])
    assert text_of(tmp_path, word(p("top") + deep)).startswith("# 規程\n\ntop")


def test_a_damaged_part_beside_the_text_is_named_and_the_text_is_read(tmp_path: Path) -> None:
    raw = repacked(word(p("Text"), styles=""), {"word/styles.xml": b"<w:styles"})
    (tmp_path / "a.docx").write_bytes(raw)
    read = read_noted(tmp_path / "a.docx")
    assert read.document.sections[0].text == "Text" and "word/styles.xml" in read.note
    (tmp_path / "b.docx").write_bytes(repacked(raw, {"word/document.xml": b"<w:document"}))
    with pytest.raises(DamagedFileError, match=r"word/document\.xml is no XML"):
        read_noted(tmp_path / "b.docx")
