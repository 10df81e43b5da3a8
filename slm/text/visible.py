"""Text that strangers wrote, as a terminal or a page may show it. It knows nothing of where it stands."""

from __future__ import annotations

import re

# Invisible characters that can hide text or reorder it on screen: zero-width space, marks and overrides of writing
# direction, invisible operators, byte order marks, tag characters; and control characters but tab and newline.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]")


def visible(text: str) -> str:
    """The text without ANSI escapes, control and invisible characters; newlines as \\n."""
    return _INVISIBLE.sub("", _ANSI.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def one_line(text: str) -> str:
    """A title or heading for display: visible characters, white space joined."""
    return " ".join(visible(text).split())


def without_controls(text: str) -> str:
    """A piece of a text without control and invisible characters, whatever is before and behind it."""
    return _INVISIBLE.sub("", text.replace("\r\n", "\n"))
