"""Reads XML that may be damaged, into nodes. It knows nothing of Confluence.

Nothing in the text can end or slow the reading: entities are only those that HTML declares (a document's own are never
expanded, no DTD is fetched), control characters go, tags that are not closed are closed with what they are in, and
stray closing tags are left out. Time grows with the length alone, and no nesting is too deep.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from itertools import islice

from slm.text.names import names

# What no XML document may hold, be it as a character or as a reference; html.unescape leaves such references out.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_MARK = re.compile(r"<(?:!\[CDATA\[|!--|!|\?|/?[A-Za-z_])")
_NAME = re.compile(r"[A-Za-z_][\w:.-]*")
_INSIDE_TAG = re.compile(r"[^<>\"']*")
_ATTRIBUTE = re.compile(r"([^\s=<>\"'/]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'<>]+)))?")
_LONGEST_VALUE = 100_000
_FIRST = 100
_VOID = names("area base br col embed hr img input link meta source track wbr")
_RAW = ("script", "style")


class Node:
    """An element: its name and attribute names in lower case, and its children, nodes and text.

    `filled` says whether something in it is to be seen: text, an image, a reference.
    """

    __slots__ = ("attributes", "children", "filled", "name")

    def __init__(self, name: str, attributes: dict[str, str] | None = None) -> None:
        self.name, self.attributes = name, attributes or {}
        self.children: list[Node | str] = []
        self.filled = False

    def get(self, attribute: str) -> str:
        """An attribute's value; "" where there is none."""
        return self.attributes.get(attribute, "")

    def elements(self, *names: str) -> Iterator[Node]:
        """The children that are elements, all or those of these names."""
        return (child for child in self.children if isinstance(child, Node) and (not names or child.name in names))

    def first(self, *names: str) -> Node | None:
        """The first child of one of these names."""
        return next(self.elements(*names), None)


def walk(node: Node) -> Iterator[Node | str]:
    """All that is below a node, in the order of the document."""
    stack = list(reversed(node.children))
    while stack:
        item = stack.pop()
        yield item
        if isinstance(item, Node):
            stack.extend(reversed(item.children))


def text_of(node: Node | None) -> str:
    """The text in a node as it stands, without that of elements' attributes."""
    return "".join(item for item in walk(node) if isinstance(item, str)) if node is not None else ""


def beginning(node: Node | None) -> list[Node | str]:
    """The first things in a node: enough of a small element, and a look into a large one that costs little.

    A look at all that is in an element, for each of the elements that are in one another, would take forever.
    """
    return list(islice(walk(node), _FIRST)) if node is not None else []


def first_words(node: Node | None) -> str:
    """The text that a node begins with; of a small one, all."""
    return " ".join("".join(item for item in beginning(node) if isinstance(item, str)).split())


def parse(text: str, shown: Callable[[Node], bool] = lambda _: False, unseen: frozenset[str] = frozenset()) -> Node:
    """The nodes of a document or fragment, below one that has no name.

    shown: whether an element says something by itself; unseen: names of elements whose text is not to be seen. Both
    only matter for `filled`.
    """
    return _Builder(CONTROL.sub("", text), shown, unseen).run()


class _Builder:
    """The nodes that are open while a text is read from left to right."""

    def __init__(self, text: str, shown: Callable[[Node], bool], unseen: frozenset[str]) -> None:
        self._text, self._shown, self._unseen = text, shown, unseen
        self._missing: set[str] = set()  # what is not found behind a place is not found behind a later one either
        self._root = Node("")
        self._open = [self._root]
        self._counts: dict[str, int] = {}

    def run(self) -> Node:
        text, at = self._text, 0
        while match := _MARK.search(text, at):
            self._add(html.unescape(text[at : match.start()]))
            at = self._markup(match)
        self._add(html.unescape(text[at:]))
        while len(self._open) > 1:
            self._close_last()
        return self._root

    def _find(self, what: str, start: int) -> int:
        at = -1 if what in self._missing else self._text.find(what, start)
        if at < 0:
            self._missing.add(what)
        return at

    def _past(self, what: str, start: int) -> int:
        at = self._find(what, start)
        return len(self._text) if at < 0 else at + len(what)

    def _markup(self, match: re.Match[str]) -> int:
        """Take in what begins with "<" at a place; where it ends."""
        begin, kind = match.start(), match.group()
        if kind == "<![CDATA[":
            end = self._find("]]>", match.end())
            self._add(self._text[match.end() : end if end >= 0 else len(self._text)])
            return len(self._text) if end < 0 else end + 3
        if kind == "<!--":
            return self._past("-->", match.end())
        if kind in ("<?", "<!"):
            end = self._past(">", match.end())
            subset = self._text.find("[", match.end(), end)
            return self._past("]>", subset) if kind == "<!" and subset >= 0 else end
        return self._tag(begin, closes=kind == "</" or kind.startswith("</"))

    def _tag(self, begin: int, *, closes: bool) -> int:
        start = begin + (2 if closes else 1)
        named = _NAME.match(self._text, start)
        assert named is not None  # _MARK has seen its first letter
        name, end = named.group().lower(), self._tag_end(named.end())
        inside = self._text[named.end() : end]
        if closes:
            self._close(name)
            return end
        empty = inside.endswith("/>") or (inside == "/" and end == len(self._text))
        node = Node(name, _attributes(inside.rstrip(">").rstrip("/")) if len(inside) > 2 else {})
        self._open[-1].children.append(node)
        self._open.append(node)
        self._counts[name] = self._counts.get(name, 0) + 1
        if not empty and name in _RAW:
            close = (
                re.compile(f"</{name}", re.IGNORECASE).search(self._text, end) if name not in self._missing else None
            )
            if close is None:
                self._missing.add(name)
            else:
                self._add(self._text[end : close.start()])
                end = close.start()
        if empty or name in _VOID:
            self._close_last()
        return end

    def _tag_end(self, at: int) -> int:
        """Where a tag ends that goes on at a place: behind its ">", or before the "<" of the next one."""
        text = self._text
        while True:
            inside = _INSIDE_TAG.match(text, at)
            at = inside.end() if inside else at
            if at >= len(text) or text[at] == "<":
                return at
            if text[at] == ">":
                return at + 1
            closed = self._find(text[at], at + 1)
            at = closed + 1 if 0 <= closed - at <= _LONGEST_VALUE else at + 1

    def _add(self, text: str) -> None:
        if not text:
            return
        node = self._open[-1]
        if node.children and isinstance(node.children[-1], str) and len(node.children[-1]) < 1000:
            node.children[-1] += text
        else:
            node.children.append(text)
        node.filled = node.filled or bool(text.strip())

    def _close(self, name: str) -> None:
        if not self._counts.get(name):
            return  # it closes nothing
        while self._close_last() != name:
            pass

    def _close_last(self) -> str:
        node = self._open.pop()
        self._counts[node.name] -= 1
        node.filled = (node.filled or self._shown(node)) and node.name not in self._unseen
        self._open[-1].filled = self._open[-1].filled or node.filled
        return node.name


def _attributes(inside: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for match in _ATTRIBUTE.finditer(inside):
        value = next((group for group in match.groups()[1:] if group is not None), "")
        values.setdefault(match.group(1).lower(), html.unescape(value))
    return values
