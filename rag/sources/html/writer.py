"""Writes a part of a parsed page as Markdown: headings, paragraphs, lists, tables, code.

Blocks are written one after another while the tree is walked, so that no nesting is too deep. It knows nothing of
pages, encodings or what is worth reading in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rag.sources.html.table import captions_of, cells_of, markdown_table, rows_of, table_rows
from rag.sources.html.tree import is_dropped, traverse
from slm.text.names import names

_BLOCKS = names(
    "address article aside blockquote body center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol p section summary ul table "
    "caption thead tbody tfoot tr td th"
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_PREFORMATTED = ("pre", "xmp", "listing", "plaintext")
# What an element's text is marked as; a mark inside itself says nothing more, but for exponents and quotations.
_MARK = {**dict.fromkeys(("code", "tt", "samp"), "code"), **dict.fromkeys(("del", "s", "strike"), "del"),
         "sup": "sup", "sub": "sub", "q": "q"}  # fmt: skip
_WRAPPED, _REPEATED = frozenset(_MARK), ("sup", "sub", "q")
_LANGUAGE = re.compile(r"(?:^|\s)(?:language-|lang-|highlight-source-|highlight-|brush:\s*)([\w+#.-]+)")
_NO_LANGUAGES = ("text", "none", "default", "plain", "source", "plaintext", "notranslate")
_ORDINAL = re.compile(r"st|nd|rd|th|er|re|e|o|os|a|as|ème|è|ª|º|tm|sm|®|™|℠|©|©", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\n\r\f\xa0]+")
_WIDE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")
# What would begin a block of Markdown at the beginning of a line, and is only text here.
_BLOCK_MARK = re.compile(r"(#{1,6}(?=\s)|`{3,}|~{3,}|(?:=+|-{2,})(?=\s*$))")
_BREAK = "\x0b"
# Parts of formulas whose own parts are not digits of one number, nor is what follows them.
_FORMULAS = names("msup msub msubsup munderover mfrac")
_BEGINS_NUMBER = re.compile(r"[.,]?\d")
_BOXES = ("[ ] ", "[x] ")
_DEEPEST = 12


@dataclass
class _Container:
    """A list item or a quotation: what its first line begins with, and the others."""

    node: int
    first: str
    rest: str
    begun: bool = False


def write(root: Any) -> str:
    """The text of a node and all below it as Markdown; "" when it holds none."""
    writer = _Writer(_layout_tables(root))
    traverse(root, writer.enter, writer.leave)
    writer.flush()
    return "\n".join(writer.lines).strip("\n")


def _layout_tables(root: Any) -> frozenset[int]:
    """Tables that only arrange a page: other tables, headings or code are in them."""
    found: set[int] = set()
    open_tables: list[int] = []

    def enter(node: Any) -> bool:
        tag = node.tag
        if tag[0] in "-!_":
            return False
        if open_tables and (tag == "table" or tag in _HEADINGS or tag == "pre"):
            found.add(open_tables[-1])
        if tag == "table":
            open_tables.append(node.mem_id)
        return True

    def leave(node: Any) -> None:
        if node.tag == "table":
            open_tables.pop()

    traverse(root, enter, leave)
    return frozenset(found)


class _Writer:
    """What has been written, and what the block in work holds so far."""

    def __init__(self, layout: frozenset[int], in_cell: int = 0) -> None:
        self.lines: list[str] = []
        self._layout, self._in_cell = layout, in_cell
        self._inline: list[str] = []
        self._containers: list[_Container] = []
        self._lists: list[list[Any]] = []  # [tag, number of the next item, items so far]
        # Where the text of each open wrapping element begins, and what it is marked as; "" where another has done it.
        self._wraps: list[tuple[int, str]] = []
        self._heading = 0
        self._tight = False
        self._apart = False  # whether a digit would be read into the number before it, which is raised or lowered

    def enter(self, node: Any) -> bool:
        tag = node.tag
        if tag == "-text":
            self._text((node.text_content or "").replace(_BREAK, " "))
            return False
        if tag == "input" and (node.attributes.get("type") or "").lower() == "checkbox" and self._lists:
            self._inline.append(_BOXES["checked" in node.attributes])
            return False
        if is_dropped(node):
            return False
        if tag == "br":
            self._inline.append(_BREAK)
        elif tag == "img":
            self._inline.append(f" {node.attributes.get('alt') or ''} " if node.attributes.get("alt") else "")
        elif tag in _PREFORMATTED:
            self._code(node)
            return False
        elif tag in _WRAPPED:
            self._wraps.append((len(self._inline), self._marks(tag)))
        elif tag in _BLOCKS:
            return self._enter_block(node, tag)
        else:
            self._between_parts(node)
            self._apart = self._apart or tag == "mfrac"
        return True

    def _between_parts(self, node: Any) -> None:
        """Write what stands between the parts of a formula: a half is not 12, and 101 to the base 2 not 1012."""
        place = _place(node)
        formula = node.parent.tag if place else ""
        if formula == "mfrac":
            self._inline.append("/")
        elif formula == "msup" or place > 1:
            self._inline.append("^")
        elif place and self._last().isdigit():
            self._inline.append("_")

    def _text(self, text: str) -> None:
        self._inline.append(apart(self._last(), text) if self._apart else text)
        self._apart = self._apart and not text

    def _last(self, end: int | None = None) -> str:
        """The last character of the block in work, up to a place in it."""
        places = range((len(self._inline) if end is None else end) - 1, -1, -1)
        return next((self._inline[place][-1] for place in places if self._inline[place]), "")

    def _marks(self, tag: str) -> str:
        """The mark of an element that wraps: code in code is that code, and nobody raises a letter a dozen times."""
        open_marks = [mark for _, mark in self._wraps if mark]
        if len(open_marks) >= _DEEPEST or (_MARK[tag] in open_marks and tag not in _REPEATED):
            return ""
        return _MARK[tag]

    def leave(self, node: Any) -> None:
        tag = node.tag
        if tag in _WRAPPED:
            begin, mark = self._wraps.pop()
            if mark:
                begin = min(begin, len(self._inline))
                text = "".join(self._inline[begin:])
                self._inline[begin:] = [wrapped(mark, text, self._last(begin))] if text else []
                self._apart = self._apart or mark in ("sup", "sub")
        elif tag in _FORMULAS:
            self._apart = True
        elif tag in _BLOCKS:
            self.flush()
            self._heading = 0
            if self._containers and self._containers[-1].node == node.mem_id:
                self._containers.pop()
            if tag in ("ul", "ol", "menu", "dir") and self._lists:
                self._lists.pop()
                self._tight = bool(self._lists)

    def flush(self) -> None:
        """End the block in work."""
        text, self._inline = "".join(self._inline), []
        self._wraps = [(0, mark) for _, mark in self._wraps]
        if self._in_cell:
            joined = _collapsed(text).replace(_BREAK, " ").strip()
            if joined:
                self.lines.append(joined)
            return
        lines = [line.strip() for line in _collapsed(text).split(_BREAK)]
        lines = [line for line in lines if line]
        if not lines:
            return
        if self._heading and not self._containers:
            self._emit([f"{'#' * self._heading} {' '.join(lines)}"])
        else:
            self._emit([_BLOCK_MARK.sub(r"\\\1", line, count=1) if _BLOCK_MARK.match(line) else line for line in lines])

    def _emit(self, lines: list[str]) -> None:
        """Write a block, after a blank line unless it follows closely."""
        if self.lines and not self._tight:
            self.lines.append("".join(c.rest for c in self._containers if c.begun).rstrip())
        self._tight = False
        for line in lines:
            prefix = "".join(c.rest if c.begun else c.first for c in self._containers)
            for container in self._containers:
                container.begun = True
            self.lines.append((prefix + line).rstrip())

    def _enter_block(self, node: Any, tag: str) -> bool:
        # A checkbox stands on the line of what it is the state of, be that a paragraph of its own.
        if "".join(self._inline[-1:]) not in _BOXES or tag not in ("p", "div"):
            self.flush()
        if tag in _HEADINGS:
            self._heading = _HEADINGS[tag]
        elif tag == "hr":
            if not self._in_cell and not self._containers:
                self._emit(["* * *"])
        elif tag in ("ul", "ol", "menu", "dir"):
            start = node.attributes.get("start") or ""
            self._tight = bool(self._lists)
            self._lists.append([tag, int(start) if start.isascii() and start.isdigit() and len(start) < 9 else 1, 0])
        elif tag == "li":
            self._item(node)
        elif tag == "dd":
            self._tight = True
            self._open(node, ": ", "  ")
        elif tag == "blockquote":
            self._open(node, "> ", "> ")
        elif tag == "table" and self._in_cell < 2 and not self._is_layout(node):
            self._table(node)
            return False
        return True

    def _open(self, node: Any, first: str, rest: str) -> None:
        shallow = len(self._containers) < _DEEPEST and not self._in_cell
        self._containers.append(_Container(node.mem_id, first if shallow else "", rest if shallow else ""))

    def _item(self, node: Any) -> None:
        # An item outside any list is one of a list that has no name.
        state: list[Any] = self._lists[-1] if self._lists else ["ul", 1, 1]
        marker = "- "
        if state[0] == "ol":
            value = node.attributes.get("value") or ""
            state[1] = int(value) if value.isascii() and value.isdigit() and len(value) < 9 else state[1]
            marker = f"{state[1]}. "
            state[1] += 1
        self._tight = self._tight or state[2] > 0
        state[2] += 1
        self._open(node, marker, " " * len(marker))

    def _code(self, node: Any) -> None:
        code = _preformatted(node)
        if self._in_cell:
            lines = (" ".join(line.split()) for line in code.split("\n"))
            self._inline.append(" ".join(_in_ticks(line) for line in lines if line))
            return
        self.flush()
        if not code.strip():
            return
        longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
        fence = "`" * (longest + 1)
        self._emit([fence + _language(node), *code.strip("\n").split("\n"), fence])

    def _is_layout(self, table: Any) -> bool:
        rows = [list(cells_of(row)) for row, _ in rows_of(table)]
        if any(cell.tag == "th" for row in rows for cell in row):
            return False
        return table.mem_id in self._layout or len(rows) <= 1 or all(len(row) <= 1 for row in rows)

    def _table(self, table: Any) -> None:
        for caption in captions_of(table):
            if text := self._cell(caption):
                self.lines.append(text) if self._in_cell else self._emit([text])
        if self._in_cell:  # each row of a table in a cell is a sentence under its header
            self.lines += table_rows(table, self._cell)
        elif lines := markdown_table(table, self._cell):
            self._emit(lines)

    def _cell(self, node: Any) -> str:
        inner = _Writer(self._layout, self._in_cell + 1)
        traverse(node, inner.enter, inner.leave)
        inner.flush()
        several = node.css_first("li, dt, tr") is not None
        text = ("; " if several else " ").join(inner.lines)
        return text if self._in_cell else text.replace("|", "\\|")


def _place(node: Any) -> int:
    """How many elements stand before one in its part of a formula: none, one, or more (2); none where it is in none."""
    if node.parent is None or node.parent.tag not in _FORMULAS:
        return 0
    found, before = 0, node.prev
    while before is not None and found < 2:
        found += before.tag is not None and before.tag[0] not in "-!_"
        before = before.prev
    return found


def apart(before: str, text: str) -> str:
    """The text that follows a <sup> or <sub>, so that its digits are not read into a number there."""
    return f" {text}" if before[-1:].isdigit() and _BEGINS_NUMBER.match(text) else text


def wrapped(tag: str, text: str, before: str = "") -> str:
    """The text of an inline element such as <sup> or <code>, as plain text writes it behind what stands before it."""
    inner = text.strip()
    if not inner:
        return text
    if tag in ("code", "tt", "samp"):
        return _in_ticks(_collapsed(inner).replace(_BREAK, " "))
    if tag == "sup":
        return _raised(inner)
    if tag == "sub":
        return inner if inner.isdigit() and not before[-1:].isdigit() else f"_{inner}"
    return f"“{inner}”" if tag == "q" else f"~~{inner}~~"


def _raised(text: str) -> str:
    """A superscript in one line, as plain text writes it: 10^-3, x^(n+1); 1st and ™ stay as they are."""
    if _ORDINAL.fullmatch(text) or text[0] in "([^":
        return text
    return f"^{text}" if re.fullmatch(r"[+\-−–]?[\w.,]+|[*†‡′″]+", text) else f"^({text})"


def _in_ticks(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}" if text else ""


def _collapsed(text: str) -> str:
    """White space as a browser shows it; a line end between two characters of Japanese or Chinese is none."""

    def space(match: re.Match[str]) -> str:
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        return "" if "\n" in match.group() and _WIDE.match(before) and _WIDE.match(after) else " "

    return _SPACE.sub(space, text)


def _preformatted(root: Any) -> str:
    """The text of a code block as it stands, lines that are elements of their own included."""
    parts: list[str] = []

    def enter(node: Any) -> bool:
        if node.tag == "-text":
            parts.append(node.text_content or "")
            return False
        if node.mem_id != root.mem_id and is_dropped(node):
            return False
        if node.tag == "br" or (node.tag in ("div", "li", "tr", "p") and parts and not parts[-1].endswith("\n")):
            parts.append("\n")
        return True

    traverse(root, enter, lambda _: None)
    return "".join(parts).replace("\r\n", "\n").replace("\xa0", " ")


def _language(node: Any) -> str:
    """The language of a code block as its classes, those of its <code> or of what surrounds it say; "" for none."""
    inner = node.css_first("code")
    around = [node, inner, node.parent, node.parent.parent if node.parent is not None else None]
    for place in [place for place in around if place is not None and place.tag[0] not in "-!_"]:
        found = _LANGUAGE.search(place.attributes.get("class") or "")
        if found and found.group(1).lower() not in _NO_LANGUAGES:
            return found.group(1)
    return ""
