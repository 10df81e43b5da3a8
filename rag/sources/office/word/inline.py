"""The text of a Word paragraph as HTML: tracked changes accepted, hidden text and furigana out, links as words.

What stands beside the text (footnotes, text boxes, pictures of text) is handed to whoever reads the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rag.sources.office.markup import escape
from rag.sources.office.package import attribute, child, relation_id, tag
from rag.sources.office.word.styles import Style, is_on, value

DELETED = ("w:del", "w:moveFrom")
_SKIPPED = frozenset(("w:pPr", "w:rPr", "w:sdtPr", "w:instrText", "w:delText", "w:delInstrText", "w:rt", "w:rubyPr",
                      "w:commentReference", "w:annotationRef", "w:footnoteRef", "w:endnoteRef", "mc:Fallback",
                      "m:ctrlPr", "m:rPr"))  # fmt: skip
_TEXTS = {"w:tab": " ", "w:cr": "<br>", "w:noBreakHyphen": "-", "w:ptab": " "}
_TICKS = {"F0FE": "☑", "F0FD": "☒", "F0A8": "☐", "F06F": "☐", "F0FC": "✓", "F0FB": "✗", "F0D8": "➢", "F0E0": "→",
          "F0DF": "←", "F0B7": "•"}  # Wingdings, which has its own numbers  # fmt: skip


@dataclass
class Paragraph:
    """The text of a paragraph as HTML, what stands beside it, and whether its end was deleted."""

    html: str = ""
    notes: list[tuple[str, str]] = field(default_factory=list)  # (footnote or endnote, id)
    boxes: list[Any] = field(default_factory=list)  # the content of text boxes
    graphics: list[str] = field(default_factory=list)  # relations that drawings name
    joins_next: bool = False


def paragraph_of(element: Any, styles: dict[str, Style], mark: Callable[[str, str], str]) -> Paragraph:
    """Read one paragraph; `mark` gives the mark of a note of a kind and id."""
    reading = _Reading(styles, mark)
    reading.walk(element)
    found = reading.found
    found.html = "".join(reading.parts)
    marks = child(element, "w:pPr", "w:rPr")
    found.joins_next = marks is not None and any(child(marks, name) is not None for name in DELETED)
    return found


class _Reading:
    """A paragraph on its way. fields: of each open field what is chosen in it, and how many parts stood before it."""

    def __init__(self, styles: dict[str, Style], mark: Callable[[str, str], str]) -> None:
        self._styles, self._mark = styles, mark
        self.found = Paragraph()
        self.parts: list[str] = []
        self._fields: list[tuple[str, int]] = []

    def walk(self, node: Any) -> None:
        for part in node:
            name = tag(part)
            if name in _SKIPPED or name in DELETED or not name:
                continue
            if name in ("w:t", "m:t"):
                self.parts.append(escape(part.text or ""))
            elif name in _TEXTS:
                self.parts.append(_TEXTS[name])
            elif name == "w:br":
                self.parts.append("<br>" if attribute(part, "type") not in ("page", "column") else " ")
            elif name == "w:sym":
                self.parts.append(_TICKS.get(attribute(part, "char").upper(), ""))
            elif name in ("w:footnoteReference", "w:endnoteReference"):
                kind = name.removeprefix("w:").removesuffix("Reference")
                self.found.notes.append((kind, attribute(part, "id")))
                self.parts.append(self._mark(kind, attribute(part, "id")))
            elif name == "w:r":
                self._run(part)
            elif name == "w:fldChar":
                self._mark_of_field(part)
            elif name == "w:txbxContent":
                self.found.boxes.append(part)
            elif name in ("wp:docPr", "docPr"):
                self._picture(part)
            elif name in ("c:chart", "dgm:relIds"):
                self.found.graphics.append(relation_id(part))
            elif name in ("m:sup", "m:sub"):
                self._wrapped(part, name.removeprefix("m:"))
            elif name == "m:den":
                self.parts.append("/")
                self.walk(part)
            else:
                self.walk(part)

    def _run(self, node: Any) -> None:
        properties = child(node, "w:rPr")
        if properties is not None:
            style = self._styles.get(value(properties, "w:rStyle") or "-")
            vanish = child(properties, "w:vanish")
            if is_on(vanish) or (vanish is None and style is not None and style.is_hidden):
                return
            where = value(properties, "w:vertAlign")
            if where in ("superscript", "subscript"):
                self._wrapped(node, "sup" if where == "superscript" else "sub")
                return
            if is_on(child(properties, "w:strike")) or is_on(child(properties, "w:dstrike")):
                self._wrapped(node, "del")
                return
        self.walk(node)

    def _mark_of_field(self, node: Any) -> None:
        kind = attribute(node, "fldCharType")
        if kind == "begin":
            self._fields.append((_chosen(node), len(self.parts)))
        elif kind == "end" and self._fields:
            chosen, before = self._fields.pop()
            if len(self.parts) == before:  # some programs write what is shown as the field's text as well
                self.parts.append(escape(chosen))

    def _wrapped(self, node: Any, name: str) -> None:
        parts, begin = self.parts, len(self.parts)
        self.walk(node)
        inner = "".join(parts[begin:])
        # Neighbouring runs of one kind are one: Word cuts runs wherever a language or a revision changes.
        if begin and parts[begin - 1].endswith(f"</{name}>") and inner.strip():
            parts[begin - 1 :] = [parts[begin - 1].removesuffix(f"</{name}>") + inner + f"</{name}>"]
        else:
            parts[begin:] = [f"<{name}>{inner}</{name}>" if inner.strip() and "<br>" not in inner else inner]

    def _picture(self, node: Any) -> None:
        words = attribute(node, "descr").strip()
        if words and attribute(node, "hidden") not in ("1", "true"):
            self.parts.append(f'<img alt="{escape(words)}">')


def _chosen(field_mark: Any) -> str:
    """What a form field of before 2007 shows: the chosen entry of a list, the state of a box; "" for other fields."""
    entries = child(field_mark, "w:ffData", "w:ddList")
    if entries is not None:
        listed = [attribute(entry, "val") for entry in entries if tag(entry) == "w:listEntry"]
        place = value(entries, "w:result") or value(entries, "w:default") or "0"
        return listed[int(place)] if place.isdecimal() and len(place) < 9 and int(place) < len(listed) else ""
    box = child(field_mark, "w:ffData", "w:checkBox")
    if box is None:
        return ""
    checked = child(box, "w:checked")
    return "☑" if is_on(checked if checked is not None else child(box, "w:default")) else "☐"
