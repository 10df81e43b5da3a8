"""Office files from anywhere: bombs, entities, encrypted and old files are refused by reason, nothing is fetched."""

from __future__ import annotations

import io
import socket
import zipfile
from pathlib import Path

import openpyxl
import pytest
from docx import Document as Word

from rag.sources.files import read_files
from rag.sources.office.package import Package
from slm.errors import DamagedFileError, InputError, UnsupportedError
from tests.office_files import markdown, p, pdf, repacked, saved, word
from tests.tiny_rag import read_noted

_BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r>'
    "<w:t>&b;</w:t></w:r></w:p></w:body></w:document>"
)
_OUTSIDE = _BOMB.replace('<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">', '<!ENTITY b SYSTEM "file:///etc/passwd">')


def refused(tmp_path: Path, name: str, raw: bytes) -> str:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError) as error:
        read_noted(tmp_path / name)
    return error.value.what


def workbook() -> bytes:
    book = openpyxl.Workbook()
    book.active.append(["x"])
    return saved(book)


@pytest.mark.parametrize("xml", [_BOMB, _OUTSIDE], ids=["expansion", "external"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused(tmp_path: Path, xml: str, encoding: str) -> None:
    raw = repacked(word(p("x")), {"word/document.xml": xml.encode(encoding)})
    assert "declares a document type" in refused(tmp_path, "a.docx", raw)
    sheet = xml.replace("w:document", "worksheet").encode(encoding)
    padded = (b"<!-- " + b"x" * 70_000 + b" -->" if encoding == "utf-8" else b"") + sheet
    for part in ("xl/worksheets/sheet1.xml", "xl/sharedStrings.xml", "xl/workbook.xml"):
        for data in (sheet, padded):
            assert "document type" in refused(tmp_path, "a.xlsx", repacked(workbook(), {part: data}))


def test_what_unpacks_to_far_more_than_a_document_is_refused(tmp_path: Path) -> None:
    blanks = b" " * (30 << 20)
    bomb = word(p("x")).replace(b"", b"")
    bomb = repacked(bomb, {"word/document.xml": b"<w:document>" + blanks + b"</w:document>"})
    assert "times its size, as no document does" in refused(tmp_path, "a.docx", bomb)
    assert "times its size" in refused(tmp_path, "a.xlsx", repacked(workbook(), {"xl/sharedStrings.xml": blanks}))
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as file:
        for number in range(50_001):
            file.writestr(f"{number}", b"")
    assert "parts" in refused(tmp_path, "b.docx", many.getvalue())


def test_encrypted_old_and_foreign_files_say_what_they_are(tmp_path: Path) -> None:
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 512
    assert "encrypted with a password" in refused(tmp_path, "a.docx", ole + "EncryptedPackage".encode("utf-16-le"))
    for name in ("a.doc", "a.xls", "a.ppt", "a.xlsx"):
        assert "format before 2007; save it as" in refused(tmp_path, name, ole)
    for name in ("b.docx", "b.xlsx", "b.pptx"):
        assert "no whole zip archive" in refused(tmp_path, name, word(p("x"))[:-40])
        assert "no whole zip archive" in refused(tmp_path, name, b"\0" * 300)
    assert refused(tmp_path, "c.docx", workbook()) == "it is no Word document"


def test_deep_nesting_ends_in_a_reason(tmp_path: Path) -> None:
    deep = "<w:sdt><w:sdtContent>" * 5000 + p("x") + "</w:sdtContent></w:sdt>" * 5000
    assert "no XML that can be read" in refused(tmp_path, "a.docx", word(deep))
    boxed = p("innermost")
    for _ in range(35):
        boxed = f"<w:p><w:r><w:pict><w:txbxContent>{boxed}</w:txbxContent></w:pict></w:r></w:p>"
    assert "innermost" in markdown(tmp_path, "b.docx", word(boxed))


def test_links_out_of_the_package_are_never_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dialled(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    file = Word()
    file.add_paragraph("text")
    raw = saved(file)
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        '<Relationship Id="1" Type="http://x/styles" Target="http://127.0.0.1:9/s.xml" TargetMode="External"/>'
        '<Relationship Id="2" Type="http://x/footnotes" Target="../../../../etc/passwd"/></Relationships>'
    )
    monkeypatch.setattr(socket.socket, "connect", dialled)
    raw = repacked(raw, {"word/_rels/document.xml.rels": relations.encode()})
    assert markdown(tmp_path, "a.docx", raw).endswith("text")
    assert set(Package(raw).relations("word/document.xml")["2"].target.split("/")) == {"etc", "passwd"}  # in the zip


def test_one_bad_file_of_each_kind_does_not_end_the_reading_of_the_others(tmp_path: Path) -> None:
    good = {"a.docx": word(p("text")), "a.xlsx": workbook(), "a.csv": b"a,b\n1,2\n",
            "a.pdf": pdf(lambda canvas: canvas.drawString(50, 700, "Text of the page"))}  # fmt: skip
    for name, raw in good.items():
        (tmp_path / name).write_bytes(raw)
        (tmp_path / f"half-{name}").write_bytes(raw[: len(raw) // 2] if name != "a.csv" else b"\0" * 50)
        (tmp_path / f"noise-{name}").write_bytes(bytes(range(256)) * 20)
    reading = read_files([tmp_path])
    assert {Path(d.source).name for d in reading.documents} == set(good)
    assert len(reading.skipped) == 8 and all(skipped.reason for skipped in reading.skipped)


def test_errors_are_of_the_family(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 nothing")
    with pytest.raises(DamagedFileError, match="no PDF file"):
        read_noted(tmp_path / "a.pdf")
    from reportlab.lib.pdfencrypt import StandardEncryption

    locked = pdf(lambda canvas: canvas.drawString(50, 700, "x"), encrypt=StandardEncryption("user", "owner"))
    (tmp_path / "b.pdf").write_bytes(locked)
    with pytest.raises(UnsupportedError, match="encrypted with a password"):
        read_noted(tmp_path / "b.pdf")
