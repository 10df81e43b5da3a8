"""What a style passes down to all below it, where an element may undo it: visibility and the size of letters.

It knows nothing of Markdown, and of no way of hiding that nothing below can undo (`tree.is_hiding`).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from rag.sources.html.tree import traverse

MAY_HIDE = re.compile(r"visibility\s*:\s*(?:hidden|collapse)|font(?:-size)?\s*:\s*[^;\"']{0,40}?\b0", re.IGNORECASE)
_ZERO = re.compile(r"0+(?:\.0*)?(?:[a-z]{1,4}|%)?")
_RELATIVE = re.compile(r"[\d.]+\s*(?:em|ex|ch|%)|larger|smaller|inherit|unset|")
_SIZE_OF_FONT = re.compile(r"(?:^|\s)(0[\d.]*|[1-9][\d.]*)(?:[a-z]{1,4}|%)?(?=\s|/|$)")


class Letters(NamedTuple):
    """Whether letters are hidden, and whether they are of no size."""

    hidden: bool = False
    sizeless: bool = False

    @property
    def unseen(self) -> bool:
        """Whether a reader does not see them."""
        return self.hidden or self.sizeless

    def styled(self, style: str) -> Letters:
        """What they are inside an element with this style attribute."""
        hidden, sizeless = self
        for declaration in style.lower().split(";")[:100]:
            name, _, value = declaration.partition(":")
            name, value = name.strip(), value.replace("!important", "").strip()
            if name == "visibility" and value in ("hidden", "collapse", "visible", "initial"):
                hidden = value in ("hidden", "collapse")
            elif name == "font-size":
                sizeless = _ZERO.fullmatch(value) is not None or (sizeless and _RELATIVE.fullmatch(value) is not None)
            elif name == "font" and (size := _SIZE_OF_FONT.search(value)):
                sizeless = not float(size[1].rstrip(".") or 0) if size[1].count(".") < 2 else sizeless
        return Letters(hidden, sizeless)


def strike_unseen(root: Any) -> None:
    """Take the text out of a parsed page that its styles hide; elements in which nothing is left become hidden.

    The style of the root itself does not count: a page may be hidden until a script shows it.
    """
    states = [Letters()]
    shows = [True]  # whether something is seen in each open element
    texts: list[Any] = []

    def enter(node: Any) -> bool:
        if node.tag == "-text":
            if states[-1].unseen:
                texts.append(node)
            elif (node.text_content or "").strip():
                shows[-1] = True
            return False
        if node.tag[0] in "-!_":
            return False
        style = "" if node.mem_id == root.mem_id else node.attributes.get("style") or ""
        states.append(states[-1].styled(style))
        shows.append(node.tag == "img" and not states[-1].unseen)
        return True

    def leave(node: Any) -> None:
        state, shown = states.pop(), shows.pop()
        shows[-1] = shows[-1] or shown
        if state.unseen and not shown:
            node.attrs["hidden"] = ""

    traverse(root, enter, leave)
    for text in texts:
        text.remove()
