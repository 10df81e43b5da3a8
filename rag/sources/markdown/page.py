"""Reads Markdown files: what a reader of the page sees, still as Markdown.

Front matter, comments and hidden HTML go; links and images leave their words; HTML tables, code and rubies are
rewritten as in pages. Code of every kind stays as it stands.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import replace

from rag.document import Document, sections_of
from rag.sources.clean import clean, without_data_uris
from rag.sources.html.inherited import Letters
from rag.sources.html.page import html_to_markdown
from rag.sources.html.tree import is_hiding
from rag.sources.html.writer import apart, wrapped
from rag.sources.markdown.front_matter import split_front_matter, title_of
from rag.sources.markdown.links import definitions, without_targets
from rag.sources.markdown.scan import AUTOLINK, MarkdownPart, scan
from rag.sources.properties import told_meta
from rag.sources.reader import Read, titled
from slm.text.encoding.decode import decode
from slm.text.names import names

# Elements whose meaning is in their structure: they are written as those of a page are.


_REWRITTEN = names(
    "table pre dl ul ol ruby sup sub code select math script style template svg iframe noscript textarea"
)
_BLOCK_TAGS = names(
    "p div br hr details summary section article aside figure figcaption center blockquote form main header"
)
_INLINE_TAGS = names(
    "a abbr b bdi bdo big cite del dfn em font i img ins kbd mark nobr picture q s samp small source span strike "
    "strong tt u var wbr rb rt rp rtc li td th tr tbody thead tfoot dt dd video audio label html body footer nav"
)
_HEADING = re.compile(r"/?h([1-6])\Z")
_FENCE_IN_ITEM = re.compile(r"(?P<prefix>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)+)(?=```|~~~)")
_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,31});")


def read_markdown(raw: bytes, name: str) -> Read:
    """A Markdown file as a document. Raises DamagedFileError (no text)."""
    decoded = decode(raw)
    return Read(markdown_document(decoded.text, name), decoded.note)


def markdown_document(text: str, name: str) -> Document:
    """A document of Markdown text; titled by its front matter, its only top heading or `name`."""
    said, body = split_front_matter(clean(text))
    document = titled(sections_of(plain_markdown(body)), title_of(said), name)
    return replace(document, meta=told_meta(said))


def plain_markdown(text: str) -> str:
    """Markdown without comments, hidden HTML, tags and the targets of links; code is not touched."""
    parts = list(scan(text))
    known = definitions(part.text for part in parts if part.kind == "text")
    out: list[tuple[bool, str]] = []
    ends = _matching_ends(parts)
    # An element that only some program knows goes with both its tags: <Tab label="x">words</Tab>.
    unknown_ends = {end for opening, end in ends.items() if parts[opening].attributes}
    at = 0
    raised = ""  # the end of a <sup> or <sub> that no text follows yet
    while at < len(parts):
        part = parts[at]
        if part.kind == "code":
            out.append((True, _code(part.text)))
        elif part.kind == "text":
            out.append((False, apart(raised, part.text)))
            raised = ""
        elif part.kind == "tag":
            end = ends.get(at)
            if end is not None and (_is_hidden(part) or _is_unseen(parts, at, end)):
                at = end
            elif end == at + 2 and part.name in ("sup", "sub") and parts[at + 1].kind == "text":
                raised = wrapped(part.name, parts[at + 1].text, out[-1][1] if out else "")
                out.append((False, raised))
                at = end
            elif end is not None and part.name in _REWRITTEN:
                markup = "".join(p.text for p in parts[at : end + 1])
                out.append((True, _in_cell(markup) if _in_row(out) else _rewritten(markup, part.name)))
                at = end
            else:
                left = _tag_text(part, out)
                out.append((False, "" if at in unknown_ends and left == part.text else left))
        at += 1
    return _joined(out, known)


def _joined(pieces: Sequence[tuple[bool, str]], known: frozenset[str]) -> str:
    """The pieces as one text; those that are not code without the targets of links, which may span code."""
    code = [text for is_code, text in pieces if is_code]
    # A control character stands for a piece of code; the text is free of them.
    text = "".join("\x00" if is_code else text for is_code, text in pieces)
    text = without_targets(text, known)
    text = AUTOLINK.sub(r"\1", text)
    text = without_data_uris(_ENTITY.sub(lambda match: clean(html.unescape(match.group())), text))
    text = _BLANK_LINES.sub("\n\n", text)
    rest = iter(code)
    return "".join(next(rest) if piece == "\x00" else piece for piece in re.split("(\x00)", text))


def _matching_ends(parts: Sequence[MarkdownPart]) -> dict[int, int]:
    """By the place of each opening tag, the place of the tag that closes it, where one does."""
    ends: dict[int, int] = {}
    open_at: dict[str, list[int]] = {}
    for at, part in enumerate(parts):
        if part.kind != "tag" or part.text.endswith("/>"):
            continue
        if part.name.startswith("/"):
            if open_at.get(part.name[1:]):
                ends[open_at[part.name[1:]].pop()] = at
        else:
            open_at.setdefault(part.name, []).append(at)
    return ends


def _is_hidden(part: MarkdownPart) -> bool:
    attributes = dict(part.attributes)
    if "hidden" in attributes and attributes["hidden"] != "until-found":
        return True
    return attributes.get("aria-hidden") == "true" or is_hiding(attributes.get("style", ""))


def _is_unseen(parts: Sequence[MarkdownPart], at: int, end: int) -> bool:
    """Whether the style of an element hides its letters, and none in it undoes that."""
    letters = _styled(Letters(), parts[at])
    return letters.unseen and all(_styled(letters, part).unseen for part in parts[at:end] if part.attributes)


def _styled(letters: Letters, part: MarkdownPart) -> Letters:
    return letters.styled(dict(part.attributes).get("style", ""))


def _rewritten(markup: str, name: str) -> str:
    text = html_to_markdown(markup)
    block = name in ("table", "pre", "dl", "ul", "ol") and text
    return f"\n\n{text}\n\n" if block else text


def _in_cell(markup: str) -> str:
    """What stands in a cell of a Markdown table, on one line: as a cell of a page is written."""
    # A bar is escaped in such a cell already; the table has a header, so that it is none that arranges a page.
    bare = markup.replace("\\|", "|")
    lines = html_to_markdown(f"<table><tr><th>x<tr><td>{bare}</td></tr></table>").split("\n")
    return lines[2][2:-2] if len(lines) == 3 else " ".join(lines[2:])[2:-2]


def _tag_text(part: MarkdownPart, before: Sequence[tuple[bool, str]]) -> str:
    """What is left of a tag: a line end, a heading's mark, an image's words; a tag that is none stays."""
    name = part.name.removeprefix("/")
    heading = _HEADING.match(name)
    if name in ("h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "tr", "td", "th") and _in_row(before):
        return " "
    if heading:
        return "\n\n" if part.name.startswith("/") else f"\n\n{'#' * int(heading.group(1))} "
    if name == "img":
        return dict(part.attributes).get("alt", "")
    if name in _BLOCK_TAGS:
        return " " if _in_row(before) else "\n"
    if name in _INLINE_TAGS or name in _REWRITTEN or part.attributes:
        return ""
    return part.text


def _in_row(out: Sequence[tuple[bool, str]]) -> bool:
    """Whether the line in work is a row of a table, which a line end would break."""
    line = ""
    for _, text in reversed(out[-50:]):
        line = text.rpartition("\n")[2] + line
        if "\n" in text:
            break
    return line.lstrip().startswith("|")


def _code(text: str) -> str:
    """Code as it stands; a fence behind the mark of a list item begins on a line of its own, where all find it."""
    item = _FENCE_IN_ITEM.match(text)
    if item is None:
        return text
    return f"{item['prefix'].rstrip()}\n{' ' * min(len(item['prefix']), 3)}{text[item.end() :]}"
