"""What the styles of a Word document make of a paragraph: a heading, code, an entry of a table of contents, a list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rag.sources.office.package import attribute, child, tag

# Word writes built-in styles under their English names whatever its language; other programs write their own.
_HEADING = re.compile(r"(?:heading|見出し|überschrift|titre|título|titolo|заголовок|标题|제목) ?([1-9])", re.IGNORECASE)
_CODE = re.compile(r"(?:source ?)?code(?: ?block)?|html preformatted|preformatted ?text|plain text|listing|verbatim|"
                   r"コード|ソースコード", re.IGNORECASE)  # fmt: skip
_CONTENTS = re.compile(r"(?:toc|目次) ?\d|table of figures|図表目次", re.IGNORECASE)
_NESTED = re.compile(r"list (?:bullet|number) ([2-5])", re.IGNORECASE)
_DEEPEST = 20


@dataclass(frozen=True)
class Style:
    """What a style says of its paragraphs; level 0 is the document's title, None no heading."""

    level: int | None = None
    is_code: bool = False
    is_contents: bool = False
    number_id: str | None = None
    number_level: int | None = None
    is_hidden: bool = False
    nesting: int = 0  # of lists that are nested by their style (List Bullet 2), each with a first level of its own


def styles_of(tree: Any) -> dict[str, Style]:
    """Styles by id, with what they inherit; the default style of paragraphs under ""."""
    raw = {attribute(element, "styleId"): element for element in tree if tag(element) == "w:style"}
    styles = {name: _style(name, raw) for name in raw}
    default = (
        name
        for name, element in raw.items()
        if attribute(element, "default") in ("1", "true", "on") and attribute(element, "type") == "paragraph"
    )
    styles[""] = styles.get(next(default, ""), Style())
    return styles


def _style(name: str, raw: dict[str, Any]) -> Style:
    chain: list[Any] = []
    while name in raw and len(chain) < _DEEPEST:
        chain.append(raw[name])
        name = value(raw[name], "w:basedOn") or ""
    names = [value(element, "w:name") or "" for element in chain]
    level: int | None = None
    number_id = number_level = None
    for element, own in zip(reversed(chain), reversed(names), strict=True):  # from the ground of the chain up
        outline = value(element, "w:pPr", "w:outlineLvl")
        found = _HEADING.fullmatch(own.strip())
        if own.strip().lower() == "title":
            level = 0
        elif found:
            level = int(found.group(1))
        elif outline is not None and outline.isdigit():
            level = int(outline) + 1 if int(outline) < 9 else None
        number_id = value(element, "w:pPr", "w:numPr", "w:numId") or number_id
        own_level = value(element, "w:pPr", "w:numPr", "w:ilvl") or ""
        number_level = int(own_level) if own_level.isdigit() else number_level
    return Style(
        level,
        any(_CODE.fullmatch(own.strip()) for own in names),
        bool(names) and _CONTENTS.fullmatch(names[0]) is not None,
        number_id,
        number_level,
        bool(chain) and is_on(child(chain[0], "w:rPr", "w:vanish")),
        max((int(found.group(1)) - 1 for own in names if (found := _NESTED.fullmatch(own))), default=0),
    )


def value(element: Any, *path: str) -> str | None:
    """The w:val of the element down a path; None where there is none."""
    found = child(element, *path)
    return attribute(found, "val") if found is not None else None


def is_on(element: Any) -> bool:
    """Whether a switch such as <w:b/> is there and not turned off."""
    return element is not None and attribute(element, "val", "1").lower() not in ("0", "false", "off", "none")
