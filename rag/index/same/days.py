"""The days and months that a text names, in one form for both calendars and languages.

令和6年4月1日, 2024年4月1日, R6.4.1, 2024-04-01 and April 1, 2024 are one day. It knows nothing of eras: those are years
by then (`rag.index.variants.comparable`). 04/05/2024 is another day for an American than for a Briton, so it is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from rag.index.variants import count_of

_NAMES = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_NUMBERS = {name[:3].lower(): number for number, name in enumerate(_NAMES, start=1)}
_SHORT = (*(name[:3] for name in _NAMES), "Sept")
# As names are written, with a capital: "may 5" is no day.
_MONTH = "(" + "|".join(form for name in (*_NAMES, *_SHORT) for form in (name, name.upper())) + r")\.?"
_YEAR = r"(1[89]\d\d|20\d\d)"
_DAY = r"(\d{1,2})"
_COUNT = r"(\d{1,2}|[一二三四五六七八九十]{1,3})"

_JAPANESE = re.compile(rf"(?:(?<!\d){_YEAR}[ \t]?年[ \t]?)?(?<!\d){_COUNT}[ \t]?月(?:[ \t]?{_COUNT}[ \t]?日)?")
_NUMERIC = re.compile(rf"(?<![\d./-]){_YEAR}([-/.]){_DAY}(?:\2{_DAY})?(?!\d|[-/.]\d)")
_MONTH_FIRST = re.compile(rf"(?<![A-Za-z]){_MONTH}[ \t]{_DAY}(?:st|nd|rd|th)?(?:,?[ \t]{_YEAR})?(?!\d)")
_DAY_FIRST = re.compile(rf"(?<!\d){_DAY}(?:st|nd|rd|th)?[ \t](?:of[ \t])?{_MONTH}(?:,?[ \t]{_YEAR}(?!\d))?(?![A-Za-z])")
_MONTH_ONLY = re.compile(rf"(?<![A-Za-z]){_MONTH},?[ \t]{_YEAR}(?!\d)")


def days_of(text: str) -> list[str]:
    """The index terms of the days and months that a `comparable` text names, each once.

    A whole date gives 2024-04-01, 2024-04 and --04-01 (a day of any year, as ISO 8601 once wrote it); a month of a year
    the second, a day without a year the third. What the calendar does not have gives none.
    """
    return list(dict.fromkeys(term for found in _found(text) for term in _terms(*found)))


def _found(text: str) -> Iterator[tuple[int, int, int]]:
    """(year, month, day) of all that looks like a day or month; 0 for what is not said."""
    for match in _JAPANESE.finditer(text):
        yield count_of(match[1]), count_of(match[2]), count_of(match[3])
    for match in _NUMERIC.finditer(text):
        if match[4] or match[2] != ".":  # 2024.4 is a number
            yield count_of(match[1]), count_of(match[3]), count_of(match[4])
    for match in _MONTH_FIRST.finditer(text):
        yield count_of(match[3]), _NUMBERS[match[1][:3].lower()], count_of(match[2])
    for match in _DAY_FIRST.finditer(text):
        yield count_of(match[3]), _NUMBERS[match[2][:3].lower()], count_of(match[1])
    for match in _MONTH_ONLY.finditer(text):
        yield count_of(match[2]), _NUMBERS[match[1][:3].lower()], 0


def _terms(year: int, month: int, day: int) -> list[str]:
    try:
        date(year or 2000, month, day or 1)  # 2000 was a leap year: February 29 is a day
    except ValueError:
        return []
    terms = [f"{year}-{month:02}-{day:02}"] if year and day else []
    terms += [f"{year}-{month:02}"] if year else []
    return terms + ([f"--{month:02}-{day:02}"] if day else [])
