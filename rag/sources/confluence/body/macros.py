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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from rag.sources.confluence.body.nodes import Node, parse, text_of, walk
from rag.sources.confluence.body.pieces import Piece, Raw, block, label_of, mention, paragraph, spaced
from slm.text.names import names

_BODIES = ("ac:rich-text-body", "ac:plain-text-body")
_PANELS = names("info tip note warning panel expand ui-expand ui-tab localtab card chart excerpt-panel")
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
}  # fmt: skip
_DIAGRAMS = ("drawio", "gliffy", "balsamiq", "lucidchart")
_INLINE = names("status mathinline math-inline eazy-math-inline anchor profile jira jiraissues span color")
_ISSUE = re.compile(r"\b[A-Z][A-Z0-9_]{1,20}-\d{1,9}\b")
_LANGUAGE = re.compile(r"[^\w+#.-]")
_LARGEST_DIAGRAM = 200_000
_DEEPEST_INCLUDE = 10
_LONGEST_INCLUDES = 5_000_000


@dataclass(frozen=True)
class Around:
    """What a page's text may refer to: its space and title, other pages' bodies, people's names, its child pages."""

    space: str = ""
    title: str = ""
    body: Callable[[str, str], Node | None] = lambda space, title: None
    user: Callable[[str], str] = lambda key: ""
    children: Sequence[str] = ()


@dataclass
class Conversion:
    """A page in work: the pages that are included at the place in work, and what could not be shown."""

    around: Around
    within: list[tuple[str, str]] = field(default_factory=list)
    included: int = 0
    missed: dict[str, None] = field(default_factory=dict)


class End(str):
    """Marks where what was included ends."""

    __slots__ = ()


def parameters(node: Node) -> dict[str, Node]:
    """A macro's parameters by name; the one without a name under ""."""
    named = {child.get("ac:name"): child for child in node.elements("ac:parameter")}
    default = node.first("ac:default-parameter")
    return {"": default, **named} if default is not None else named


def expand_macro(node: Node, page: Conversion) -> list[Piece]:
    """What a macro shows, as pieces."""
    name = node.get("ac:name").lower()
    given = parameters(node)
    rich, plain = node.first("ac:rich-text-body"), node.first("ac:plain-text-body")
    handler = _HANDLERS.get(name)
    if handler is not None:
        return handler(node, given, page)
    if name in _SHOWN:
        return _shown(name, given, page)
    if name in _NAVIGATION and rich is None:
        return []
    title = _text(given, "title") or _text(given, "label") if name in _PANELS else ""
    if rich is not None:
        if name in _INLINE or _text(given, "atlassian-macro-output-type").upper() == "INLINE":
            return list(rich.children)
        return block(*paragraph(label_of(name, title)), *rich.children)
    if plain is not None:
        return _code(node, given, page)
    references = _references(given.values())
    if not references:
        page.missed[name or "without a name"] = None
    return references


def _text(given: dict[str, Node], *names: str) -> str:
    """The text of the first of these parameters that has any."""
    return next(filter(None, (" ".join(text_of(given.get(name)).split()) for name in names)), "")


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
    language = _LANGUAGE.sub(
        "", _text(given, "language", "lang", "" if node.name == "ac:macro" else "language")
    ).lower()
    if body is None or not body.filled:
        return paragraph(_text(given, "title"))
    if body.name == "ac:rich-text-body" and node.get("ac:name") != "code":
        return block(*body.children)
    opening = f'<pre><code class="language-{language}">' if language not in ("", "none", "text") else "<pre><code>"
    return [*paragraph(_text(given, "title")), Raw(opening), text_of(body), Raw("</code></pre>")]


def _html(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    return block(*parse(text_of(node.first(*_BODIES))).children)


def _nothing(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    return []


def _status(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    return spaced(_text(given, "title", ""))


def _issues(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    keys = _text(given, "key") or " ".join(dict.fromkeys(_ISSUE.findall(_text(given, "", "jqlQuery", "jql"))))
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


def _shown(name: str, given: dict[str, Node], page: Conversion) -> list[Piece]:
    text = _text(given, *_SHOWN[name])
    references = [] if text else _references(given.values())
    if not text and not references:
        page.missed[name] = None
    if text and name.removeprefix("inc-").startswith(_DIAGRAMS):
        text = f"(diagram: {text})"
    return spaced(text) if name in _INLINE else [*paragraph(text), *references]


def _children(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    titles = page.around.children if not page.within and not given.keys() & {"page", ""} else ()
    return [Raw("<ul>"), *(p for title in titles for p in (Raw("<li>"), title, Raw("</li>"))), Raw("</ul>")]


def _roadmap(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    """The lanes and bars of a plan, which is JSON in a parameter."""
    try:
        plan: Any = json.loads(unquote(_text(given, "source")))
        lanes = [(lane["title"], [bar["title"] for bar in lane["bars"]]) for lane in plan["lanes"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        page.missed["roadmap"] = None
        return []
    return [p for lane, bars in lanes for p in paragraph(f"{lane}: {', '.join(map(str, bars))}")]


def _deflated(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    """A diagram whose text is a compressed parameter (base64 of raw deflate, as PlantUML's own addresses)."""
    try:
        packed = base64.b64decode(unquote(_text(given, "data")), validate=False)
        unpacked = zlib.decompressobj(-15).decompress(packed, _LARGEST_DIAGRAM).decode("utf-8")
    except (binascii.Error, ValueError, zlib.error):
        unpacked = ""
    if not unpacked:
        return _code(node, given, page) if node.first(*_BODIES) else _references(given.values())
    return [Raw("<pre><code>"), unquote(unpacked), Raw("</code></pre>")]


def _include(node: Node, given: dict[str, Node], page: Conversion) -> list[Piece]:
    """Another page, or its excerpt, in the place of the macro; its title alone where it is not known or a cycle."""
    link = next((item for parameter in given.values() for item in walk(parameter)
                 if isinstance(item, Node) and item.get("ri:content-title")), None)  # fmt: skip
    if link is not None:
        space, title = link.get("ri:space-key"), link.get("ri:content-title")
    else:
        space, _, title = _text(given, "", "page", "pageTitle").rpartition(":")
    space = space or (page.within[-1][0] if page.within else page.around.space)
    if not title:
        page.missed[node.get("ac:name").lower()] = None
        return []
    here = (space, title)
    if here in page.within or (here == (page.around.space, page.around.title) and node.get("ac:name") == "include"):
        return paragraph(f"({title}: a page that includes itself)")
    few = len(page.within) < _DEEPEST_INCLUDE and page.included <= _LONGEST_INCLUDES
    found = page.around.body(space, title) if few else None
    if found is not None:
        page.included += sum(len(item) if isinstance(item, str) else 20 for item in walk(found))
        if node.get("ac:name").lower() == "excerpt-include":
            found = _excerpt(found, _text(given, "name"))
    if found is None or page.included > _LONGEST_INCLUDES:
        return paragraph(f"(see: {title})")
    page.within.append(here)
    return block(*found.children, End())


def _excerpt(page: Node, name: str) -> Node | None:
    for item in walk(page):
        if isinstance(item, Node) and item.get("ac:name").lower() == "excerpt" and item.name.startswith("ac:"):
            body = item.first("ac:rich-text-body")
            if body is not None and (not name or _text(parameters(item), "name") == name):
                return body
    return None


_Handler = Callable[[Node, dict[str, Node], Conversion], list[Piece]]
_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(("code", "noformat", "code-block", "codeblock", "paste-code-macro", "plantuml"), _code),
    **dict.fromkeys(("html", "html-include", "html-wrap"), _html),
    **dict.fromkeys(("style", "css", "script", "javascript"), _nothing),
    **dict.fromkeys(("include", "excerpt-include"), _include),
    **dict.fromkeys(("jira", "jiraissues"), _issues),
    **dict.fromkeys(("children", "childpages"), _children),
    **dict.fromkeys(("plantumlcloud", "plantumlrender"), _deflated),
    "status": _status, "profile": _profile, "roadmap": _roadmap,
}  # fmt: skip
