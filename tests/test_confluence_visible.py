"""Whatever a page is made of: each word that its readers see is in the text once, in its order, and nothing else is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.sources.confluence.body.adf import storage_of_adf
from tests.tiny_confluence import markdown


@dataclass
class _Page:
    """Choices for a page, and the words put on it so far: to be seen, and not."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    seen: list[str] = field(default_factory=list)
    hidden: int = 0

    def one_of(self, *choices: str) -> str:
        return str(self.draw(st.sampled_from(choices)))

    def some(self, most: int = 2) -> range:
        return range(self.draw(st.integers(1, most)))

    def word(self) -> str:
        self.seen.append(f"w{len(self.seen)}x")
        return self.seen[-1]

    def secret(self) -> str:
        self.hidden += 1
        return f"h{self.hidden}x"


def _macro(page: _Page, name: str, title: str, body: str) -> str:
    given = f'<ac:parameter ac:name="title">{title}</ac:parameter>' if title else ""
    given += f'<ac:parameter ac:name="breakoutWidth">{page.secret()}</ac:parameter>'
    return f'<ac:structured-macro ac:name="{name}" ac:macro-id="{page.secret()}">{given}{body}</ac:structured-macro>'


def _inline(page: _Page) -> str:
    kind = page.one_of("text", "mark", "link", "title", "comment", "status", "issue", "mention", "span", "anchor")
    if kind == "mark":
        name = page.one_of("strong", "em", "code", "u", "del", "sup", "sub")
        return f"<{name}>{page.word()}</{name}>"
    if kind == "link":
        body = page.one_of("ac:link-body", "ac:plain-text-link-body")
        inside = page.word() if body == "ac:link-body" else f"<![CDATA[{page.word()}]]>"
        return f'<ac:link><ri:page ri:content-title="{page.secret()}" /><{body}>{inside}</{body}></ac:link>'
    if kind == "title":
        return f'<ac:link><ri:page ri:space-key="{page.secret()}" ri:content-title="{page.word()}" /></ac:link>'
    if kind == "comment":
        marker = f'<ac:inline-comment-marker ac:ref="{page.secret()}">'
        return f"{marker}{page.word()}</ac:inline-comment-marker>"
    if kind == "status":
        return _macro(page, "status", page.word(), "")
    if kind == "issue":
        key = f'<ac:parameter ac:name="key">{page.word()}</ac:parameter>'
        return f'<ac:structured-macro ac:name="jira" ac:macro-id="{page.secret()}">{key}</ac:structured-macro>'
    if kind == "mention":
        return f'<ac:link><ri:user ri:username="{page.word()}" ri:userkey="{page.secret()}" /></ac:link>'
    if kind == "span":
        return f'<span class="{page.secret()}" style="color: red">{page.word()}</span>'
    if kind == "anchor":
        return f'<a href="https://e.example/{page.secret()}">{page.word()}</a>'
    return page.word()


def _line(page: _Page) -> str:
    return " ".join(_inline(page) for _ in page.some(3))


def _block(page: _Page, depth: int) -> str:
    def rich() -> str:
        return f"<ac:rich-text-body>{_blocks(page, depth - 1)}</ac:rich-text-body>"

    flat = ("p", "heading", "code", "pre", "image", "quote")
    deep = ("panel", "strange", "plain", "layout", "list", "tasks", "table", "extension", "copy", "div")
    kind = page.one_of(*flat, *(deep if depth else ()))
    if kind == "heading":
        level = page.one_of("1", "2", "3")
        return f"<h{level}>{_line(page)}</h{level}>"
    if kind == "code":
        title = page.word()
        body = f"<![CDATA[if [[ {page.word()} ]] >{page.word()}; a[]]]]><![CDATA[> {page.word()}\n  <b>&amp;]]>"
        return _macro(page, page.one_of("code", "noformat"), title, f"<ac:plain-text-body>{body}</ac:plain-text-body>")
    if kind == "pre":
        return f"<pre>{page.word()}<br/>  {page.word()}</pre>"
    if kind == "image":
        file = f'<ri:attachment ri:filename="{page.word()}.png" />'
        return f'<ac:image ac:width="{page.secret()}">{file}<ac:caption><p>{_line(page)}</p></ac:caption></ac:image>'
    if kind == "quote":
        return f"<blockquote><p>{_line(page)}</p></blockquote>"
    if kind == "panel":
        name = page.one_of("info", "note", "tip", "warning", "panel", "expand", "ui-tab")
        return _macro(page, name, page.word(), rich())
    if kind == "strange":
        return _macro(page, page.one_of("never-heard-of", "details", "section", "excerpt", "drawio", "toc"), "", rich())
    if kind == "plain":
        body = f"<ac:plain-text-body><![CDATA[{page.word()}]]></ac:plain-text-body>"
        return _macro(page, page.one_of("mathblock", "latex", "mermaid-cloud", "never-heard-of"), "", body)
    if kind == "layout":
        cells = "".join(f"<ac:layout-cell>{_blocks(page, depth - 1)}</ac:layout-cell>" for _ in page.some())
        section = f'<ac:layout-section ac:type="{page.secret()}">{cells}</ac:layout-section>'
        return f"<ac:layout>{section}</ac:layout>"
    if kind == "list":
        name = page.one_of("ul", "ol")
        items = "".join(f"<li>{_line(page)}{_blocks(page, depth - 1)}</li>" for _ in page.some())
        return f"<{name}>{items}</{name}>"
    if kind == "tasks":
        return f"<ac:task-list>{''.join(_task(page) for _ in page.some())}</ac:task-list>"
    if kind == "table":
        return _table(page, depth)
    if kind in ("extension", "copy"):
        attribute = f'<ac:adf-attribute key="local-id">{page.secret()}</ac:adf-attribute>'
        own = [_blocks(page, depth - 1) for _ in page.some()] if kind == "extension" else [""]
        nodes = "".join(
            f'<ac:adf-node type="panel">{attribute}<ac:adf-content>{one}</ac:adf-content></ac:adf-node>' for one in own
        )
        copied = page.secret() if kind == "extension" else page.word()
        fallback = f"<ac:adf-fallback><p>{copied}</p></ac:adf-fallback>"
        return f"<ac:adf-extension>{nodes}{fallback}</ac:adf-extension>"
    if kind == "div":
        return f'<div class="{page.secret()}">{_blocks(page, depth - 1)}</div>'
    return f"<p>{_line(page)}</p>"


def _task(page: _Page) -> str:
    said = f"<ac:task-id>{page.secret()}</ac:task-id><ac:task-uuid>{page.secret()}</ac:task-uuid>"
    status = f"<ac:task-status>{page.one_of('complete', 'incomplete')}</ac:task-status>"
    return f"<ac:task>{said}{status}<ac:task-body>{_line(page)}</ac:task-body></ac:task>"


def _table(page: _Page, depth: int) -> str:
    """Two columns, with what a cell may hold; the first row may be its header, a cell may span rows or columns."""
    head = page.one_of("th", "td")
    wide = page.draw(st.booleans())
    span = ' colspan="2"' if wide else ""
    cells = [f"<{head}{span}>{_line(page)}</{head}>" for _ in range(1 if wide else 2)]
    rows = [f"<tr>{''.join(cells)}</tr>"]
    tall = page.draw(st.booleans())
    left = f"<td rowspan='2'>{_blocks(page, depth - 1)}</td>" if tall else f"<td>{_line(page)}</td>"
    rows.append(f"<tr>{left}<td>{_blocks(page, depth - 1)}</td></tr>")
    rows.append(f"<tr>{'' if tall else f'<td>{_line(page)}</td>'}<td>{_blocks(page, depth - 1)}</td></tr>")
    columns = f'<colgroup><col style="width: {page.secret()}" /></colgroup>'
    return f"<table>{columns}<tbody>{''.join(rows)}</tbody></table>"


def _blocks(page: _Page, depth: int) -> str:
    between = page.one_of("", "\n", "\n    ")
    return between.join(_block(page, depth) for _ in page.some())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_word_to_be_seen_is_in_the_text_in_its_order_and_no_other(data: st.DataObject) -> None:
    page = _Page(data.draw)
    storage = _blocks(page, 2)
    text = markdown(storage)
    assert list(dict.fromkeys(re.findall(r"w\d+x", text))) == page.seen, (storage, text)
    assert not re.findall(r"h\d+x|<ac:|<ri:|CDATA|\]\]>;", text), (storage, text)
    # As an XML export writes it.
    assert markdown(storage.replace("]]>", "]] >")) == text


def _node(page: _Page, depth: int) -> dict[str, Any]:
    """A block of the editor's own format."""

    def inside() -> list[dict[str, Any]]:
        return [_node(page, depth - 1) for _ in page.some()]

    def text() -> dict[str, Any]:
        marks = [{"type": page.one_of("strong", "em", "code", "link", "textColor"), "attrs": {"href": page.secret()}}]
        return {"type": "text", "text": f"{page.word()} ", "marks": marks if page.draw(st.booleans()) else []}

    kind = page.one_of("p", "code", *(("panel", "expand", "list", "table", "layout", "macro") if depth else ()))
    own = {"localId": page.secret()}
    if kind == "code":
        return {"type": "codeBlock", "attrs": {"language": "java"}, "content": [{"type": "text", "text": page.word()}]}
    if kind == "panel":
        return {"type": "panel", "attrs": {"panelType": "info", **own}, "content": inside()}
    if kind == "expand":
        return {"type": page.one_of("expand", "nestedExpand"), "attrs": {"title": page.word()}, "content": inside()}
    if kind == "list":
        item = {"type": "listItem", "content": inside()}
        return {"type": page.one_of("bulletList", "orderedList"), "content": [item]}
    if kind == "table":
        cell = {"type": page.one_of("tableHeader", "tableCell"), "attrs": {"colspan": 1, **own}, "content": inside()}
        return {"type": "table", "attrs": own, "content": [{"type": "tableRow", "content": [cell]}]}
    if kind == "layout":
        return {"type": "layoutSection", "content": [{"type": "layoutColumn", "content": inside()}]}
    if kind == "macro":
        given = {
            "macroParams": {"id": {"value": page.secret()}},
            "macroMetadata": {"macroId": {"value": page.secret()}},
        }
        attrs = {"extensionKey": page.one_of("details", "excerpt", "unheard-of"), "parameters": given, **own}
        return {"type": "bodiedExtension", "attrs": attrs, "content": inside()}
    status = {"type": "status", "attrs": {"text": page.word(), "color": page.secret(), **own}}
    return {"type": "paragraph", "attrs": own, "content": [status, text(), text()]}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_the_same_holds_of_a_page_that_has_only_the_editors_own_format(data: st.DataObject) -> None:
    page = _Page(data.draw)
    document = {"type": "doc", "content": [_node(page, 2)]}
    text = markdown(storage_of_adf(json.dumps(document)))
    assert list(dict.fromkeys(re.findall(r"w\d+x", text))) == page.seen, (document, text)
    assert not re.findall(r"h\d+x|<ac:", text), (document, text)


def test_macros_of_the_editors_own_format_show_what_their_parameters_say() -> None:
    def macro(name: str, **parameters: str) -> dict[str, Any]:
        given = {"macroParams": {key: {"value": value} for key, value in parameters.items()}}
        return {"type": "inlineExtension", "attrs": {"extensionKey": name, "parameters": given, "localId": "uuid"}}

    inside = [{"type": "text", "text": "see "}, macro("jira", key="ABC-9", serverId="5aa"), macro("toc", maxLevel="3")]
    document = {"type": "doc", "content": [{"type": "paragraph", "content": inside}]}
    assert markdown(storage_of_adf(json.dumps(document))) == "see ABC-9"
