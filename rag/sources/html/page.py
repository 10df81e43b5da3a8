"""Reads HTML and XHTML pages: the text a reader sees, as Markdown.

The page is parsed by HTML5's rules (lexbor), so that what authors leave unclosed is closed where browsers close it.
Scripts, controls, navigation and what attributes hide are dropped; links and images leave their words.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain
from typing import Any

from rag.document import Document, sections_of
from rag.sources.clean import clean, without_data_uris
from rag.sources.html.inherited import MAY_HIDE, strike_unseen
from rag.sources.html.tree import MAY_NUMBER, hides, is_seen, mark_buttons, mark_line_numbers, put_before, regions
from rag.sources.html.writer import write
from rag.sources.properties import told_meta
from rag.sources.reader import Read, titled
from slm.text.encoding.decode import decode
from slm.text.names import names
from slm.text.visible import one_line

_XML_ENCODING = re.compile(rb"^\s*<\?xml[^>]{0,200}?\bencoding\s*=\s*[\"']([\w.:-]{1,40})")
# What is in a tag: a > between quotes does not end it.
_IN_TAG = r"(?:[^>=]+|=\s*(?:\"[^\"]*\"|'[^']*')?)*"
_META = re.compile(rb"<meta\b" + _IN_TAG.encode(), re.IGNORECASE)
_CHARSET = re.compile(rb"\bcharset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_XML, _HTML_TAG = re.compile(r"\s*<\?xml\b"), re.compile(rf".{{0,2000}}?<html\b({_IN_TAG})", re.DOTALL)
_XMLNS = re.compile(r"\bxmlns\s*=")
_MARKUP = re.compile(r"<!\[CDATA\[|<!--|<(?P<name>[A-Za-z][^\s<>/]*)|<\?")


_VOID = names("area base br col embed hr img input link meta param source track wbr")
# Elements that end where the next of their kind begins, so that they are open without being nested.
_SHALLOW = _VOID | names("li p td th tr dd dt option thead tbody tfoot colgroup")
# They end so inside a <ruby> or a <select> alone, and are nothing elsewhere.
_IN_RUBY, _IN_SELECT = names("rt rp rb rtc"), "optgroup"
# What a browser opens again in every paragraph until it is closed, with each set of attributes anew.
_FORMATTING = names("b big code em font i s small strike strong tt u")
_ANY_TAG = re.compile(r"<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9:-]*)")
_OPENING = re.compile(r"<[A-Za-z][^\s/>]*")
_ATTRIBUTE = re.compile(r"[\s/]*[^\s/>][^\s/>=]*(?:\s*=\s*(?:(?P<quote>[\"'])|[^\s>\"'][^\s>]*))?")
_DEEPEST, _MOST_FORMATTING, _MOST_ATTRIBUTES = 1000, 12, 256
_MOST_METAS, _REPEATED = 200, ("article:tag",)  # those of which each names one more label
_MOST_TITLES = 20  # top headings that are looked at until one has words


def read_html(raw: bytes, name: str) -> Read:
    """A page as a document; its encoding is what it declares where the bytes agree. Raises DamagedFileError."""
    decoded = decode(raw, declared=declared_charset(raw))
    return Read(html_document(decoded.text, name), decoded.note)


def declared_charset(raw: bytes) -> str:
    """The encoding that an XML declaration or a <meta> names, wherever it stands; "" for none."""
    metas = (_CHARSET.search(meta.group()) for meta in _META.finditer(raw))
    found = _XML_ENCODING.search(raw[:1024]) or next(filter(None, metas), None)
    return found.group(1).decode("ascii") if found else ""


def _is_xml(html: str) -> bool:
    """Whether a page says that it is XHTML, in which <x/> is closed."""
    opening = _HTML_TAG.match(html)
    return _XML.match(html) is not None or (opening is not None and _XMLNS.search(opening.group(1)) is not None)


def html_document(html: str, name: str) -> Document:
    """A document of an HTML page; titled by its first H1, its <title>, its first heading or `name`."""
    tree = parse_html(html)
    markdown = ""
    for chrome_too in (False, True):  # a page that is nothing but navigation is still a page
        markdown = _finish(regions(tree, chrome_too))
        if markdown.strip():
            break
    headings = (one_line(_finish([node]).lstrip("# ")) for node in tree.css("h1")[:_MOST_TITLES] if is_seen(node))
    titles = (one_line(clean(node.text())) for node in tree.css("head > title"))
    document = titled(sections_of(markdown), next(filter(None, chain(headings, titles)), ""), name)
    return replace(document, meta=told_meta(_said(tree)))


def _said(tree: Any) -> dict[str, Any]:
    """What a page's <meta> elements say, by name; of those that are repeated a list."""
    said: dict[str, Any] = {}
    for node in tree.css("head > meta[content]")[:_MOST_METAS]:
        attributes = node.attributes
        name = (attributes.get("name") or attributes.get("property") or attributes.get("itemprop") or "").lower()
        value = attributes["content"] or ""
        if name in _REPEATED:
            said.setdefault(name, []).append(value)
        else:
            said[name] = value
    return said


def html_to_markdown(html: str) -> str:
    """A fragment of HTML, such as Markdown may hold, as Markdown."""
    return _finish([parse_html(html).body])


def _finish(roots: list[Any]) -> str:
    return without_data_uris(clean("\n\n".join(filter(None, (write(root) for root in roots if root is not None)))))


def parse_html(html: str, pages_in_it: int = 2) -> Any:
    """The tree of a page by HTML5's rules, with elements nested no deeper than any author nests them.

    Pages that are written into it (<iframe srcdoc>) are parts of it, and those in them down to a depth.
    """
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(_shallow(_few_attributes(_html_of_xml(html) if _is_xml(html) else html)))
    if tree.body is not None and pages_in_it:
        for frame in tree.css("iframe[srcdoc]"):
            inner = "" if hides(frame.attributes) else frame.attributes["srcdoc"] or ""
            if inner.strip():
                put_before(frame, parse_html(inner, pages_in_it - 1))
    if tree.body is not None and MAY_HIDE.search(html):
        strike_unseen(tree.body)
    if tree.body is not None and MAY_NUMBER.search(html):
        mark_line_numbers(tree.body)
    if tree.body is not None and tree.css_first("button") is not None:
        mark_buttons(tree.body)
    return tree


def _few_attributes(html: str) -> str:
    """The page with no more attributes in a tag than any author writes: the parser's time grows with their square."""
    out: list[str] = []
    done = at = 0
    for tag in _OPENING.finditer(html) if len(html) > 2 * _MOST_ATTRIBUTES else ():
        if tag.start() < at:
            continue
        at, count, cut = tag.end(), 0, 0
        while attribute := _ATTRIBUTE.match(html, at):
            at = attribute.end()
            if attribute["quote"]:
                closing = html.find(attribute["quote"], at)
                if closing < 0:
                    return "".join((*out, html[done:]))  # what is not closed swallows the rest of the page
                at = closing + 1
            count += 1
            cut = at if count == _MOST_ATTRIBUTES else cut
        if count > _MOST_ATTRIBUTES:
            out.append(html[done:cut])
            done = at
    return "".join((*out, html[done:])) if out else html


class _Depth:
    """Elements that are open, up to a limit; those beyond it are counted, so that their ends are known."""

    def __init__(self, limit: int) -> None:
        self._limit, self._open, self._beyond = limit, 0, 0

    def opens(self) -> bool:
        """Whether one more may be opened."""
        if self._open >= self._limit:
            self._beyond += 1
            return False
        self._open += 1
        return True

    def closes(self) -> bool:
        """Whether this end is that of one that was opened."""
        if self._beyond:
            self._beyond -= 1
            return False
        self._open = max(self._open - 1, 0)
        return True


def _shallow(html: str) -> str:
    """The page with elements nested no deeper than any author nests them.

    The parser's time grows with the square of the depth, and a page of 1 MB may be nothing but <div>. Tags that go
    deeper become <wbr>, which holds nothing; browsers stop at a depth of 512. What formats and is never closed is
    opened again in each paragraph, so that some hundreds of <font> would be some hundred thousand elements.
    """
    ordinary, formatting, rubies = _Depth(_DEEPEST), _Depth(_MOST_FORMATTING), 0

    def rename(match: re.Match[str]) -> str:
        nonlocal rubies
        name = match["name"].lower()
        if name in _IN_RUBY or name == _IN_SELECT:
            return match.group() if rubies and name != _IN_SELECT else "<wbr"
        if name in _SHALLOW:
            return match.group()
        if name == "ruby":
            rubies = max(rubies + (-1 if match["close"] else 1), 0)
        depth = formatting if name in _FORMATTING else ordinary
        return match.group() if (depth.closes() if match["close"] else depth.opens()) else "<wbr"

    return _ANY_TAG.sub(rename, html) if html.count("<") > _DEEPEST else html


def _html_of_xml(text: str) -> str:
    """XHTML as HTML: CDATA is text, and <x/> is closed, which HTML only knows of some elements."""
    out: list[str] = []
    at = 0
    missing: set[str] = set()  # what is not found behind a place is not found behind a later one either

    def find(what: str, start: int) -> int:
        found = -1 if what in missing else text.find(what, start)
        if found < 0:
            missing.add(what)
        return found

    while match := _MARKUP.search(text, at):
        out.append(text[at : match.start()])
        begin, name = match.start(), match["name"]
        if name is None:
            opening = match.group()
            closing = {"<![CDATA[": "]]>", "<!--": "-->", "<?": ">"}[opening]
            # A comment may close with the dashes that open it: <!-->.
            end = find(closing, match.end() - 2 if opening == "<!--" else match.end())
            at = len(text) if end < 0 else end + len(closing)
            if opening == "<![CDATA[":
                inner = text[match.end() : len(text) if end < 0 else end]
                out.append(inner.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
            continue
        end = match.end()
        while end < len(text) and text[end] not in "<>":
            if text[end] in "\"'" and text[end - 1] in "= \t\n":
                closed = find(text[end], end + 1)
                end = closed if closed >= 0 else end
            end += 1
        at = end + 1 if text[end : end + 1] == ">" else end
        tag = text[begin:at]
        if tag.endswith("/>") and name.lower() not in _VOID:
            tag = f"{tag[:-2]}></{name}>"
        out.append(tag)
    out.append(text[at:])
    return "".join(out)
