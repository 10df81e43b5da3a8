"""Macros that show other pages: their whole text, their excerpt, the titles of those below them."""

from __future__ import annotations

from collections.abc import Mapping

from rag.sources.confluence.body.around import Conversion, End, parameters, said
from rag.sources.confluence.body.nodes import Node, walk
from rag.sources.confluence.body.pieces import Piece, Raw, block, paragraph

_DEEPEST_INCLUDE = 10
_LONGEST_INCLUDES = 5_000_000
_DEEPEST_LIST, _LONGEST_LIST = 10, 5000


def include(node: Node, given: Mapping[str, Node], page: Conversion) -> list[Piece]:
    """Another page, or its excerpt, in the place of the macro; its title alone where it is not known or a cycle."""
    name = node.get("ac:name").lower()
    space, title = _target(given, page, "", "page", "pageTitle")
    if not title:
        page.missed[name] = None
        return []
    here = (space, title)
    if here in page.within or (here == (page.around.space, page.around.title) and name == "include"):
        return paragraph(f"({title}: a page that includes itself)")
    few = len(page.within) < _DEEPEST_INCLUDE and page.included <= _LONGEST_INCLUDES
    found = page.around.body(space, title) if few else None
    if found is not None:
        page.included += sum(len(item) if isinstance(item, str) else 20 for item in walk(found))
        if name == "excerpt-include":
            found = _excerpt(found, said(given, "name"))
    if found is None or page.included > _LONGEST_INCLUDES:
        page.elsewhere[title] = None
        return paragraph(f"(see: {title})")
    page.within.append(here)
    return block(*found.children, End())


def children(node: Node, given: Mapping[str, Node], page: Conversion) -> list[Piece]:
    """The titles of the pages below this one or the one that is named, as many levels of them as are asked for."""
    if page.within:
        return []
    space, title = _target(given, page, "page", "")
    depth = _DEEPEST_LIST if said(given, "all") == "true" else int(_number(said(given, "depth")) or 1)
    first = int(_number(said(given, "first")) or _LONGEST_LIST)
    seen = {title}
    pieces: list[Piece] = []

    def listed(title: str, left: int) -> None:
        fresh = [one for one in page.around.children(space, title) if one not in seen][:first]
        pieces.extend([Raw("<ul>")] if fresh else [])
        for one in fresh:
            if len(seen) > _LONGEST_LIST:
                break
            seen.add(one)
            pieces.extend((Raw("<li>"), one))
            if left > 1:
                listed(one, left - 1)
            pieces.append(Raw("</li>"))
        pieces.extend([Raw("</ul>")] if fresh else [])

    listed(title or page.around.title, min(depth, _DEEPEST_LIST))
    return pieces


def _target(given: Mapping[str, Node], page: Conversion, *names: str) -> tuple[str, str]:
    """The space and title of the page that a parameter means; a title of "" where none does."""
    link = next((item for parameter in given.values() for item in walk(parameter)
                 if isinstance(item, Node) and item.get("ri:content-title")), None)  # fmt: skip
    if link is not None:
        space, title = link.get("ri:space-key"), link.get("ri:content-title")
    else:
        space, _, title = said(given, *names).rpartition(":")
    return space or (page.within[-1][0] if page.within else page.around.space), title


def _number(text: str) -> str:
    return text if text.isascii() and text.isdigit() and len(text) < 5 else ""


def _excerpt(page: Node, name: str) -> Node | None:
    for item in walk(page):
        if isinstance(item, Node) and item.get("ac:name").lower() == "excerpt" and item.name.startswith("ac:"):
            body = item.first("ac:rich-text-body")
            if body is not None and (not name or said(parameters(item), "name") == name):
                return body
    return None
