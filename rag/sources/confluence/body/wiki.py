"""Turns wiki markup, in which Confluence 3 and older kept their pages, into the storage format.

What is finished (code, links, images, macros) is set aside first, with a mark in its place, so that its characters are
no markup; then lines become headings, lists, tables and paragraphs. Each part is looked at once.
"""

from __future__ import annotations

import re
from html import escape

from slm.text.names import names

_MARK, _END = "\ue000", "\ue001"  # of the private use area; what a page has of them itself is left out
_MACRO = re.compile(r"(?<![\\{])\{([A-Za-z][\w-]{0,60})(?::([^{}\n]{0,2000}))?\}(?!\})")
_VERBATIM = frozenset(["code", "noformat", "html", "plantuml"])
_BODIES = names("info note tip warning panel expand quote excerpt section column color details card deck")
_INLINE_BODIES = frozenset(("color", "excerpt"))
_MAIN = {"code": "language", "expand": "title", "jira": "key", "status": "title", "panel": "title"}
_ESCAPED = re.compile(r"\\([{}\[\]*_|!#^~+?-])")
_LINK = re.compile(r"(?<!\\)\[([^\[\]\n]{1,2000})\]")
_IMAGE = re.compile(r"(?<![\w\\!])!([^!\s|][^!|\n]{0,300}\.\w{2,5}|https?://[^!|\s]{1,500})(?:\|([^!\n]{0,300}))?!")
_HEADING = re.compile(r"\s*h([1-6])\.\s+(.*)")
_ITEM = re.compile(r"\s*([*#]{1,20}|-)\s+(.*)")
_CELLS = re.compile(r"(\|\|?)")
_MARKS = re.compile(f"{_MARK}(\\d+){_END}")
_WORDS = [
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])"), "strong"),
    (re.compile(r"(?<![\w_])_(?=\S)([^_\n]+?)(?<=\S)_(?![\w_])"), "em"),
    (re.compile(r"(?<![\w-])-(?=[^\s-])([^-\n]+?)(?<=\S)-(?![\w-])"), "del"),
    (re.compile(r"\{\{([^{}\n]+)\}\}"), "code"),
    (re.compile(r"\^(?=\S)([^^\n]{1,200}?)(?<=\S)\^(?!\w)"), "sup"),
    (re.compile(r"(?<!\w)~(?=\S)([^~\n]+?)(?<=\S)~(?!\w)"), "sub"),
    (re.compile(r"(?<!\w)\+(?=\S)([^+\n]+?)(?<=\S)\+(?!\w)"), "u"),
    (re.compile(r"\?\?([^?\n]+)\?\?"), "cite"),
]


def storage_of_wiki(text: str) -> str:
    """Wiki markup as a page of the storage format."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_MARK, "").replace(_END, "")
    return _Wiki().storage(text)


class _Wiki:
    """What has been set aside, by its number."""

    def __init__(self) -> None:
        self._aside: list[str] = []

    def storage(self, text: str) -> str:
        text = self._macros(text)
        text = _ESCAPED.sub(lambda match: self._set(escape(match.group(1))), text)
        text = _IMAGE.sub(lambda match: self._set(_image(match.group(1), match.group(2) or "")), text)
        text = _LINK.sub(lambda match: self._set(_link(match.group(1))), text)
        return _MARKS.sub(lambda match: self._aside[int(match.group(1))], _blocks(text))

    def _set(self, markup: str) -> str:
        self._aside.append(markup)
        return f"{_MARK}{len(self._aside) - 1}{_END}"

    def _macros(self, text: str) -> str:
        out: list[str] = []
        at = 0
        open_macros: list[str] = []
        missing: set[str] = set()
        while match := _MACRO.search(text, at):
            out.append(text[at : match.start()])
            name, at = match.group(1).lower(), match.end()
            if name in _VERBATIM:
                closing = "{" + match.group(1) + "}"
                end = -1 if closing in missing else text.find(closing, at)
                if end >= 0:
                    body = text[at:end].strip("\n")
                    # A CDATA section cannot hold its own end.
                    body = body.replace("]]>", "]]]]><![CDATA[>")
                    out.append(f"\n{self._set(_opening(match) + _plain(body))}\n")
                    at = end + len(closing)
                    continue
                missing.add(closing)
            around = "" if name in _INLINE_BODIES else "\n"
            if name in _BODIES and name in open_macros and match.group(2) is None:
                while open_macros.pop() != name:
                    out.append(self._set("</ac:rich-text-body></ac:structured-macro>"))
                out.append(f"{around}{self._set('</ac:rich-text-body></ac:structured-macro>')}{around}")
            elif name in _BODIES:
                open_macros.append(name)
                out.append(f"{around}{self._set(_opening(match) + '<ac:rich-text-body>')}{around}")
            else:
                out.append(self._set(_opening(match) + "</ac:structured-macro>"))
        out.append(text[at:])
        return "".join(out)


def _opening(match: re.Match[str]) -> str:
    name = match.group(1).lower()
    markup = f'<ac:structured-macro ac:name="{escape(name)}">'
    for part in (match.group(2) or "").split("|"):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = _MAIN.get(name, ""), part
        if value.strip():
            markup += f'<ac:parameter ac:name="{escape(key.strip())}">{escape(value.strip())}</ac:parameter>'
    return markup


def _plain(body: str) -> str:
    return f"<ac:plain-text-body><![CDATA[{body}]]></ac:plain-text-body></ac:structured-macro>"


def _link(inside: str) -> str:
    words, bar, target = inside.partition("|")
    target = target.split("|")[0].strip() if bar else words.strip()
    words = words.strip() if bar else ""
    body = f"<ac:link-body>{escape(words)}</ac:link-body>" if words else ""
    if re.match(r"(?:[a-z][a-z0-9+.-]{1,20}:)?//|mailto:", target):
        return f'<a href="{escape(target)}">{escape(words or target.removeprefix("mailto:"))}</a>'
    if target.startswith("^"):
        return f'<ac:link><ri:attachment ri:filename="{escape(target[1:])}"/>{body}</ac:link>'
    if target.startswith("~"):
        return f'<ac:link><ri:user ri:username="{escape(target[1:])}"/>{body}</ac:link>'
    place, _, anchor = target.partition("#")
    space, _, title = place.rpartition(":")
    if not title:
        return f'<ac:link ac:anchor="{escape(anchor)}">{body}</ac:link>'
    return f'<ac:link><ri:page ri:space-key="{escape(space)}" ri:content-title="{escape(title)}"/>{body}</ac:link>'


def _image(file: str, settings: str) -> str:
    said = {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in settings.split(","))}
    words = "".join(f' ac:{key}="{escape(said[key])}"' for key in ("alt", "title") if said.get(key))
    if "://" in file[:10]:
        return f'<ac:image{words}><ri:url ri:value="{escape(file)}"/></ac:image>'
    return f'<ac:image{words}><ri:attachment ri:filename="{escape(file.rpartition("^")[2])}"/></ac:image>'


def _inline(text: str) -> str:
    text = escape(text.strip(), quote=False).replace("\\\\", "<br/>")
    for pattern, name in _WORDS:
        text = pattern.sub(rf"<{name}>\1</{name}>", text)
    return text


def _blocks(text: str) -> str:
    """Lines as headings, quotations, lists, tables and paragraphs."""
    out: list[str] = []
    lists: list[str] = []
    paragraph: list[str] = []
    in_table = False

    def close(*, table: bool = True) -> None:
        nonlocal in_table
        if paragraph:
            out.append(f"<p>{'<br/>'.join(paragraph)}</p>")
            paragraph.clear()
        while lists:
            out.append(f"</li></{lists.pop()}>")
        if in_table and table:
            out.append("</tbody></table>")
            in_table = False

    for line in text.split("\n"):
        stripped = line.strip()
        heading, item = _HEADING.match(line), _ITEM.match(line)
        if not stripped:
            close()
        elif _MARKS.fullmatch(stripped):
            close()
            out.append(stripped)
        elif heading:
            close()
            out.append(f"<h{heading.group(1)}>{_inline(heading.group(2))}</h{heading.group(1)}>")
        elif stripped.startswith("bq. "):
            close()
            out.append(f"<blockquote><p>{_inline(stripped[4:])}</p></blockquote>")
        elif re.fullmatch(r"-{4,}", stripped):
            close()
            out.append("<hr/>")
        elif item:
            if paragraph or in_table:
                close()
            _add_item(item.group(1), item.group(2), lists, out)
        elif stripped.startswith("|"):
            if paragraph or lists:
                close(table=False)
            if not in_table:
                out.append("<table><tbody>")
                in_table = True
            out.append(_row(stripped))
        elif lists:
            out.append(f"<br/>{_inline(stripped)}")
        else:
            if in_table:
                close()
            paragraph.append(_inline(stripped))
    close()
    return "".join(out)


def _add_item(marker: str, text: str, lists: list[str], out: list[str]) -> None:
    kinds = ["ol" if sign == "#" else "ul" for sign in marker]
    while len(lists) > len(kinds) or (lists and lists[-1] != kinds[len(lists) - 1]):
        out.append(f"</li></{lists.pop()}>")
    if len(lists) == len(kinds):
        out.append("</li><li>")
    while len(lists) < len(kinds):
        lists.append(kinds[len(lists)])
        out.append(f"<{lists[-1]}><li>")
    out.append(_inline(text))


def _row(line: str) -> str:
    parts = _CELLS.split(line)[1:]
    cells = list(zip(parts[::2], parts[1::2], strict=True))
    if cells and not cells[-1][1].strip():
        cells.pop()
    names = [("th" if sign == "||" else "td", text) for sign, text in cells]
    return f"<tr>{''.join(f'<{name}>{_inline(text)}</{name}>' for name, text in names)}</tr>"
