"""Cuts Markdown into code, HTML tags and text, in one pass from the beginning to the end.

Code is what CommonMark calls fenced, indented and inline code. Time is linear in the text: what is not found behind
one place is not looked for again behind a later one. It knows nothing of what the parts are for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "code", "tag", "comment"]

_CONTAINER = re.compile(r"(?:[ \t]*(?:>|(?:[-*+]|\d{1,9}[.)])(?=[ \t])))*[ \t]*")
_QUOTED = re.compile(r"[ \t>]*")
_FENCE = re.compile(r"(`{3,})(?=[^`\n]*$)|(~{3,})", re.MULTILINE)
_ITEM = re.compile(r"([ \t]*)((?:[-*+]|\d{1,9}[.)])[ \t]{1,4})(?=\S)")
_SPECIAL = re.compile(r"[`<\\\n]")
AUTOLINK = re.compile(r"<((?:[A-Za-z][A-Za-z0-9+.-]{1,31}://|mailto:|tel:|data:|[\w.+-]{1,64}@)[^\s<>]*)>")
_TAG = re.compile(r"</?([A-Za-z][A-Za-z0-9:-]{0,40})(?=[\s/>])")
_TAG_END = re.compile(r"\s+/?>")
_QUOTED_VALUE = re.compile(r"\s*[^\s=\"'<>/`]{1,200}\s*=\s*([\"'])")
_BLANK, _TICKS = re.compile(r"\n[ \t]*\n"), re.compile("`+")
_ATTRIBUTE = re.compile(r"\s*([^\s=\"'<>/`]{1,200})(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'=<>`]+)))?|\s*/(?!>)")


@dataclass(frozen=True)
class MarkdownPart:
    """A part of the text, `text` as it stands there. `name` and `attributes` are a tag's; a closing one has "/name"."""

    kind: Kind
    text: str
    name: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


class _Scan:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self._missing: set[str] = set()
        self._runs: dict[int, list[int]] = {}
        self._runs_end = -1

    def find(self, what: str, start: int) -> int:
        found = -1 if what in self._missing else self.text.find(what, start)
        if found < 0:
            self._missing.add(what)
        return found

    def line_end(self, start: int) -> int:
        end = self.text.find("\n", start)
        return len(self.text) if end < 0 else end + 1

    def closing_ticks(self, start: int, length: int) -> int:
        """Where the code span that opens before `start` closes in its paragraph, or -1."""
        if start > self._runs_end:
            blank = _BLANK.search(self.text, start)
            self._runs_end = blank.start() if blank else len(self.text)
            self._runs = {}
            for run in _TICKS.finditer(self.text, start, self._runs_end):
                self._runs.setdefault(len(run.group()), []).append(run.start())
            for places in self._runs.values():
                places.reverse()
        places = self._runs.get(length, [])
        while places and places[-1] < start:
            places.pop()
        return places[-1] if places else -1


def scan(text: str) -> Iterator[MarkdownPart]:
    """The parts of a Markdown text in their order; joined, they are the text."""
    state = _Scan(text)
    blank_before, items = True, [0]  # what the columns of the open list items' text are
    start = 0
    while state.at < len(text):
        end = state.line_end(state.at)
        line = text[state.at : end]
        if not line.strip():
            blank_before, state.at = True, end
            continue
        fence_end = _fence_end(state, items[-1] + 4)
        if fence_end:
            if state.at > start:
                yield MarkdownPart("text", text[start : state.at])
            yield MarkdownPart("code", text[state.at : fence_end])
            start = state.at = fence_end
            blank_before = True
            continue
        column = _column(line)
        item = _ITEM.match(line)
        if blank_before and column >= items[-1] + 4:
            if state.at > start:
                yield MarkdownPart("text", text[start : state.at])
            start, state.at = state.at, _indented_end(state, items[-1] + 4)
            yield MarkdownPart("code", text[start : state.at])
            start = state.at
            continue
        while len(items) > 1 and column < items[-1] and (blank_before or item):
            items.pop()
        if item and len(items) < 100:
            items.append(column + len(item[2]))
        blank_before = False
        for part in _inline(state, end):
            if state.at > start and part.kind != "text":
                before = state.at - len(part.text)
                if before > start:
                    yield MarkdownPart("text", text[start:before])
                yield part
                start = state.at
    if len(text) > start:
        yield MarkdownPart("text", text[start:])


def _column(line: str) -> int:
    column = 0
    for char in line:
        if char == " ":
            column += 1
        elif char == "\t":
            column += 4 - column % 4
        else:
            break
    return column


def _fence_end(state: _Scan, column: int) -> int:
    """Behind the code block whose fence opens on this line; 0 when none does. An unclosed one goes on to the end.

    From `column` on a line is indented code, in which no fence opens.
    """
    text = state.text
    container = _CONTAINER.match(text, state.at)
    fence = _FENCE.match(text, container.end()) if container else None
    if container is None or fence is None or ("`" not in fence.group() and "~" not in fence.group()):
        return 0
    if not container.group().strip() and _column(container.group()) >= 4 and _column(container.group()) >= 40:
        return 0
    char, length = fence.group()[0], len(fence.group())
    quoted = ">" in container.group()
    at = state.line_end(fence.end())
    while at < len(text):
        end = state.line_end(at)
        begin = _QUOTED.match(text, at)
        first = begin.end() if begin else at
        if quoted and ">" not in text[at:first]:
            return at  # the quotation ended, and the code with it
        rest = text[first:end].strip()
        if len(rest) >= length and rest == char * len(rest):
            return end
        at = end
    return len(text)


def _indented_end(state: _Scan, column: int) -> int:
    """Behind the lines that are indented as code is, blank ones between them included."""
    at = end = state.at
    while at < len(state.text):
        next_at = state.line_end(at)
        line = state.text[at:next_at]
        if line.strip():
            if _column(line) < column:
                break
            end = next_at
        at = next_at
    return end


def _inline(state: _Scan, end: int) -> Iterator[MarkdownPart]:
    """Code spans, tags and comments up to the end of a line, or of that line in which the last of them ends.

    Leaves state.at behind each part that it yields, and at the end behind the line.
    """
    text = state.text
    while match := _SPECIAL.search(text, state.at):
        at, char = match.start(), match.group()
        if char == "\n":
            state.at = at + 1
            return
        if char == "\\":
            state.at = min(at + 2, len(text)) if text[at + 1 : at + 2] != "\n" else at + 1
        elif char == "`":
            ticks = len(text[at : at + 2000]) - len(text[at : at + 2000].lstrip("`"))
            closing = state.closing_ticks(at + ticks, ticks)
            state.at = at + ticks
            if closing >= 0:
                state.at = closing + ticks
                yield MarkdownPart("code", text[at : state.at])
        elif text.startswith("<!--", at):
            closing = state.find("-->", at + 2)  # <!--> and <!---> are whole (CommonMark 0.31)
            state.at = at + 4
            if closing >= 0:
                state.at = closing + 3
                yield MarkdownPart("comment", text[at : state.at])
        elif autolink := AUTOLINK.match(text, at):
            state.at = autolink.end()
        else:
            part = _tag(state, at)
            state.at = at + (len(part.text) if part else 1)
            if part:
                yield part
    state.at = len(text)


def _tag(state: _Scan, at: int) -> MarkdownPart | None:
    """The HTML tag at a place, or None where < is only that."""
    text = state.text
    opening = _TAG.match(text, at)
    if opening is None or state.find(">", at) < 0:
        return None
    attributes: list[tuple[str, str]] = []
    end = opening.end()
    while not text.startswith((">", "/>"), end):
        if text[end : end + 1].isspace() and (rest := _TAG_END.match(text, end)):
            end = rest.end() - (2 if rest.group().endswith("/>") else 1)
            break
        # A quote that nothing closes ends the search for attributes once and for all.
        equals = _QUOTED_VALUE.match(text, end)
        if equals and state.find(equals.group(1), equals.end()) < 0:
            return None
        attribute = _ATTRIBUTE.match(text, end)
        if attribute is None or attribute.end() == end:
            return None
        if attribute.group(1):
            value = next((group for group in attribute.group(2, 3, 4) if group is not None), "")
            attributes.append((attribute.group(1).lower(), value))
        end = attribute.end()
    end += 1 if text[end] == ">" else 2
    slash = "/" if text[at + 1] == "/" else ""
    return MarkdownPart("tag", text[at:end], slash + opening.group(1).lower(), tuple(attributes))
