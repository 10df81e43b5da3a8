"""What readers of laid-out files hand on: HTML, which the one reader of HTML makes into a document.

So lists, tables with merged cells and characters that Markdown would take for marks are treated in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rag.document import Document, sections_of
from rag.sources.html.page import html_to_markdown
from rag.sources.reader import titled
from slm.text.visible import one_line

__all__ = ["TableCell", "document_of", "escape", "html_list", "html_table"]


@dataclass
class TableCell:
    """What a cell holds as HTML, and how many columns and rows it spans."""

    html: str
    columns: int = 1
    rows: int = 1


def html_table(rows: Sequence[Sequence[TableCell]], heads: int = 0) -> str:
    """A table; without a row that is said to be its header, the first one is."""
    captions: list[str] = []
    while not heads and len(rows) > 2 and len(rows[0]) == 1 and rows[0][0].columns > 1:
        captions.append(f"<p>{rows[0][0].html}</p>\n")  # across the whole table, and so a title and no header
        rows = rows[1:]
    if not heads and len(rows) > 1 and sum(cell.columns for cell in rows[0]) > 1:
        heads = _head_rows(rows)
    lines = [*captions, "<table>"]
    for number, row in enumerate(rows):
        name = "th" if number < heads else "td"
        cells = (f'<{name} colspan="{c.columns}" rowspan="{c.rows}">{c.html}</{name}>' for c in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>\n"])


def _head_rows(rows: Sequence[Sequence[TableCell]]) -> int:
    """One, or more where the first row has names of groups of columns beside names that reach further down."""
    deep = max((cell.rows for cell in rows[0]), default=1)
    return deep if 1 < deep < len(rows) and any(cell.columns > 1 for cell in rows[0]) else 1


def html_list(items: Sequence[tuple[int, str, str]]) -> str:
    """A list of (level from 0, number or "" for a bullet, HTML); levels that are left out do not matter."""
    out: list[str] = []
    open_lists: list[tuple[int, str]] = []
    for level, number, html in items:
        kind = "ol" if number else "ul"
        while open_lists and (open_lists[-1][0] > level or open_lists[-1] == (level, "ul" if number else "ol")):
            out.append(f"</li></{open_lists.pop()[1]}>")
        if open_lists and open_lists[-1][0] == level:
            out.append("</li>")
        else:
            out.append(f"<{kind}>")
            open_lists.append((level, kind))
        out.append(f'<li value="{number}">{html}' if number else f"<li>{html}")
    out += [f"</li></{kind}>" for _, kind in reversed(open_lists)]
    return "".join(out) + "\n"


def document_of(html: str, title: str, name: str) -> Document:
    """A document of HTML; titled by `title`, by its only top heading or by `name`."""
    sections = sections_of(html_to_markdown(html))
    tops = {section.headings[:1] for section in sections}
    alone = next(iter(tops)) if len(tops) == 1 else ()
    return titled(sections, one_line(title) or (alone[0] if alone else name), name)
