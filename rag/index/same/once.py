"""Which texts of a ranking say the same, so that each is shown once, and how many may come from one page.

It knows nothing of how the ranking was made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slm.text.normal_form import nfkc

# What Markdown puts before lines, between words and under a table's header. A sign between digits still parts them.
_LINE_MARKS = re.compile(r"^[ \t]*(?:(?:[-+>]|#{1,6})[ \t]+)+", re.MULTILINE)
_MARKS = re.compile(r"[\s*_`|]+")
_RULE = re.compile(r":?-{2,}:?")
# A line that was wrapped, in writing without blanks.
_INSIDE_CJK = re.compile(
    r"(?<=[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]) (?=[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef])"
)
# So much of the longer text has to be the shorter one.
_NEARLY = 0.9
# A shorter text says the same as another only under the same heading: "8 people" is of one room or of the other.
_SPEAKS_FOR_ITSELF = 80


@dataclass(frozen=True)
class Shown:
    """A text of a ranking. row: what is shown; place: its own in the ranking, from 0; also: rows it stands for."""

    row: int
    place: int
    also: tuple[int, ...] = ()


def plain(text: str) -> str:
    """A text as it is compared with others: without markup, line breaks, case and width."""
    words = _MARKS.sub(" ", _LINE_MARKS.sub("", nfkc(text).casefold())).split(" ")
    return _INSIDE_CJK.sub("", " ".join(word for word in words if word and not _RULE.fullmatch(word)))


def once_each(
    rows: Sequence[int],
    text_of: Callable[[int], tuple[str, str]],
    page_of: Callable[[int], str],
    count: int,
    a_page: int,
) -> list[Shown]:
    """The first `count` different texts of a ranking of rows, at most `a_page` of one page as long as others are left.

    text_of: (heading path, text) of a row. Texts are the same when they differ in markup alone, or when one is the
    beginning or the end of the other and nearly all of it; then the longer one is shown, at the place of the better.
    """
    groups: list[tuple[list[int], str, str]] = []
    places: list[int] = []
    exact: dict[tuple[str, str], int] = {}
    for place, row in enumerate(rows):
        heading, text = (plain(part) for part in text_of(row))
        key = ("" if len(text) >= _SPEAKS_FOR_ITSELF else heading, text)
        number = exact.get(key)
        if number is None:
            number = next(
                (n for n, (_, one, other) in enumerate(groups) if key[0] == one and _nearly(text, other)), None
            )
        if number is None:
            number = len(groups)
            groups.append(([row], *key))
            places.append(place)
        else:
            members, where, known = groups[number]
            if len(text) > len(known):
                groups[number] = ([row, *members], where, text)
            else:
                members.append(row)
        exact.setdefault(key, number)
    pages: Counter[str] = Counter()
    first: list[Shown] = []
    rest: list[Shown] = []
    for place, (members, _, _) in zip(places, groups, strict=True):
        shown = Shown(members[0], place, tuple(members[1:]))
        page = page_of(shown.row)
        pages[page] += 1
        (first if pages[page] <= a_page else rest).append(shown)
    return (first + rest)[:count]


def _nearly(one: str, other: str) -> bool:
    """Whether the shorter text is the longer one but for a few words before or after it."""
    short, long = sorted((one, other), key=len)
    if len(short) < max(_SPEAKS_FOR_ITSELF, _NEARLY * len(long)):
        return False
    # "up to 2" is not the beginning of "up to 20": what follows or goes before has to be apart.
    return (long.startswith(short) and _apart(short[-1], long[len(short) :][:1])) or (
        long.endswith(short) and _apart(long[: -len(short)][-1:], short[0])
    )


def _apart(left: str, right: str) -> bool:
    return not (left.isalnum() and right.isalnum())
