"""What a page's text may refer to, and the state of a page that is being turned into text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rag.sources.confluence.body.nodes import Node, text_of


@dataclass(frozen=True)
class Around:
    """A page's space and title, and what it may show of other pages: their bodies, people's names, pages below them.

    body and children take a space and a title. They give nothing that fewer people may see than the page itself:
    its text would show it to all of them.
    """

    space: str = ""
    title: str = ""
    body: Callable[[str, str], Node | None] = lambda space, title: None
    user: Callable[[str], str] = lambda key: ""
    children: Callable[[str, str], Sequence[str]] = lambda space, title: ()


@dataclass
class Conversion:
    """A page in work: the pages that are included at the place in work, and what could not be shown.

    missed: names of macros whose content is not in the page; strange: of those that are shown by their body alone;
    elsewhere: titles of pages that were to be included and are not at hand.
    """

    around: Around
    within: list[tuple[str, str]] = field(default_factory=list)
    included: int = 0
    missed: dict[str, None] = field(default_factory=dict)
    strange: dict[str, None] = field(default_factory=dict)
    elsewhere: dict[str, None] = field(default_factory=dict)


class End(str):
    """Marks where what was included ends."""

    __slots__ = ()


def parameters(node: Node) -> dict[str, Node]:
    """A macro's parameters by name; the one without a name under ""."""
    named = {child.get("ac:name"): child for child in node.elements("ac:parameter")}
    default = node.first("ac:default-parameter")
    return {"": default, **named} if default is not None else named


def said(given: Mapping[str, Node], *names: str) -> str:
    """The text of the first of these parameters that has any."""
    return next(filter(None, (" ".join(text_of(given.get(name)).split()) for name in names)), "")
