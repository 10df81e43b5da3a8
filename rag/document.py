"""What a source delivers: documents as titled sections of Markdown text, and what is known of them beside their text.

It knows nothing of files or of chunks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r"^ {0,3}(#{1,6})[ \t]")
_TABLE_CELL = re.compile(r":?-+:?")
_SETEXT = re.compile(r"^ {0,3}(=+|-{2,})[ \t]*$")
# Invisible characters that can hide text or reorder it on screen: zero-width space, marks and overrides of writing
# direction, invisible operators, byte order marks, tag characters; and control characters but tab and newline.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]")


@dataclass(frozen=True)
class Section:
    """Text under one heading: the headings from the document's top down to it, and Markdown text."""

    headings: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Meta:
    """What a page has beside its text; empty where its source does not say.

    id: what names the page wherever it comes from (confluence:12345), "" for what is only named by its place.
    space: the key of the collection it belongs to. ancestors: titles from the top down. created, modified: ISO 8601.
    restrictions: who may see it, `user:NAME` and `group:NAME`; of each of the tuples one has to fit (a page is under
    its own and under those of the pages above it). None of them: all who may see the space.
    """

    id: str = ""
    url: str = ""
    space: str = ""
    ancestors: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    author: str = ""
    created: str = ""
    modified: str = ""
    version: int = 0
    restrictions: tuple[tuple[str, ...], ...] = ()


NO_META = Meta()


@dataclass(frozen=True)
class Document:
    """A page: its title, where it came from (a path or an address), its language (ISO 639-1 or "und"), its sections."""

    title: str
    source: str
    lang: str
    sections: tuple[Section, ...]
    meta: Meta = NO_META


def visible(text: str) -> str:
    """The text without ANSI escapes, control and invisible characters; newlines as \\n."""
    return _INVISIBLE.sub("", _ANSI.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def one_line(text: str) -> str:
    """A title or heading for display: visible characters, white space joined."""
    return " ".join(visible(text).split())


def is_table_rule(line: str) -> bool:
    """Whether a line is the rule under a table's header: |---|:-:|."""
    return all(
        _TABLE_CELL.fullmatch(cell.strip()) for cell in line.strip().removeprefix("|").removesuffix("|").split("|")
    )


def sections_of(markdown: str) -> list[Section]:
    """Split Markdown at its headings (ATX and setext; not inside fenced code). Text before the first has no headings.

    A heading without text of its own and without sub-headings keeps its place as an empty section.
    """
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    fence = ""

    def close() -> None:
        text = "\n".join(lines).strip("\n")
        if text.strip() or path:
            sections.append(Section(tuple(heading for _, heading in path), text if text.strip() else ""))
        lines.clear()

    for line in markdown.split("\n"):
        marker = _FENCE.match(line)
        if marker and not fence:
            fence = marker.group(1)
        elif fence:
            if marker and marker.group(1)[0] == fence[0] and len(marker.group(1)) >= len(fence):
                fence = "" if not line.strip().strip(fence[0]) else fence
        else:
            heading = _heading(line, lines)
            if heading is not None:
                level, text = heading
                close()
                path = [(depth, name) for depth, name in path if depth < level]
                path.append((level, one_line(text)))
                continue
        lines.append(line)
    close()
    return [section for i, section in enumerate(sections) if section.text or _is_leaf(sections, i)]


def _heading(line: str, before: list[str]) -> tuple[int, str] | None:
    """(level, text) when the line is a heading; takes a setext heading's text off the lines before."""
    atx = _ATX.match(line)
    if atx:
        text = line[atx.end() :].strip(" \t")
        closed = text.rstrip("#")
        # Closing #s are none of the heading; those that stand on a word (C#) are.
        if closed != text and (not closed or closed[-1] in " \t"):
            text = closed.rstrip(" \t")
        return (len(atx.group(1)), text) if text.strip() else None
    setext = _SETEXT.match(line)
    previous = before[-1] if before else ""
    alone = len(before) < 2 or not before[-2].strip()
    if setext and alone and previous.strip() and not re.match(r"^\s*([-*+>|]|\d+[.)])", previous):
        before.pop()
        return (1 if setext.group(1).startswith("=") else 2), previous
    return None


def _is_leaf(sections: list[Section], index: int) -> bool:
    headings = sections[index].headings
    following = sections[index + 1].headings if index + 1 < len(sections) else ()
    return following[: len(headings)] != headings
