"""Reads HTML exports: a page with what its frame says of it (title, space, ancestors, author, attachments, labels).

Of the frame nothing else is text of the page. The export's index.html is a list of its pages and no page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from rag.document import NO_META, Meta
from rag.sources.clean import clean
from rag.sources.confluence.attached import AttachedFile, Stored, files_of
from rag.sources.confluence.body.nodes import Node
from rag.sources.confluence.body.storage import markdown_of_nodes
from rag.sources.confluence.page import page_address, page_id, page_read, person_name
from rag.sources.html.page import declared_charset, parse_html
from rag.sources.html.tree import traverse
from rag.sources.reader import LeftOut, Read, ReadOptions
from slm.errors import InputError, UnsupportedError
from slm.text.encoding.decode import decode
from slm.text.visible import one_line

_NUMBER = re.compile(r"(?:^|_)(\d{1,20})$")
_ATTACHED_TO = re.compile(r"(?:^|/)attachments/(\d{1,20})/")
_FILE = re.compile(r"(?:^|/)(attachments/\d{1,20}/(\d{1,20})(?:\.\w{1,10})?)$")
_DATES = (
    "%b %d, %Y",
    "%d %b %Y",
    "%d %B %Y",
    "%B %d, %Y",
    "%d.%m.%Y",
    "%Y/%m/%d",
    "%Y-%m-%d",
    "%Y年%m月%d日",
    "%d/%m/%Y",
    "%m月%d, %Y",
)
_DATE = re.compile(
    r"\d{4}年\s?\d{1,2}月\s?\d{1,2}日|\d{1,2}月 \d{1,2}, \d{4}|\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|"
    r"\w{3,10} \d{1,2}, \d{4}|\d{1,2} \w{3,10} \d{4}"
)
_SHOWN = ("img", "time", "hr", "input")


@dataclass(frozen=True)
class ExportIndex:
    """What an export's index.html says: the key and name of the space, and the titles of its pages by file."""

    key: str = ""
    name: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)


def is_export_page(raw: bytes) -> bool:
    """Whether the bytes are a page, or the index, of an HTML export."""
    head = raw[:100_000]
    return b'id="title-text"' in head and (b'id="main-content"' in raw or b'class="pageSection' in raw)


def read_index(raw: bytes) -> ExportIndex | None:
    """What an export's index says; None for a page."""
    tree = parse_html(decode(raw, declared=declared_charset(raw)).text)
    main = tree.css_first("#main-content")
    if main is not None and "wiki-content" in (main.attributes.get("class") or ""):
        return None
    cells = [one_line(clean(row.css_first("td").text())) for row in tree.css("#main-content tr") if row.css_first("td")]
    titles = {unquote(link.attributes.get("href") or ""): one_line(clean(link.text()))
              for link in tree.css(".pageSection li > a[href]")}  # fmt: skip
    key, name = cells[:2] if len(cells) >= 2 else ("", "")
    return ExportIndex(key, name, titles)


def read_export_page(
    raw: bytes, name: str, wanted: ReadOptions, index: ExportIndex | None = None, stored: Stored | None = None
) -> Iterator[Read | LeftOut]:
    """A page of an HTML export, and the files that are attached to it; `name` is that of its file, without the suffix.

    stored: the bytes of a file by its path from the page's folder; None: files are only named. Raises UnsupportedError
    for the export's index, InputError for a page without content.
    """
    decoded = decode(raw, declared=declared_charset(raw))
    tree = parse_html(decoded.text)
    main = tree.css_first("#main-content")
    if main is None:
        raise InputError("it is a page of a Confluence export without its content")
    if "wiki-content" not in (main.attributes.get("class") or "") and tree.css_first("#breadcrumbs") is None:
        raise UnsupportedError("it is the list of pages of a Confluence export, not a page")
    above = [one_line(clean(link.text())) for link in tree.css("#breadcrumbs li")]
    spaces = [space for space in (index.name if index else "", above[0] if above else "") if space]
    number = _number(name, tree)
    base = wanted.base_url.rstrip("/")
    # The index names pages without their space, whose name and theirs may both hold colons.
    listed = index.titles.get(f"{name}.html", "") if index else ""
    title = listed or _title(tree, spaces) or name
    said = tree.css_first(".page-metadata")
    author = said.css_first(".author") if said is not None else None
    files = _files(tree)
    labels = [one_line(clean(label.text())) for label in tree.css(".label-list .aui-label, .labels-content a[rel=tag]")]
    meta = Meta(
        id=page_id(number), url=page_address(base, number) if base and number else "",
        space=index.key if index else "", ancestors=tuple(above[1:]), labels=tuple(sorted(set(filter(None, labels)))),
        author=person_name(clean(author.text())) if author is not None else "",
        modified=_modified(said.text()) if said is not None else "",
    )  # fmt: skip
    read = page_read(title, number or name, markdown_of_nodes(nodes_of_html(main)), meta,
                     files=[file.name for file in files],
                     comments=_comments(tree) if wanted.comments else ())  # fmt: skip
    absent: list[str] = []
    attached = list(files_of(read.document, files, stored, base, absent)) if stored is not None else []
    missing = f"attached files that are not in the export: {', '.join(absent)}" if absent else ""
    yield Read(read.document, "; ".join(filter(None, (decoded.note, read.note, missing))))
    yield from attached


def _files(tree: Any) -> list[AttachedFile]:
    """The files that a page lists as attached to it."""
    found = []
    for link in tree.css(".greybox a[href]"):
        path = unquote((link.attributes.get("href") or "").partition("?")[0])
        name = one_line(clean(link.text()))
        place = _FILE.search(path)
        if place is not None:
            found.append(AttachedFile(place.group(2), name, place.group(1), NO_META))
        elif "attachments/" in path:
            found.append(AttachedFile("", name, "", NO_META))
    return found


def nodes_of_html(root: Any) -> Node:
    """A parsed part of a page as nodes."""
    top = Node("")
    stack = [top]

    def enter(node: Any) -> bool:
        if node.tag == "-text":
            text = node.text_content or ""
            stack[-1].children.append(text)
            stack[-1].filled = stack[-1].filled or bool(text.strip())
            return False
        if node.tag[0] in "-!_":
            return False
        own = Node(node.tag, {key: value or "" for key, value in node.attributes.items()})
        own.filled = node.tag in _SHOWN
        stack[-1].children.append(own)
        stack[-1].filled = stack[-1].filled or own.filled
        if node.child is None:
            return False
        stack.append(own)
        return True

    def leave(node: Any) -> None:
        own = stack.pop()
        stack[-1].filled = stack[-1].filled or own.filled

    traverse(root, enter, leave)
    return top


def _number(name: str, tree: Any) -> str:
    """A page's id: in the name of its file, else where its attachments are."""
    named = _NUMBER.search(name)
    if named:
        return named.group(1)
    for place in tree.css("[data-inline-tasks-content-id]"):
        value = place.attributes.get("data-inline-tasks-content-id") or ""
        if value.isascii() and value.isdigit():
            return value
    links = (_ATTACHED_TO.search(link.attributes.get("href") or "") for link in tree.css(".greybox a[href]"))
    return next((link.group(1) for link in links if link), "")


def _title(tree: Any, spaces: list[str]) -> str:
    """The title without the name of the space before it; both may hold colons."""
    node = tree.css_first("#title-text") or tree.css_first("head > title")
    whole = one_line(clean(node.text())) if node is not None else ""
    for space in spaces:
        if whole.startswith(f"{space} : "):
            return whole[len(space) + 3 :]
    return whole.partition(" : ")[2] or whole


def _modified(said: str) -> str:
    """The last date that is said of a page, in ISO 8601; "" where its form is not known."""
    for found in reversed(_DATE.findall(" ".join(said.split()))):
        for form in _DATES:
            try:
                return datetime.strptime(found.replace("年 ", "年").replace("月 ", "月"), form).date().isoformat()
            except ValueError:
                continue
    return ""


def _comments(tree: Any) -> list[str]:
    heading = tree.css_first("#comments")
    section = heading.parent.parent if heading is not None and heading.parent is not None else None
    return (
        [markdown_of_nodes(nodes_of_html(cell)).markdown for cell in section.css("td")] if section is not None else []
    )
