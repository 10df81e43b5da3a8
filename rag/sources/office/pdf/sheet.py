"""What stands on a page, in points from its upper left corner: pieces of text and straight rules."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass
class LinePiece:
    """Characters on one line without a wide gap. `lefts` holds the left edge of each character of `text`."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    size: float
    bold: bool = False
    is_fixed: bool = False  # every letter of one width, as code is set
    is_vertical: bool = False
    lefts: array[float] = field(default_factory=lambda: array("f"))
    html: str = ""  # of a table that stands here, whose text is not in `text`

    @property
    def middle(self) -> float:
        return (self.y0 + self.y1) / 2


@dataclass(frozen=True)
class Rule:
    """A straight line: across (y0 == y1) or down (x0 == x1)."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass
class Sheet:
    """One page: what stands on it in one direction, and how many pictures are there.

    is_aside: most of the page is written in another direction. is_cut: the page holds more characters than are read.
    """

    number: int
    width: float
    height: float
    pieces: list[LinePiece] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    pictures: int = 0
    is_aside: bool = False
    is_cut: bool = False


def is_wide(text: str) -> bool:
    """Whether all characters are of a script that is written without blanks (kana, ideographs, full width)."""
    return all(
        "\u2e80" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or "\uff00" <= char <= "\uffef" for char in text
    )


def joined(one: str, other: str) -> str:
    """Two parts of a text with a blank between them, where the script has blanks."""
    if not one or not other or one[-1] == " ":
        return one + other
    return one + other if is_wide(one[-1]) and is_wide(other[0]) else f"{one} {other}"
