"""Turns a page of the storage format, or the content of an exported page, into Markdown.

Both become the same plain HTML, which is then written as any other page is, so that one page by any way gives one
text. Nodes are turned into pieces one after another, never one inside another, so that no nesting is too deep.
"""

from __future__ import annotations

import html as html_text
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rag.sources.confluence.body.around import Around, Conversion, End
from rag.sources.confluence.body.exported import expand_exported
from rag.sources.confluence.body.macros import expand_macro, person
from rag.sources.confluence.body.nodes import Node, first_words, parse, text_of
from rag.sources.confluence.body.pieces import (
    Piece,
    Raw,
    Word,
    block,
    date,
    emoticon,
    image,
    label_of,
    mention,
    paragraph,
    spaced,
)
from rag.sources.html.page import html_to_markdown
from slm.text.names import names

_HTML = names(
    "p div section article aside header footer main address figure figcaption center h1 h2 h3 h4 h5 h6 ul ol li dl dt "
    "dd blockquote pre hr br table thead tbody tfoot tr td th caption code tt kbd samp var sup sub del s strike q ruby "
    "rt rp details summary"
)
_EMPTY = ("br", "hr")
_KEPT = ("colspan", "rowspan", "start", "value", "hidden", "aria-hidden")
# What only steers how a page is stored or edited; nobody sees it.
_UNSEEN = names(
    "ac:parameter ac:default-parameter ac:placeholder ac:task-id ac:task-uuid ac:task-status ac:adf-attribute "
    "ac:adf-mark ac:adf-fragment-mark ac:adf-fragment-mark-detail ac:adf-parameter ac:adf-parameter-value colgroup "
    "style script title head"
)
_SHOWN = names("img ac:image ac:emoticon ac:link time ac:macro ac:structured-macro hr input ri:page ri:attachment")
_BLOCKS = names("ac:layout ac:layout-section ac:layout-cell ac:rich-text-body ac:adf-content ac:caption")
_REFERENCES = {
    "ri:page": "ri:content-title", "ri:blog-post": "ri:content-title", "ri:attachment": "ri:filename",
    "ri:space": "ri:space-key", "ri:url": "ri:value", "ri:shortcut": "ri:parameter",
}  # fmt: skip
# Behind the end of a CDATA section stands an end tag, or the next section.
_CUT_END = re.compile(r"\]\] >(?=\s*(?:</|<!\[CDATA\[|$))")


@dataclass(frozen=True)
class Written:
    """A page as Markdown, and the names of macros that show something this program cannot know.

    missed: those of which nothing is in the text; strange: those that are not known here and left their body there;
    elsewhere: titles of pages that are included and of which nothing is in the text.
    """

    markdown: str
    missed: Sequence[str] = ()
    strange: Sequence[str] = ()
    elsewhere: Sequence[str] = ()

    @property
    def note(self) -> str:
        """What is missing or not certain, in words; "" for nothing."""
        said = {"macros whose content is not in the page": self.missed,
                "unknown macros, read by what is in them": self.strange,
                "included pages that are not at hand, or not for all readers of the page": self.elsewhere}  # fmt: skip
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in said.items() if names)


def read_nodes(storage: str) -> Node:
    """The nodes of a page in the storage format, be it damaged. A CDATA section's end is repaired ("]] >")."""
    repaired = storage
    if storage.count("]]>") < storage.count("<![CDATA["):
        # The XML export writes "]]>" inside of its own CDATA as "]] >"; code may hold that itself: [[ -f x ]] >y.
        repaired = _CUT_END.sub("]]>", storage)
    return parse(repaired, shown=lambda node: node.name in _SHOWN, unseen=_UNSEEN)


def markdown_of_nodes(root: Node, around: Around | None = None) -> Written:
    """The nodes of a page as Markdown."""
    page = Conversion(around or Around())
    html = _html(root, page)
    return Written(html_to_markdown(html), tuple(page.missed), tuple(page.strange), tuple(page.elsewhere))


def _html(root: Node, page: Conversion) -> str:
    out: list[str] = []
    stack: list[Piece] = list(reversed(root.children))
    after_word = False
    while stack:
        item = stack.pop()
        if isinstance(item, Node):
            stack.extend(reversed(_expand(item, page)))
        elif isinstance(item, End):
            page.within.pop()
        elif isinstance(item, Raw):
            out.append(item)
            after_word = False
        elif item:
            is_word = isinstance(item, Word)
            if after_word and not item.strip():
                out.append(" ")
                continue
            joins = after_word if is_word or _ends_word(item[0]) else False
            joins = joins or (is_word and bool(out) and _ends_word(out[-1][-1]))
            out.append((" " if joins else "") + html_text.escape(item, quote=False))
            after_word = is_word
    return "".join(out)


def _ends_word(character: str) -> bool:
    """Whether a word that follows this character, or stands before it, would be taken for one with it."""
    return character.isascii() and character.isalnum()


def _expand(node: Node, page: Conversion) -> list[Piece]:
    """What a node shows, one level deep."""
    name = node.name
    if name in _UNSEEN and not (name == "script" and node.get("type") == "syntaxhighlighter"):
        return []
    if name in ("ac:structured-macro", "ac:macro"):
        return expand_macro(node, page)
    if name in _BLOCKS:
        return block(*node.children)
    if name.startswith(("ac:", "ri:")):
        return _expand_own(node, page)
    if name == "time":
        return spaced(date(node.get("datetime"), text_of(node)))
    exported = expand_exported(node)
    if exported is not None:
        return exported
    if name == "a" and not node.filled:
        return spaced(node.get("href") if node.get("href").startswith(("http://", "https://")) else "")
    if name not in _HTML:
        return list(node.children)
    if name in _EMPTY:
        return [Raw(f"<{name}>")]
    kept = {key: node.get(key) for key in _KEPT if key in node.attributes}
    if _hides(node):
        kept["hidden"] = ""
    if name in ("pre", "code") and "class" in node.attributes:
        kept["class"] = node.get("class")
    written = "".join(f' {key}="{html_text.escape(value)}"' for key, value in kept.items())
    return [Raw(f"<{name}{written}>"), *node.children, Raw(f"</{name}>")]


def _hides(node: Node) -> bool:
    from rag.sources.html.tree import is_hiding

    return "style" in node.attributes and is_hiding(node.get("style"))


def _expand_own(node: Node, page: Conversion) -> list[Piece]:
    """What an element of the storage format itself shows; those that are not known show what is in them."""
    name = node.name
    if name == "ac:link":
        return _link(node, page)
    if name == "ac:image":
        return _image(node)
    if name == "ac:emoticon":
        kind, fallback = node.get("ac:name"), node.get("ac:emoji-fallback")
        return [emoticon(kind, fallback, node.get("ac:emoji-id"), node.get("ac:emoji-shortname"))]
    if name == "ac:task-list":
        return [Raw("<ul>"), *node.children, Raw("</ul>")]
    if name == "ac:task":
        done = text_of(node.first("ac:task-status")).strip() == "complete"
        box = Raw(f'<li><input type="checkbox"{" checked" if done else ""}>')
        return [box, *node.children, Raw("</li>")]
    if name == "ac:adf-extension":
        own = [part for part in node.elements("ac:adf-node") if part.filled]
        return [*own] or [part for part in node.elements("ac:adf-fallback") if part.filled]
    if name == "ac:adf-node":
        return _adf_node(node)
    if name == "ac:plain-text-body":
        return [Raw("<pre>"), text_of(node), Raw("</pre>")]
    if name == "ri:user":
        return spaced(mention(person(node, page)))
    if name in _REFERENCES:
        return spaced(node.get(_REFERENCES[name]))
    return list(node.children)


def _link(node: Node, page: Conversion) -> list[Piece]:
    """A link's own words, else the name of what it leads to; a file's name in both cases."""
    body = node.first("ac:link-body", "ac:plain-text-link-body", "ac:image")
    target = next((child for child in node.elements() if child.name.startswith("ri:")), None)
    words: list[Piece] = []
    if body is not None and body.filled:
        words = list(body.children) if body.name != "ac:image" else [body]
    if target is None:
        return words or [text_of(node).strip() or node.get("ac:anchor")]
    if target.name == "ri:user":
        return words or spaced(mention(person(target, page)))
    name = target.get(_REFERENCES.get(target.name, ""))
    if not words:
        return [name or target.get("ri:key")]
    if target.name == "ri:attachment" and body is not None and name not in first_words(body):
        words += [f" ({name})"]
    return words


def _image(node: Node) -> list[Piece]:
    file, url = node.first("ri:attachment"), node.first("ri:url")
    caption = node.first("ac:caption")
    said = first_words(caption)
    words = [word for word in (node.get("ac:alt"), node.get("ac:title")) if word.strip() != said]
    name = file.get("ri:filename") if file is not None else ""
    shown = image(words, name, url.get("ri:value") if url is not None else "")
    return spaced(shown) if caption is None or not caption.filled else [*spaced(shown), *block(caption)]


def _adf_node(node: Node) -> list[Piece]:
    kinds = {child.get("key"): text_of(child).strip() for child in node.elements("ac:adf-attribute")}
    kind = node.get("type")
    if kind == "panel":
        return block(*paragraph(label_of(kinds.get("panel-type", ""), "")), *node.children)
    if kind == "decision-list":
        return [Raw("<ul>"), *node.children, Raw("</ul>")]
    if kind == "decision-item":
        return [Raw("<li>"), *node.children, Raw("</li>")]
    return block(*node.children)
