"""The macros of the storage format: what each shows on the page. It knows nothing of elements that are no macros.

Parameters are shown only where they are content; all others steer the macro. A macro that is not known here shows its
body; one that has none, and refers to nothing, is told of by name.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

from rag.sources.confluence.body.around import Conversion, parameters, said
from rag.sources.confluence.body.included import children, include
from rag.sources.confluence.body.nodes import Node, parse, text_of, walk
from rag.sources.confluence.body.pieces import Piece, Raw, block, label_of, mention, paragraph, spaced
from slm.text.names import names

_BODIES = ("ac:rich-text-body", "ac:plain-text-body")
_PANELS = names(
    "info tip note warning panel expand ui-expand ui-tab localtab tab tabitem tab-item aura-tab aura-panel card chart "
    "excerpt-panel"
)
# They show what the program finds elsewhere, or steer the page: their absence loses nothing that the page says.
_NAVIGATION = names(
    "toc anchor pagetree pagetreesearch livesearch recently-updated recently-updated-dashboard contentbylabel "
    "contributors contributors-summary blog-posts navmap style create-from-template create-space-button "
    "change-history popular-labels favpages search recently-used-labels related-labels space-attachments spaces "
    "network tasks-report-macro tasks-report attachments gallery profile-picture listlabels "
    "content-report-table index junitreport space-index spacejump welcome-message report-table detailssummary "
    "userlister page-index clear scrollbar"
)
# Macros whose content is one parameter: the first of these that is there.
_SHOWN = {
    **dict.fromkeys(("mathblock", "mathinline", "math-block", "math-inline", "latex", "eazy-math-inline", "katex"),
                    ("body", "content", "equation", "formula", "latex", "")),
    **dict.fromkeys(("drawio", "drawio-sketch", "inc-drawio"), ("diagramDisplayName", "diagramName", "baseName")),
    **dict.fromkeys(("gliffy", "balsamiq", "lucidchart", "lucidchart-macro"), ("displayName", "documentName", "name")),
    **dict.fromkeys(("view-file", "viewpdf", "viewdoc", "viewxls", "viewppt", "viewfile", "multimedia"), ("name", "")),
    **dict.fromkeys(("widget", "iframe"), ("url", "src")),
    **dict.fromkeys(("ui-button", "aura-button", "button"), ("title", "label", "text")),
}  # fmt: skip
_DIAGRAMS = ("drawio", "gliffy", "balsamiq", "lucidchart")
_INLINE = names("status mathinline math-inline eazy-math-inline anchor profile jira jiraissues span color")
# They arrange or mark what is in them.
_FRAMES = names(
    "section column excerpt details div align float quote table-plus table-filter table-joiner pivot-table "
    "table-chart numberedheadings ui-tabs ui-steps ui-step ui-children deck localtabgroup multiexcerpt footnote "
    "tablecell tablerow cell row bgcolor highlight horizontalrule easy-html-macro excerpt-hidden"
)
_ISSUE = re.compile(r"\b[A-Z][A-Z0-9_]{1,20}-\d{1,9}\b")
_LANGUAGE = re.compile(r"[^\w+#.-]")
_LARGEST_DIAGRAM = 200_000


def expand_macro(node: Node, page: Conversion) -> list[Piece]:
    """What a macro shows, as pieces."""
    name = node.get("ac:name").lower()
    given = parameters(node)
    rich, plain = node.first("ac:rich-text-body"), node.first("ac:plain-text-body")
    handler = _HANDLERS.get(name)
    if handler is not None:
        return handler(node, given, page)
    if name in _SHOWN and (rich is None or not rich.filled):
        return _shown(name, given, plain, page)
    if name in _NAVIGATION and (rich is None or not rich.filled):
        return []
    title = said(given, "title") or said(given, "label") if name in _PANELS else ""
    if name not in _KNOWN and any(body is not None and body.filled for body in (rich, plain)):
        page.strange[name or "without a name"] = None
    if rich is not None:
        if name in _INLINE or said(given, "atlassian-macro-output-type").upper() == "INLINE":
            return list(rich.children)
        return block(*paragraph(label_of(name, title)), *rich.children)
    if plain is not None:
        return _code(node, given, page)
    references = _references(given.values())
    if not references:
        page.missed[name or "without a name"] = None
    return references


def _address(parameter: Node | None) -> str:
    """The address that a parameter names."""
    url = parameter.first("ri:url") if parameter is not None else None
    return url.get("ri:value") if url is not None else ""


def _references(nodes: Iterable[Node]) -> list[Piece]:
    """Files and pages that parameters name."""
    found: list[Piece] = []
    for parameter in nodes:
        for item in walk(parameter):
            name = item.get("ri:filename") or item.get("ri:content-title") if isinstance(item, Node) else ""
            found += spaced(name)
    return found


def _code(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    body = node.first(*_BODIES)
    named = said(given, "language", "lang", "" if node.name == "ac:macro" else "language")
    language = _LANGUAGE.sub("", named.partition("/")[0]).lower()  # the editor has "html/xml"
    if body is None or not body.filled:
        return paragraph(said(given, "title"))
    if body.name == "ac:rich-text-body" and node.get("ac:name") != "code":
        return block(*body.children)
    opening = f'<pre><code class="language-{language}">' if language not in ("", "none", "text") else "<pre><code>"
    return [*paragraph(said(given, "title")), Raw(opening), text_of(body), Raw("</code></pre>")]


def _html(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    return block(*parse(text_of(node.first(*_BODIES))).children)


def _markdown(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    from markdown_it import MarkdownIt

    written = MarkdownIt("commonmark", {"html": False}).enable("table").render(text_of(node.first(*_BODIES)))
    return block(*parse(written).children)


def _nothing(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    return []


def _status(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    return spaced(said(given, "title", ""))


def _issues(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    keys = said(given, "key") or " ".join(dict.fromkeys(_ISSUE.findall(said(given, "", "jqlQuery", "jql"))))
    if not keys:
        page.missed[node.get("ac:name").lower()] = None
    return spaced(keys)


def _profile(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    people = [item for parameter in given.values() for item in walk(parameter) if isinstance(item, Node)]
    return spaced(" ".join(mention(person(user, page)) for user in people if user.name == "ri:user"))


def person(user: Node, page: Conversion) -> str:
    """The name of who a reference means; "" when it is not known."""
    name = user.get("ri:username")
    return next(filter(None, (page.around.user(user.get(key)) for key in ("ri:userkey", "ri:account-id"))), name)


def _shown(name: str, given: dict[str, Node], plain: Node | None, page: Conversion) -> list[Piece]:
    text = " ".join(text_of(plain).split()) or said(given, *_SHOWN[name])
    text = text or next(filter(None, (_address(given.get(parameter)) for parameter in _SHOWN[name])), "")
    references = [] if text else _references(given.values())
    if not text and not references:
        page.missed[name] = None
    if text and name.removeprefix("inc-").startswith(_DIAGRAMS):
        text = f"(diagram: {text})"
    return spaced(text) if name in _INLINE else [*paragraph(text), *references]


def _roadmap(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    """The lanes and bars of a plan, which is JSON in a parameter."""
    try:
        plan: Any = json.loads(unquote(said(given, "source")))
        lanes = [(lane["title"], [bar["title"] for bar in lane["bars"]]) for lane in plan["lanes"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        page.missed["roadmap"] = None
        return []
    return [p for lane, bars in lanes for p in paragraph(f"{lane}: {', '.join(map(str, bars))}")]


def _deflated(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    """A diagram whose text is a compressed parameter (base64 of raw deflate, as PlantUML's own addresses)."""
    try:
        packed = base64.b64decode(unquote(said(given, "data")), validate=False)
        unpacked = zlib.decompressobj(-15).decompress(packed, _LARGEST_DIAGRAM).decode("utf-8")
    except (binascii.Error, ValueError, zlib.error):
        unpacked = ""
    if not unpacked:
        return _code(node, given, page) if node.first(*_BODIES) else _references(given.values())
    return [Raw("<pre><code>"), unquote(unpacked), Raw("</code></pre>")]


_Handler = Callable[[Node, dict[str, Node], Conversion], list[Piece]]
_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(("code", "noformat", "code-block", "codeblock", "paste-code-macro", "plantuml"), _code),
    **dict.fromkeys(("html", "html-include", "html-wrap"), _html),
    **dict.fromkeys(("markdown", "markdown-macro"), _markdown),
    **dict.fromkeys(("style", "css", "script", "javascript"), _nothing),
    **dict.fromkeys(("include", "excerpt-include"), include),
    **dict.fromkeys(("jira", "jiraissues"), _issues),
    **dict.fromkeys(("children", "childpages"), children),
    **dict.fromkeys(("plantumlcloud", "plantumlrender"), _deflated),
    "status": _status, "profile": _profile, "roadmap": _roadmap,
}  # fmt: skip
_KNOWN = _PANELS | _NAVIGATION | _INLINE | _FRAMES | _SHOWN.keys() | _HANDLERS.keys()
