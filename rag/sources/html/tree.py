"""Walks a parsed page without recursion, and says which of its elements a reader sees.

It knows nothing of Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


_DROPPED = _names(
    "script style template noscript iframe object embed svg canvas head audio video map area datalist title meta "
    "link input button select textarea option optgroup output progress meter rp rt rtc noembed noframes "
    "annotation annotation-xml"
)
# A site's frame around the page. A note beside an article's text (aside) belongs to the article.
_CHROME_ROLES = frozenset(("navigation", "contentinfo", "search", "complementary"))
# Names of columns of line numbers, where numbers are all they hold and code stands beside them.
_LINE_NUMBERS = re.compile(r"(?:^|\s)(?:linenos?|lineno|gutter|line-numbers-rows)(?:\s|$)")
_ZERO = re.compile(r"0+(?:\.0*)?(?:[a-z]{1,4}|%)?")
_NUMBERS = re.compile(r"[\d\s.:]*")
_MOST_NUMBERS = 50_000  # parts of a column of numbers
_CODE = ("pre", "code")
_BESIDE = 5  # a column is a cell in a row in a body of a table, at most
_DEPTH = 100_000
_FRAME = "data-slm-frame"  # marks what is_dropped takes for the site's frame


def traverse(root: Any, enter: Callable[[Any], bool], leave: Callable[[Any], None]) -> None:
    """Visit a node and all below it; `enter` says whether to go inside, `leave` follows each that was gone into."""
    node, depth = root, 0
    while True:
        inside = enter(node)
        child = node.child if inside else None
        if child is not None:
            node, depth = child, depth + 1
            continue
        if inside:
            leave(node)
        while depth and node.next is None:
            node, depth = node.parent, depth - 1
            leave(node)
        if not depth:
            return
        node = node.next


def is_dropped(node: Any) -> bool:
    """Whether an element and all in it is not part of the text: code for the browser, controls, hidden by itself."""
    tag: str = node.tag
    if tag[0] in "-!_":
        return tag != "-text"
    if tag in ("html", "body"):
        return False  # hidden until a script shows them: a page that hides all of itself is still one
    if tag in _DROPPED:
        return True
    attributes = node.attributes
    if not attributes:
        return False
    if _FRAME in attributes:
        return True
    if "hidden" in attributes and attributes["hidden"] != "until-found" and attributes.get("role") != "tabpanel":
        return True
    if attributes.get("aria-hidden") == "true" and attributes.get("role") != "tabpanel":
        return True
    if _LINE_NUMBERS.search(attributes.get("class") or "") and _numbers_code(node):
        return True
    return is_hiding(attributes.get("style") or "")


def _numbers_code(node: Any) -> bool:
    """Whether an element holds nothing but numbers and stands in or beside code."""
    read = 0

    def only_numbers(part: Any) -> bool:
        nonlocal read
        read += 1
        if part.tag == "-text" and not _NUMBERS.fullmatch(part.text_content or ""):
            read = _MOST_NUMBERS
        return read < _MOST_NUMBERS

    traverse(node, only_numbers, lambda _: None)
    around = node
    for _ in range(_BESIDE):
        if read >= _MOST_NUMBERS or around is None or around.tag in ("body", "main", "article", "-document"):
            return False
        if around.tag in _CODE or around.css_first("pre, code") is not None:
            return True
        around = around.parent
    return False


def is_hiding(style: str) -> bool:
    """Whether a style attribute makes its element invisible, and all in it whatever their own styles are."""
    for declaration in style.lower().split(";")[:100]:
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.replace("!important", "").strip()
        if (name, value) == ("display", "none"):
            return True
        if name == "opacity" and _ZERO.fullmatch(value):
            return True
    return False


def regions(tree: Any, chrome_too: bool = False) -> list[Any]:
    """The parts of a page that hold its text: its <main>, or the whole of it; without the site's frame.

    With `chrome_too` the frame stays.
    """
    body = tree.body if tree.body is not None else tree.root
    if body is None:
        return []
    if chrome_too:
        for node in tree.css(f"[{_FRAME}]"):
            del node.attrs[_FRAME]
        return [body]
    mains = [node for node in tree.css("main, [role=main], #main-content") if is_seen(node)]
    for node in [node for node in tree.css("nav, aside, footer, [role]") if _is_chrome(node)]:
        node.attrs[_FRAME] = ""
    outer: list[Any] = []
    for node in mains:  # in the order of the page, so that an outer one comes before those in it
        if not any(_is_within(node, other) for other in outer[-1:]):
            outer.append(node)
    return outer or [body]


def _is_chrome(node: Any) -> bool:
    role = (node.attributes.get("role") or "").lower()
    if node.tag == "nav" or role in ("navigation", "search"):
        return True
    if node.tag == "footer":
        return not _has_above(node, ("blockquote", "figure"))
    if node.tag == "aside" or role in _CHROME_ROLES:
        return not _has_above(node, ("article", "main"))
    return False


def _has_above(node: Any, tags: tuple[str, ...]) -> bool:
    above = node.parent
    for _ in range(_DEPTH):
        if above is None:
            return False
        if above.tag in tags:
            return True
        above = above.parent
    return False


def _is_within(node: Any, other: Any) -> bool:
    above = node.parent
    while above is not None:
        if above.mem_id == other.mem_id:
            return True
        above = above.parent
    return False


def is_seen(node: Any) -> bool:
    """Whether nothing above an element, nor itself, drops it."""
    above = node
    while above is not None and above.tag != "-document":
        if is_dropped(above):
            return False
        above = above.parent
    return True
