"""What every source does to text before it is Markdown: invisible characters out, one form for composed letters.

It knows nothing of formats. Nothing that a reader of the page would see is changed.
"""

from __future__ import annotations

import re
import unicodedata

from slm.text.visible import visible

# Form feeds, NEL and Unicode's line and paragraph separators end a line.
_LINE_ENDS = re.compile("[\x0b\x0c\x85\u2028\u2029]")
# Soft hyphens, and joiners of letters that are written apart anyway; a word with one in it is found by nobody.
_UNSEEN = re.compile("[\xad\u034f\u061c\u180e\u2065\ufff9-\ufffb]")
# A joiner shapes Arabic, Syriac and Indic letters and binds emoji; elsewhere it does nothing.
_JOINED = "\u0600-\u08ff\u0900-\u109f\u1780-\u18af\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
_JOINER = re.compile(f"(?<![{_JOINED}])[\u200c\u200d]+|[\u200c\u200d]+(?![{_JOINED}])")
# A letter with its combining marks, or a Korean syllable in its letters (macOS takes é, が and 한 to pieces): they
# compose without touching other characters.
_IN_PIECES = re.compile(
    "[^\\s\u0300-\u036f\u3099\u309a][\u0300-\u036f\u3099\u309a]{1,8}|[\u1100-\u1112][\u1161-\u1175][\u11a8-\u11c2]?"
)
# Half of a character, which JSON may hold (\\ud800) and no UTF-8 can.
_HALVES = re.compile("[\ud800-\udfff]")
_DATA_URI = re.compile(r"[ \t]?data:[\w.+-]{1,60}/[\w.+-]{1,60}(?:;[\w.=-]{1,60}){0,4},[\w+/=%.~-]{64,}", re.IGNORECASE)


def clean(text: str) -> str:
    """The text without what nobody sees: control and zero-width characters, soft hyphens; newlines as \\n."""
    text = _UNSEEN.sub("", visible(_LINE_ENDS.sub("\n", whole(text))))
    text = _JOINER.sub("", text)
    return _IN_PIECES.sub(lambda match: unicodedata.normalize("NFC", match.group()), text)


def whole(text: str) -> str:
    """The text with a sign for each half of a character: it can be written."""
    return text if text.isascii() else _HALVES.sub("\ufffd", text)


def without_data_uris(text: str) -> str:
    """Prose without the bytes of embedded files."""
    return _DATA_URI.sub("", text) if "data:" in text.lower() else text
