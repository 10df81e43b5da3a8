"""Walks a parsed page without recursion, and says which of its elements a reader sees.

It knows nothing of Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from slm.text.names import names

_DROPPED = names(
    "script style template noscript iframe object embed svg canvas head audio video map area datalist title meta "
    "link input button select option optgroup output progress meter rp rt rtc noembed noframes "
    "annotation annotation-xml"
)
# A site's frame around the page. A note beside an article's text (aside) belongs to the article.
_CHROME_ROLES = frozenset(("navigation", "contentinfo", "search", "complementary"))
# What DocBook puts above and below each page of a manual, and names of lists of contents (as wikis and Asciidoctor have
# them): these repeat headings, and bring a question to the list instead of to the section.
_MANUAL_FRAME = frozenset(("navheader", "navfooter"))
_CONTENTS = frozenset(("toc", "toc2"))
_MOSTLY = 0.6  # of a list of contents' letters are links, at least
# Names of columns of line numbers, where numbers are all they hold and code stands beside them.
_LINE_NUMBERS = re.compile(r"(?:^|\s)(?:linenos?|lineno|gutter|line-numbers-rows)(?:\s|$)")
MAY_NUMBER = re.compile(r"linenos?|lineno|gutter|line-numbers-rows")
_EXTENTS, _SIDES = ("height", "max-height", "width", "max-width"), ("left", "right", "top", "bottom")
_FAR_OFF = re.compile(r"-\d{3,}(?:\.\d*)?(?:px|pt)|-\d{2,}(?:\.\d*)?r?em")
_NO_PLACE = re.compile(r"inset\(\s*(?:100|50)%|circle\(\s*0|scale(?:3d|[xy])?\(\s*0\s*[,)]")
_ZERO = re.compile(r"0+(?:\.0*)?(?:[a-z]{1,4}|%)?")
_NUMBERS = re.compile(r"[\d\s.:]*")
_CODE = ("pre", "code")
_TITLES = names("h1 h2 h3 h4 h5 h6 summary")
_BESIDE = 5  # a column is a cell in a row in a body of a table, at most
_COLUMN = "data-slm-numbers"  # marks a column of line numbers
_WORDS = "data-slm-words"  # marks a button whose words are those of a heading
_INNER = "data-slm-inner"  # marks the main part of a page in a page, which is not that of the whole
_MAINS = "main, [role=main], #main-content"
_FRAME = "data-slm-frame"  # marks what is_dropped takes for the site's frame


def traverse(root: Any, enter: Callable[[Any], bool], leave: Callable[[Any], None]) -> None:
    """Visit a node and all below it; `enter` says whether to go inside, `leave` follows each that was gone into.

    Processing instructions (<?php ... ?>) are passed over: they are nothing to read, and have no name to be known by.
    """
    node, depth = root, 0
    while True:
        inside = node.tag is not None and enter(node)
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
    attributes = node.attributes
    if tag == "dialog" and "open" not in attributes:
        return True
    if tag in _DROPPED and not (tag == "button" and attributes and _WORDS in attributes):
        return True
    return bool(attributes) and hides(attributes)


def hides(attributes: Mapping[str, str | None]) -> bool:
    """Whether an element's attributes say that it and all in it is not seen, or is not the page's text."""
    if _FRAME in attributes or _COLUMN in attributes:
        return True
    if "hidden" in attributes and attributes["hidden"] != "until-found" and attributes.get("role") != "tabpanel":
        return True
    if attributes.get("aria-hidden") == "true" and attributes.get("role") != "tabpanel":
        return True
    return is_hiding(attributes.get("style") or "")


def mark_line_numbers(root: Any) -> None:
    """Mark the elements that number lines of code: they hold numbers alone and stand in or beside code.

    Each part of the page is looked at once, however many of them are nested or stand in a row.
    """
    only_numbers, holds_code = [True], [False]  # of each open element
    columns: list[Any] = []
    with_code: set[int] = set()

    def enter(node: Any) -> bool:
        if node.tag == "-text":
            only_numbers[-1] = only_numbers[-1] and _NUMBERS.fullmatch(node.text_content or "") is not None
            return False
        if node.tag[0] in "-!_":
            return False
        only_numbers.append(True)
        holds_code.append(node.tag in _CODE)
        return True

    def leave(node: Any) -> None:
        numbers, code = only_numbers.pop(), holds_code.pop()
        only_numbers[-1] = only_numbers[-1] and numbers
        holds_code[-1] = holds_code[-1] or code
        if code:
            with_code.add(node.mem_id)
        if numbers and _LINE_NUMBERS.search(node.attributes.get("class") or ""):
            columns.append(node)

    traverse(root, enter, leave)
    for column in columns:
        if _numbers_code(column, with_code):
            column.attrs[_COLUMN] = ""


def put_before(place: Any, page: Any) -> None:
    """Put the body of another page into a page, before an element."""
    for main in page.css(_MAINS):
        main.attrs[_INNER] = ""
    if page.body is not None:
        place.insert_before(page.body)


def mark_buttons(root: Any) -> None:
    """Mark the buttons that say what a heading does: one that is all of a heading's words, or that holds a heading.

    A button beside the words of a heading (Edit, Copy link) is a control.
    """
    titles: list[tuple[list[bool], list[Any]]] = []  # of each open heading: whether it has words, and its buttons
    open_buttons: list[Any] = []
    kept: list[Any] = []

    def enter(node: Any) -> bool:
        if node.tag == "-text":
            if titles and not open_buttons and any(map(str.isalpha, node.text_content or "")):
                titles[-1][0][0] = True
            return False
        if node.tag == "button":
            open_buttons.append(node)
            if titles:
                titles[-1][1].append(node)
        elif is_dropped(node):
            return False
        elif node.tag in _TITLES:
            kept.extend(open_buttons[-1:])
            titles.append(([False], []))
        return True

    def leave(node: Any) -> None:
        if node.tag == "button":
            open_buttons.pop()
        elif node.tag in _TITLES:
            (has_words,), buttons = titles.pop()
            if not has_words:
                kept.extend(buttons)

    traverse(root, enter, leave)
    for button in kept:
        button.attrs[_WORDS] = ""


def _numbers_code(column: Any, with_code: set[int]) -> bool:
    """Whether one of the elements around a column, which may end at an article, is code or holds it."""
    around = column
    for _ in range(_BESIDE):
        if around is None or around.tag in ("body", "main", "article", "-document"):
            return False
        if around.mem_id in with_code:
            return True
        around = around.parent
    return False


def is_hiding(style: str) -> bool:
    """Whether a style attribute makes its element invisible, and all in it whatever their own styles are."""
    said: dict[str, str] = {}
    for declaration in style.lower().split(";")[:100]:
        name, _, value = declaration.partition(":")
        said[name.strip()] = value.replace("!important", "").strip()
    if said.get("display") == "none" or _ZERO.fullmatch(said.get("opacity", "")):
        return True
    if _NO_PLACE.search(said.get("clip-path", "")) or _NO_PLACE.search(said.get("transform", "")):
        return True
    if said.get("overflow") in ("hidden", "clip") and any(_ZERO.fullmatch(said.get(name, "")) for name in _EXTENTS):
        return True
    places = ("text-indent", *(_SIDES if said.get("position") in ("absolute", "fixed") else ()))
    if any(_FAR_OFF.fullmatch(said.get(name, "")) for name in places):
        return True
    behind = said.get("background-color") or said.get("background", "")
    return "color" in said and said["color"].replace(" ", "") == behind.replace(" ", "")


def regions(tree: Any, chrome_too: bool = False) -> list[Any]:
    """The parts of a page that hold its text: its <main> and articles, or the whole of it; without the site's frame.

    With `chrome_too` the frame stays.
    """
    body = tree.body if tree.body is not None else tree.root
    if body is None:
        return []
    if chrome_too:
        for node in tree.css(f"[{_FRAME}]"):
            del node.attrs[_FRAME]
        return [body]
    mains = _seen(body, {node.mem_id for node in tree.css(_MAINS) if _INNER not in node.attributes})
    _mark_frame(body)
    if not any(map(_holds_text, mains)):
        return [body]  # what a script would fill is no reason to leave out what is there
    articles = _seen(body, {node.mem_id for node in tree.css("article, [role=article]")})
    return _outermost(body, {node.mem_id for node in (*mains, *articles)})


def _holds_text(root: Any) -> bool:
    """Whether there is anything to read in an element."""
    found = False

    def enter(node: Any) -> bool:
        nonlocal found
        found = found or (node.tag == "-text" and bool((node.text_content or "").strip()))
        return not found and node.tag != "-text" and not is_dropped(node)

    traverse(root, enter, lambda _: None)
    return found


def _outermost(root: Any, wanted: set[int]) -> list[Any]:
    """Those of the wanted nodes that are in no other, in the order of the page."""
    found: list[Any] = []

    def enter(node: Any) -> bool:
        if node.mem_id in wanted:
            found.append(node)
            return False
        return True

    traverse(root, enter, lambda _: None)
    return found


def _mark_frame(root: Any) -> None:
    """Mark the site's frame. Each element is visited once, however deep it is."""
    open_tags = dict.fromkeys(("article", "main", "blockquote", "figure", "a"), 0)
    letters, linked = [0], [0]  # of each open element, all and those in links
    frame: list[Any] = []

    def enter(node: Any) -> bool:
        if node.tag == "-text":
            count = len((node.text_content or "").strip())
            letters[-1] += count
            linked[-1] += count * bool(open_tags["a"])
            return False
        if node.tag[0] in "-!_":
            return False
        if _is_chrome(node, open_tags):
            frame.append(node)
        if node.tag in open_tags:
            open_tags[node.tag] += 1
        letters.append(0)
        linked.append(0)
        return True

    def leave(node: Any) -> None:
        count, in_links = letters.pop(), linked.pop()
        letters[-1] += count
        linked[-1] += in_links
        if node.tag in open_tags:
            open_tags[node.tag] -= 1
        if node.tag == "div" and in_links > _MOSTLY * count and _CONTENTS & _classes(node):
            frame.append(node)

    traverse(root, enter, leave)
    for node in frame:
        node.attrs[_FRAME] = ""


def _classes(node: Any) -> set[str]:
    return set((node.attributes.get("class") or "").split())


def _is_chrome(node: Any, open_tags: Mapping[str, int]) -> bool:
    role = (node.attributes.get("role") or "").lower() if node.attributes else ""
    if node.tag == "nav" or role in ("navigation", "search"):
        return True
    if node.tag == "div" and _MANUAL_FRAME & _classes(node):
        return True
    if node.tag == "footer":
        return not (open_tags["blockquote"] or open_tags["figure"])
    if node.tag == "aside" or role in _CHROME_ROLES:
        return not (open_tags["article"] or open_tags["main"])
    return False


def _seen(root: Any, wanted: set[int]) -> list[Any]:
    """Those of the wanted nodes that neither they themselves nor what is around them drops."""
    found: list[Any] = []

    def enter(node: Any) -> bool:
        if node.tag == "-text" or is_dropped(node):
            return False
        if node.mem_id in wanted:
            found.append(node)
        return True

    if wanted:
        traverse(root, enter, lambda _: None)
    return found


def is_seen(node: Any) -> bool:
    """Whether nothing above an element, nor itself, drops it."""
    above = node
    while above is not None and above.tag != "-document":
        if is_dropped(above):
            return False
        above = above.parent
    return True
