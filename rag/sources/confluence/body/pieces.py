"""The pieces that a page is written from: plain HTML, text, and nodes that are still to be turned into both."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from rag.sources.confluence.body.nodes import Node


class Raw(str):
    """HTML as it is to be written; a plain str is text."""

    __slots__ = ()


class Word(str):
    """Text that is a word of its own, such as a date, though nothing may stand between it and its neighbours."""

    __slots__ = ()


Piece = Node | str
# Names of the first editor's emoticons and of Atlassian's own emoji, which are in no standard.
_EMOTICONS = {
    "smile": "🙂", "sad": "🙁", "cheeky": "😛", "laugh": "😀", "wink": "😉", "thumbs-up": "👍", "thumbs-down": "👎",
    "information": "ℹ️", "tick": "✅", "cross": "❌", "warning": "⚠️", "plus": "➕", "minus": "➖", "question": "❓",
    "light-on": "💡", "light-off": "💡", "yellow-star": "⭐", "heart": "❤️", "broken-heart": "💔",
    "red-star": "", "green-star": "", "blue-star": "", "star": "⭐", "check-mark": "✅", "cross-mark": "❌",
    "info": "ℹ️",
}  # fmt: skip
_CODE_POINTS = re.compile(r"[0-9a-fA-F]{2,6}(?:-[0-9a-fA-F]{2,6}){0,9}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# Keys of accounts, which sites and exports give in the place of names.
_ACCOUNT = re.compile(
    r"(?:[a-z0-9]{1,10}:)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|(?=[a-f]*[0-9])[0-9a-f]{24,32}|"
    r"(?:557058|70121|71202\d|qm|ug|unknown):\S{1,80}"
)
_FILE = re.compile(r"[^/]{1,200}\.[A-Za-z0-9]{1,5}")


def paragraph(text: str) -> list[Piece]:
    """A paragraph of plain text; nothing when it holds none."""
    return [Raw("<p>"), text, Raw("</p>")] if text.strip() else []


def block(*pieces: Piece) -> list[Piece]:
    """The pieces apart from what stands before and behind them."""
    return [Raw("<div>"), *pieces, Raw("</div>")]


def spaced(text: str) -> list[Piece]:
    """A word of its own; nothing when it holds none."""
    return [Word(text)] if text.strip() else []


def emoticon(name: str, fallback: str, code_points: str, shortname: str) -> str:
    """The character of an emoticon; "" for one that is none, and whose name nobody sees on the page."""
    fallback = fallback.strip()
    if fallback and not fallback.startswith((":", "(")):
        return fallback
    if _CODE_POINTS.fullmatch(code_points):
        try:
            return "".join(chr(int(point, 16)) for point in code_points.split("-"))
        except (ValueError, OverflowError):
            pass
    for known in (name, shortname.strip(":")):
        known = known.lower().replace("_", "-").removeprefix("atlassian-")
        if known in _EMOTICONS:
            return _EMOTICONS[known]
        try:
            return unicodedata.lookup(known.replace("-", " "))
        except (KeyError, UnicodeError):
            continue
    return ""


def date(iso: str, shown: str) -> str:
    """A date as the page shows it, with the date as all write it where that is another."""
    iso, shown = iso.strip(), " ".join(shown.split())
    iso = iso[:10] if _DATE.match(iso) else iso[:40]
    return f"{shown} ({iso})" if shown and iso and iso not in shown else shown or iso


def image(words: Sequence[str], file: str, url: str = "") -> str:
    """An image in words: what it is said to show and the name of its file, each once."""
    if not file and url:
        name = unquote(posixpath.basename(urlsplit(url[:5000]).path)) if "://" in url[:20] or url[:1] != "d" else ""
        file = name if _FILE.fullmatch(name) else ""
    parts = dict.fromkeys(" ".join(word.split()) for word in (*words, file))
    said = "; ".join(part for part in parts if part)
    return f"(image: {said})" if said else ""


def mention(name: str) -> str:
    """A person as a page names one; who is not known here is "@user"."""
    name = " ".join(name.split()).removeprefix("@")
    return f"@{name}" if name and is_name(name) else "@user"


def is_name(said: str) -> bool:
    """Whether what stands for a person is a name: keys of accounts and addresses are none."""
    return "@" not in said and _ACCOUNT.fullmatch(said.strip()) is None


def label_of(kind: str, title: str) -> str:
    """The line above a panel: what kind it is, where that says something, and its title."""
    kind = {"info": "Info", "tip": "Tip", "note": "Note", "warning": "Warning"}.get(kind, "")
    return f"{kind}: {title}" if kind and title.strip() else f"{kind}:" if kind else title
