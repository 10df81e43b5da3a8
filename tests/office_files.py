"""Office files and PDF of our own for tests, built by other libraries than those that read them, or by hand."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag.document import Document
from rag.sources.reader import markdown_of
from tests.tiny_rag import read_noted

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STRICT_W = "http://purl.oclc.org/ooxml/wordprocessingml/main"


def saved(thing: Any) -> bytes:
    """The bytes of anything that has save()."""
    buffer = io.BytesIO()
    thing.save(buffer)
    return buffer.getvalue()


def repacked(raw: bytes, changed: Mapping[str, bytes | None]) -> bytes:
    """A package with some parts replaced, added, or (None) left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        parts = {name: old.read(name) for name in old.namelist()}
        for name, data in {**parts, **changed}.items():
            if data is not None:
                new.writestr(name, data)
    return buffer.getvalue()


def word(body: str, namespace: str = W, **parts: str) -> bytes:
    """A Word document of this body and parts such as styles="<w:style>...", numbering=, footnotes=."""
    roots = {"styles": "styles", "numbering": "numbering", "footnotes": "footnotes", "endnotes": "endnotes"}
    relations = "".join(f'<Relationship Id="{n}" Type="http://x/{n}" Target="{n}.xml"/>' for n in parts)
    space = (
        f'xmlns:w="{namespace}" xmlns:v="urn:schemas-microsoft-com:vml" '
        'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
        'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
        'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"'
    )
    files = {
        "_rels/.rels": '<Relationships><Relationship Id="1" Type="http://x/officeDocument" '
        'Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f"<Relationships>{relations}</Relationships>",
        "word/document.xml": f"<w:document {space}><w:body>{body}</w:body></w:document>",
        **{f"word/{n}.xml": f"<w:{roots[n]} {space}>{xml}</w:{roots[n]}>" for n, xml in parts.items()},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in files.items():
            file.writestr(name, text)
    return buffer.getvalue()


def p(text: str, properties: str = "") -> str:
    """A paragraph of Word."""
    return f'<w:p><w:pPr>{properties}</w:pPr><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def pdf(draw: Callable[[Any], None] | Sequence[Callable[[Any], None]], **options: Any) -> bytes:
    """A PDF of one page for each function, which draws on reportlab's canvas."""
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, **options)
    for page in draw if isinstance(draw, Sequence) else [draw]:
        page(canvas)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def document(tmp_path: Path, name: str, raw: bytes) -> tuple[Document, str]:
    """What a file of these bytes is read as, and the note on it."""
    (tmp_path / name).write_bytes(raw)
    read = read_noted(tmp_path / name)
    return read.document, read.note


def markdown(tmp_path: Path, name: str, raw: bytes) -> str:
    return markdown_of(document(tmp_path, name, raw)[0]).strip()
