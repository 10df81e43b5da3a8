"""What files say of themselves beside their text (front matter, document properties, <meta>), as a document's Meta.

It knows nothing of formats: every reader finds the words, here they become labels and dates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from rag.document import Meta
from rag.sources.clean import clean
from slm.text.dates import instant
from slm.text.visible import one_line

_LABELS = (
    "tags",
    "tag",
    "keywords",
    "labels",
    "label",
    "categories",
    "category",
    "article:tag",
    "タグ",
    "分類",
    "キーワード",
)
_AUTHOR = ("author", "authors", "creator", "dc.creator", "article:author", "作成者", "著者", "担当者")
_CREATED = (
    "created",
    "published",
    "date",
    "creationdate",
    "dcterms.created",
    "dc.date",
    "article:published_time",
    "作成日",
    "日付",
    "公開日",
)
_MODIFIED = ("modified", "updated", "lastmod", "last_modified", "last-modified", "last_updated", "moddate",
             "dcterms.modified", "article:modified_time", "更新日", "最終更新日", "改定日")  # fmt: skip
_MOST_LABELS, _LONGEST = 50, 100
_APART = re.compile(r"[,;、,;\n]")
_DAY = re.compile(r"(\d{4})\s?[年/.-]\s?(\d{1,2})\s?[月/.-]\s?(\d{1,2})(?!\d)\s?日?")
_PDF = re.compile(r"D:(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d)(\d\d)?(?:Z|([+-]\d\d)'?(\d\d))?)?")
_SPACED_OFFSET = re.compile(r"(?<=\d) (?=[+-]\d{2}:?\d{2}$)")
# What programs put down for an author.
_NOBODY = re.compile(r"(?:python-(?:docx|pptx)|openpyxl|windows user|microsoft office user|user|admin|unknown|author|"
                     r"\(?(?:anonymous|unspecified|none)\)?)?", re.IGNORECASE)  # fmt: skip


def told_meta(values: Mapping[str, Any]) -> Meta:
    """What is known of a document by what its file says: names in any case, values as they were read.

    tags, keywords and categories are labels; what is no date is left out.
    """
    said = {str(key).lower(): value for key, value in values.items()}
    labels = [label for key in _LABELS for label in _words(said.get(key))]
    author = ", ".join(_names(next((said[key] for key in _AUTHOR if said.get(key)), "")))[:_LONGEST]
    return Meta(
        labels=tuple(sorted(dict.fromkeys(labels))[:_MOST_LABELS]), author="" if _NOBODY.fullmatch(author) else author,
        created=_first_date(said, _CREATED), modified=_first_date(said, _MODIFIED),
    )  # fmt: skip


def iso_date(value: Any) -> str:
    """A date as ISO 8601, of a day alone where no time is said; "" for what is no date."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if not isinstance(value, str):
        return ""
    text = _SPACED_OFFSET.sub("", one_line(value)[:_LONGEST])
    if instant(text) is not None:
        return text
    if (pdf := _PDF.match(text)) is not None:
        year, month, day, hour, minute, second, hours, minutes = pdf.groups()
        zone = f"{hours}:{minutes}" if hours else "+00:00"
        text = f"{year}-{month}-{day}" + (f"T{hour}:{minute}:{second or '00'}{zone}" if hour else "")
    elif (plain := _DAY.match(text)) is not None:
        text = f"{plain[1]}-{int(plain[2]):02}-{int(plain[3]):02}"
    else:
        try:
            return parsedate_to_datetime(text).isoformat()
        except (TypeError, ValueError, IndexError, OverflowError):
            return ""
    return text if instant(text) is not None else ""


def _first_date(said: Mapping[str, Any], keys: Iterable[str]) -> str:
    return next(filter(None, (iso_date(said[key]) for key in keys if said.get(key))), "")


def _words(value: Any) -> list[str]:
    """Labels of a list, or of one text that names them between commas."""
    parts = value if isinstance(value, list | tuple) else _APART.split(value) if isinstance(value, str) else []
    words = (one_line(clean(str(part))).strip("#").strip() for part in parts if isinstance(part, str | int | float))
    return [word[:_LONGEST] for word in words if word]


def _names(value: Any) -> list[str]:
    """People as they are named: a text, a list of them, or objects with a name each."""
    parts = value if isinstance(value, list | tuple) else [value]
    named = (part.get("name", "") if isinstance(part, dict) else part for part in parts)
    return [one_line(clean(part)) for part in named if isinstance(part, str) and part.strip()]
