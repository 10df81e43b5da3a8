"""What Confluence's own HTML writes for its macros, by the classes of its elements: exports, and views by the API."""

from __future__ import annotations

import re

from rag.sources.confluence.body.nodes import Node, beginning, first_words, text_of
from rag.sources.confluence.body.pieces import Piece, Raw, block, emoticon, image, label_of, mention, paragraph, spaced
from slm.text.names import names

_BRUSH = re.compile(r"\bbrush:\s*([\w+#.-]{1,40})")
_DROPPED = names(
    "toc-macro expand-control-icon expand-control-image confluence-information-macro-icon aui-icon "
    "plugin_pagetree page-metadata-modification-info hidden copy-heading-link-container rbtoc "
    "plugin_attachments_container"
)
_KINDS = {
    "confluence-information-macro-information": "info", "confluence-information-macro-tip": "tip",
    "confluence-information-macro-note": "note", "confluence-information-macro-warning": "warning",
    "infoMacro": "info", "tipMacro": "tip", "noteMacro": "note", "warningMacro": "warning",
}  # fmt: skip
_GETTING = "Getting issue details..."


def expand_exported(node: Node) -> list[Piece] | None:
    """What an element shows whose class says what macro it is of; None for any other."""
    classes = node.get("class").split()
    if node.name == "img":
        return _image(node, classes)
    if node.name == "script":
        return _highlighted(text_of(node), node.get("class")) if node.get("type") == "syntaxhighlighter" else []
    if node.name == "pre" and "data-syntaxhighlighter-params" in node.attributes:
        return _highlighted(None, node.get("data-syntaxhighlighter-params"), node)
    if node.name == "ul" and ("inline-task-list" in classes or "data-inline-tasks-content-id" in node.attributes):
        return _tasks(node)
    if not classes:
        return _link(node, classes) if node.name == "a" else None
    if not _DROPPED.isdisjoint(classes):
        return []
    kind = next((_KINDS[name] for name in classes if name in _KINDS), None)
    if kind is not None:
        title = next((child for child in node.elements("p", "div") if "title" in child.get("class").split()), None)
        inside = [child for child in node.children if child is not title]
        return block(*paragraph(label_of(kind, first_words(title))), *inside)
    if "expand-control" in classes or "codeHeader" in classes or "panelHeader" in classes:
        return paragraph(text_of(node))
    if "status-macro" in classes or "aui-lozenge" in classes:
        return spaced(text_of(node))
    if "jira-issue" in classes and node.get("data-jira-key"):
        return _issue(node)
    return _link(node, classes) if node.name == "a" else None


def _image(node: Node, classes: list[str]) -> list[Piece]:
    if "emoticon" in classes or "data-emoji-id" in node.attributes:
        name = next((part.removeprefix("emoticon-") for part in classes if part.startswith("emoticon-")), "")
        name = node.get("data-emoticon-name") or name
        fallback = node.get("data-emoji-fallback")
        shortname = node.get("data-emoji-short-name") or node.get("data-emoji-shortname")
        return [emoticon(name, fallback, node.get("data-emoji-id"), shortname)]
    if not _DROPPED.isdisjoint(classes) or node.get("src").startswith("images/icons/"):
        return []
    if "userLogo" in classes or "aui-avatar" in classes:
        return []
    file = node.get("data-linked-resource-default-alias")
    # An address may carry a token; only the name of a file in it is shown.
    return spaced(image([node.get("alt"), node.get("title")], file, node.get("data-image-src") or node.get("src")))


def _highlighted(code: str | None, settings: str, node: Node | None = None) -> list[Piece]:
    brush = _BRUSH.search(settings)
    language = brush.group(1).lower() if brush else ""
    opening = Raw(f'<pre><code class="language-{language}">' if language not in ("", "text", "none") else "<pre><code>")
    if code is not None:
        inner = code.strip().removeprefix("<![CDATA[").removesuffix("]]>")
        return [opening, inner, Raw("</code></pre>")]
    return [opening, *(node.children if node else ()), Raw("</code></pre>")]


def _tasks(node: Node) -> list[Piece]:
    pieces: list[Piece] = [Raw("<ul>")]
    for item in node.elements("li"):
        done = "checked" in item.get("class").split()
        pieces += [Raw(f'<li><input type="checkbox"{" checked" if done else ""}>'), *item.children, Raw("</li>")]
    return [*pieces, Raw("</ul>")]


def _issue(node: Node) -> list[Piece]:
    """An issue's key with its summary and status, where the export has got them."""
    inside = [item for item in beginning(node) if isinstance(item, Node)]
    summary, status = (
        first_words(next((item for item in inside if name in item.get("class")), None))
        for name in ("summary", "aui-lozenge")
    )
    parts = [node.get("data-jira-key"), *((summary, status) if summary and summary != _GETTING else ())]
    return spaced(" - ".join(part for part in parts if part))


def _link(node: Node, classes: list[str]) -> list[Piece] | None:
    if "user-mention" in classes or "confluence-userlink" in classes:
        return spaced(mention(text_of(node)))
    name = node.get("data-linked-resource-default-alias")
    if not name or node.get("data-linked-resource-type") != "attachment" or not node.filled:
        return None
    has_image = any(isinstance(item, Node) and item.name == "img" for item in beginning(node))
    return None if has_image or name in first_words(node) else [*node.children, f" ({name})"]
