"""The blocks of a Word document as HTML: headings, paragraphs, lists, tables, code, notes at the end of their block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rag.sources.office.graphics import graphic_html
from rag.sources.office.markup import TableCell, escape, html_list, html_table
from rag.sources.office.package import Package, attribute, child, tag
from rag.sources.office.word.inline import DELETED, Paragraph, paragraph_of
from rag.sources.office.word.numbering import Numbering
from rag.sources.office.word.styles import Style, is_on, styles_of, value
from slm.errors import DamagedFileError

_DEEPEST_TABLE = 12


class Blocks:
    """Writes the body of a document, its notes and its text boxes."""

    def __init__(self, package: Package, part: str) -> None:
        self._package, self._relations = package, package.relations(part)
        self.title = ""
        self.problems: list[str] = []
        self._depth = 0  # of tables
        styles = self._part("styles")
        self._styles: dict[str, Style] = {"": Style()} if styles is None else styles_of(styles)
        self._numbering = Numbering(self._part("numbering"))
        self._notes = {kind: self._notes_of(kind) for kind in ("footnote", "endnote")}
        self._marks: dict[tuple[str, str], int] = {}

    def _part(self, kind: str) -> Any | None:
        """The tree of a part that this one names; None where there is none, or it is damaged."""
        target = next((r.target for r in self._relations.values() if r.kind == kind and r.target), "")
        if not target or target not in self._package:
            return None
        try:
            return self._package.tree(target)
        except DamagedFileError as error:
            self.problems.append(error.what)
            return None

    def _notes_of(self, kind: str) -> dict[str, Any]:
        tree = self._part(f"{kind}s")
        return {} if tree is None else {
            attribute(note, "id"): note for note in tree
            if tag(note) == f"w:{kind}" and "eparat" not in attribute(note, "type")
        }  # fmt: skip

    def html(self, body: Any) -> str:
        """All blocks in an element."""
        out: list[str] = []
        items: list[tuple[int, str, str]] = []
        code: list[str] = []
        pending: list[tuple[str, str]] = []
        carried: list[Paragraph] = []

        def close() -> None:
            if items:
                out.append(html_list(items))
                items.clear()
            if code:
                out.append(f"<pre>{chr(10).join(code)}</pre>\n")
                code.clear()
            notes()

        def notes() -> None:
            for kind, number in pending:
                mark = self._mark(kind, number)
                note = self._notes[kind].pop(number, None)  # once, should a note name itself
                if note is not None:
                    out.append(self.html(note).replace("<p>", f"<p>{mark}: ", 1))
            pending.clear()

        for element in self._flat(body):
            name = tag(element)
            if name == "w:tbl":
                close()
                out.append(self._table(element))
                continue
            paragraph = paragraph_of(element, self._styles, self._mark)
            if paragraph.joins_next:
                carried.append(paragraph)
                continue
            everything = [*carried, paragraph]
            carried = []
            html = "".join(one.html for one in everything)
            style = self._style(element)
            if not style.is_contents:
                self._write(style, html, out, items, code, close)
            pending += [note for one in everything for note in one.notes]
            if not items and not code:
                notes()
            beside = [self.html(box) for one in everything for box in one.boxes]
            beside += [self._graphic(number) for one in everything for number in one.graphics]
            if any(beside):
                close()
                out += beside
        if carried:
            out.append(f"<p>{''.join(one.html for one in carried)}</p>\n")
        close()
        return "".join(out)

    def _write(
        self, style: Style, html: str, out: list[str], items: list[tuple[int, str, str]], code: list[str],
        close: Callable[[], None],
    ) -> None:  # fmt: skip
        """Add one paragraph to what is open, or close that and begin something."""
        if style.is_code and style.level is None:
            if not code:
                close()
            code.append(html.replace("<br>", "\n"))
            return
        if not html.strip():
            return
        level = style.level
        label = None
        if style.number_id and style.number_id != "0":
            label = self._numbering.next(style.number_id, style.number_level or 0)
        if level is not None and not self._depth:
            close()
            if level == 0 and not self.title:
                self.title = html
            text = f"{escape(label.text)} {html}" if label and label.text else html
            out.append(f"<h{min(level + 1, 6)}>{text}</h{min(level + 1, 6)}>\n")
        elif label is not None:
            if code:
                close()
            text = html if label.count or not label.text else f"{escape(label.text)} {html}"
            items.append(((style.number_level or 0) + style.nesting, label.count, text))
        else:
            close()
            out.append(f"<p>{html}</p>\n")

    def _flat(self, body: Any) -> list[Any]:
        """Paragraphs and tables, out of whatever wraps them; deleted ones left out."""
        found: list[Any] = []
        stack = list(reversed(list(body)))
        while stack:
            element = stack.pop()
            name = tag(element)
            if name in ("w:p", "w:tbl"):
                found.append(element)
            elif name == "w:altChunk":
                self.problems.append("a document that is embedded in it (altChunk) is not read")
            elif name not in DELETED and name not in ("w:sdtPr", "w:sectPr", "mc:Fallback") and len(element):
                stack += reversed(list(element))
        return found

    def _style(self, element: Any) -> Style:
        properties = child(element, "w:pPr")
        if properties is None:
            return self._styles[""]
        style = self._styles.get(value(properties, "w:pStyle") or "", self._styles[""])
        outline = value(properties, "w:outlineLvl") or ""
        level = style.level
        if outline.isdigit():
            level = int(outline) + 1 if int(outline) < 9 else None
        number_id = value(properties, "w:numPr", "w:numId") or style.number_id
        own_level = value(properties, "w:numPr", "w:ilvl") or ""
        number_level = int(own_level) if own_level.isdigit() else style.number_level
        return replace(style, level=level, number_id=number_id, number_level=number_level)

    def _mark(self, kind: str, number: str) -> str:
        if number not in self._notes[kind] and (kind, number) not in self._marks:
            return ""
        return f"[^{self._marks.setdefault((kind, number), len(self._marks) + 1)}]"

    def _graphic(self, number: str) -> str:
        relation = self._relations.get(number)
        return graphic_html(self._package, relation.target) if relation and relation.target else ""

    def _table(self, table: Any) -> str:
        if self._depth >= _DEEPEST_TABLE:
            problem = f"it has tables more than {_DEEPEST_TABLE} deep in each other, which are left out"
            self.problems += [problem] if problem not in self.problems else []
            return ""
        self._depth += 1
        rows: list[list[TableCell]] = []
        hanging: dict[int, TableCell] = {}  # by column: the cell that spans down so far
        heads = 0
        for row in _rows(table):
            properties = child(row, "w:trPr")
            if properties is not None and any(child(properties, name) is not None for name in DELETED):
                continue
            line: list[TableCell] = []
            column = _integer(value(properties, "w:gridBefore") if properties is not None else None, 0)
            if column:
                line.append(TableCell("", column))
            for cell in _cells(row):
                span = max(_integer(value(cell, "w:tcPr", "w:gridSpan"), 1), 1)
                merge = child(cell, "w:tcPr", "w:vMerge")
                if merge is not None and attribute(merge, "val", "continue") != "restart" and column in hanging:
                    hanging[column].rows += 1
                else:
                    entry = TableCell(self.html(cell), span)
                    line.append(entry)
                    hanging.pop(column, None)
                    if merge is not None:
                        hanging[column] = entry
                column += span
            if properties is not None and is_on(child(properties, "w:tblHeader")) and heads == len(rows):
                heads += 1
            rows.append(line)
        self._depth -= 1
        return html_table(rows, heads if heads < len(rows) else 0)


def _rows(table: Any) -> list[Any]:
    return _found(table, "w:tr", ("w:tbl",))


def _cells(row: Any) -> list[Any]:
    cells = _found(row, "w:tc", ("w:tr", "w:tbl"))
    return [cell for cell in cells if child(cell, "w:tcPr", "w:cellDel") is None]


def _found(element: Any, name: str, borders: tuple[str, ...]) -> list[Any]:
    """The elements of a name below one, through what wraps them (w:sdt, w:ins), not inside each other."""
    found: list[Any] = []
    stack = list(reversed(list(element)))
    while stack:
        part = stack.pop()
        if tag(part) == name:
            found.append(part)
        elif tag(part) not in borders and tag(part) not in ("w:tc", "mc:Fallback", *DELETED):
            stack += reversed(list(part))
    return found


def _integer(text: str | None, default: int) -> int:
    return min(int(text), 1000) if text and text.isascii() and text.isdigit() else default
