"""Turns the editor's own document format (ADF, JSON) into the storage format, for pages that have no other body."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_ELEMENTS = {
    "paragraph": "p", "bulletList": "ul", "orderedList": "ol", "listItem": "li", "blockquote": "blockquote",
    "table": "table", "tableRow": "tr", "tableHeader": "th", "tableCell": "td", "taskList": "ac:task-list",
    "decisionList": "ul", "decisionItem": "li", "layoutSection": "div", "layoutColumn": "div", "caption": "p",
}  # fmt: skip
_MARKS = {"strong": "strong", "em": "em", "code": "code", "strike": "del", "underline": "u"}


def storage_of_adf(document: str) -> str:
    """A document of the editor as a page in the storage format; "" for what is none."""
    try:
        root = json.loads(document)
    except (ValueError, RecursionError):
        return ""
    out: list[str] = []
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            out.append(node)
        elif isinstance(node, dict):
            before, after = _around(node)
            out.append(before)
            stack.append(after)
            content = node.get("content")
            stack.extend(reversed(content if isinstance(content, list) else []))
    return "".join(out)


def _around(node: dict[str, Any]) -> tuple[str, str]:
    """What stands before and behind the content of a node."""
    kind = str(node.get("type", ""))
    given = node.get("attrs")
    attributes: dict[str, Any] = given if isinstance(given, dict) else {}

    def said(name: str) -> str:
        value = attributes.get(name)
        return escape(str(value)) if isinstance(value, (str, int)) else ""

    if kind == "text":
        return _text(node), ""
    if kind == "heading":
        level = said("level") if said("level") in tuple("123456") else "6"
        return f"<h{level}>", f"</h{level}>"
    if kind in ("tableHeader", "tableCell"):
        spans = "".join(f' {name}="{said(name)}"' for name in ("colspan", "rowspan") if said(name))
        return f"<{_ELEMENTS[kind]}{spans}>", f"</{_ELEMENTS[kind]}>"
    if kind in ("taskItem", "blockTaskItem"):
        status = "complete" if said("state") == "DONE" else "incomplete"
        return f"<ac:task><ac:task-status>{status}</ac:task-status><ac:task-body>", "</ac:task-body></ac:task>"
    if kind == "codeBlock":
        language = f'<code class="language-{said("language")}">' if said("language") else "<code>"
        return f"<pre>{language}", "</code></pre>"
    if kind in ("panel", "expand", "nestedExpand"):
        name, title = (said("panelType") or "panel", "") if kind == "panel" else ("expand", said("title"))
        # The editor calls the storage format's "note" a warning, and its "warning" an error.
        name = {"warning": "note", "error": "warning", "success": "tip", "note": "panel"}.get(name, name)
        named = f'<ac:structured-macro ac:name="{name}"><ac:parameter ac:name="title">{title}</ac:parameter>'
        return f"{named}<ac:rich-text-body>", "</ac:rich-text-body></ac:structured-macro>"
    if kind in ("extension", "inlineExtension", "bodiedExtension"):
        opening, closing = _macro(attributes), "</ac:structured-macro>"
        if kind == "bodiedExtension":
            opening, closing = f"{opening}<ac:rich-text-body>", f"</ac:rich-text-body>{closing}"
        return opening, closing
    if kind in ("media", "mediaInline"):
        return f'<ac:image ac:alt="{said("alt")}"><ri:attachment ri:filename="{said("__fileName")}"/></ac:image>', ""
    simple = {
        "hardBreak": "<br/>", "rule": "<hr/>", "emoji": f'<ac:emoticon ac:emoji-fallback="{said("text")}" '
                 f'ac:emoji-shortname="{said("shortName")}"/>',
        "date": f'<time datetime="{_day(attributes.get("timestamp"))}"/>',
        "status": f'<span class="status-macro">{said("text")}</span>',
        "mention": f'<a class="user-mention">{said("text")}</a>',
        "inlineCard": f'<a href="{said("url")}"></a>', "blockCard": f'<p><a href="{said("url")}"></a></p>',
        "embedCard": f'<p><a href="{said("url")}"></a></p>',
    }  # fmt: skip
    if kind in simple:
        return simple[kind], ""
    element = _ELEMENTS.get(kind)
    return (f"<{element}>", f"</{element}>") if element else ("", "")


def _macro(attributes: dict[str, Any]) -> str:
    """The beginning of a macro with its parameters, as the storage format has it."""
    parameters = attributes.get("parameters")
    given = parameters.get("macroParams") if isinstance(parameters, dict) else None
    key = str(attributes.get("extensionKey", "")).rpartition(":")[2]
    markup = f'<ac:structured-macro ac:name="{escape(key)}">'
    for name, parameter in given.items() if isinstance(given, dict) else ():
        value = parameter.get("value") if isinstance(parameter, dict) else None
        if isinstance(value, (str, int)):
            markup += f'<ac:parameter ac:name="{escape(str(name))}">{escape(str(value))}</ac:parameter>'
    return markup


def _text(node: dict[str, Any]) -> str:
    text = escape(str(node.get("text", "")), quote=False)
    marks = node.get("marks")
    for mark in marks if isinstance(marks, list) else []:
        name = _MARKS.get(str(mark.get("type"))) if isinstance(mark, dict) else None
        text = f"<{name}>{text}</{name}>" if name else text
    return text


def _day(timestamp: Any) -> str:
    """The day of a moment in milliseconds, as text or a number."""
    from datetime import datetime, timezone

    try:
        return datetime.fromtimestamp(int(timestamp) / 1000, timezone.utc).date().isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
