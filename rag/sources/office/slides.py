"""Reads presentations (.pptx): each slide a section under its title, with its notes; hidden slides are left out.

It knows nothing of where shapes stand: their order in the file is the one in which a screen reader reads them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rag.sources.office.graphics import graphic_html
from rag.sources.office.markup import TableCell, document_of, escape, html_list, html_table
from rag.sources.office.package import Package, Relation, attribute, below, child, relation_id, tag
from rag.sources.reader import Read
from slm.errors import DamagedFileError

_TITLES = ("title", "ctrTitle")
_FURNITURE = ("dt", "ftr", "sldNum", "hdr")


def read_slides(raw: bytes, name: str) -> Read:
    """A presentation as a document. Raises DamagedFileError, UnsupportedError (encrypted, of another format)."""
    package = Package(raw)
    main = package.main_part("ppt/presentation.xml")
    relations = package.relations(main)
    slides = [relations.get(relation_id(element)) for element in below(package.tree(main), "p:sldId")]
    parts: list[str] = []
    notes: list[str] = []
    hidden = 0
    first_title = ""
    for number, relation in enumerate(slides, start=1):
        part = relation.target if relation else ""
        try:
            tree = package.tree(part)
            if attribute(tree, "show") in ("0", "false"):
                hidden += 1
                continue
            title, body = _slide(package, part, tree)
        except DamagedFileError as error:  # the other slides are read
            notes.append(f"its slide {number} could not be read ({error.what})")
            continue
        first_title = first_title or (title if number == 1 else "")
        parts.append(f"<h2>{escape(title or f'Slide {number}')}</h2>\n{body}" if title or body.strip() else "")
    if hidden:
        notes.append(f"{hidden} hidden {'slide is' if hidden == 1 else 'slides are'} left out")
    if notes and not any(parts):
        raise DamagedFileError("; ".join(notes))
    document = document_of("".join(parts), package.title() or first_title or name, name)
    return Read(replace(document, meta=package.meta()), "; ".join(notes))


def _slide(package: Package, part: str, tree: Any) -> tuple[str, str]:
    """The title and the other text (HTML) of a slide."""
    relations = package.relations(part)
    title = ""
    out: list[str] = []
    shapes = child(tree, "p:cSld", "p:spTree")
    stack = list(reversed(shapes)) if shapes is not None else []
    while stack:
        shape = stack.pop()
        name = tag(shape)
        if name in ("p:grpSp", "mc:AlternateContent", "mc:Choice"):
            stack += reversed([inner for inner in shape if tag(inner) != "mc:Fallback"])
            continue
        if _is_hidden(shape):
            continue
        kind = _placeholder(shape)
        if name == "p:sp" and kind not in _FURNITURE:
            body = child(shape, "p:txBody")
            if kind in _TITLES and not title and body is not None:
                title = " ".join(_text(body).split())
            elif body is not None:
                out.append(_paragraphs(body, bullets=kind in ("body", "obj")))
        elif name == "p:graphicFrame":
            out.append(_frame(package, relations, shape))
        elif name == "p:pic":
            properties = child(shape, "p:nvPicPr", "p:cNvPr")
            words = attribute(properties, "descr") if properties is not None else ""
            out.append(f"<p>{escape(words)}</p>\n" if words.strip() else "")
    out.append(_notes(package, relations))
    return title, "".join(out)


def _placeholder(shape: Any) -> str:
    """What kind of placeholder a shape is; "" for none. One without a type holds a slide's content."""
    found = next((p for p in below(shape, "p:ph")), None)
    return attribute(found, "type", "obj") if found is not None else ""


def _is_hidden(shape: Any) -> bool:
    properties = next((part for part in below(shape, "p:cNvPr")), None)
    return properties is not None and attribute(properties, "hidden") in ("1", "true")


def _text(element: Any) -> str:
    """The text of a paragraph, or of several with blanks between them."""
    parts: list[str] = []
    for part in below(element, "a:p", "a:t", "a:br", "m:t"):
        name = tag(part)
        parts.append(" " if name == "a:p" else "\n" if name == "a:br" else part.text or "")
    return "".join(parts)


def _paragraphs(body: Any, *, bullets: bool) -> str:
    """The paragraphs of a shape; several in the body of a slide are a list, as the layout shows them."""
    out: list[str] = []
    items: list[tuple[int, str, str]] = []
    count: dict[int, int] = {}
    texts = [(paragraph, _text(paragraph).strip()) for paragraph in body if tag(paragraph) == "a:p"]
    several = sum(bool(text) for _, text in texts) > 1
    for paragraph, text in texts:
        if not text:
            continue
        html = escape(text).replace("\n", "<br>").replace("\x0b", "<br>")
        properties = child(paragraph, "a:pPr")
        marks = {tag(part) for part in properties} if properties is not None else set()
        level = attribute(properties, "lvl", "0") if properties is not None else "0"
        depth = int(level) if level.isdigit() else 0
        if "a:buNone" not in marks and (
            {"a:buChar", "a:buAutoNum", "a:buBlip"} & marks or (bullets and several) or depth
        ):
            count = {key: value for key, value in count.items() if key <= depth}
            number = ""
            if "a:buAutoNum" in marks:
                start = attribute(child(properties, "a:buAutoNum"), "startAt", "1")
                count[depth] = count.get(depth, int(start) - 1 if start.isdigit() else 0) + 1
                number = str(count[depth])
            items.append((depth, number, html))
            continue
        if items:
            out.append(html_list(items))
            items = []
        out.append(f"<p>{html}</p>\n")
    return "".join([*out, html_list(items) if items else ""])


def _frame(package: Package, relations: dict[str, Relation], frame: Any) -> str:
    """A table, a chart or a diagram."""
    table = next(below(frame, "a:tbl"), None)
    if table is not None:
        return _table(table)
    for element in below(frame, "c:chart", "dgm:relIds"):
        relation = relations.get(relation_id(element))
        if relation is not None and relation.target:
            return graphic_html(package, relation.target)
    return ""


def _table(table: Any) -> str:
    rows: list[list[TableCell]] = []
    for row in (part for part in table if tag(part) == "a:tr"):
        line: list[TableCell] = []
        for cell in (part for part in row if tag(part) == "a:tc"):
            if attribute(cell, "hMerge") in ("1", "true") or attribute(cell, "vMerge") in ("1", "true"):
                continue
            text = "<br>".join(escape(_text(p).strip()) for p in below(cell, "a:p"))
            line.append(TableCell(text, _integer(attribute(cell, "gridSpan")), _integer(attribute(cell, "rowSpan"))))
        rows.append(line)
    return html_table(rows)


def _notes(package: Package, relations: dict[str, Relation]) -> str:
    """What the speaker notes under a slide."""
    target = next((r.target for r in relations.values() if r.kind == "notesSlide" and r.target), "")
    if not target:
        return ""
    try:
        tree = package.tree(target)
    except DamagedFileError:
        return ""
    bodies = (child(s, "p:txBody") for s in below(tree, "p:sp") if _placeholder(s) == "body")
    return "".join(_paragraphs(body, bullets=False) for body in bodies if body is not None)


def _integer(text: str) -> int:
    return min(int(text), 1000) if text.isascii() and text.isdigit() else 1
