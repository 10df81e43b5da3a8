"""Texts and documents as the tables have them. It knows nothing of connections.

PostgreSQL's text holds neither NUL nor half a surrogate pair (a file name that is no UTF-8 has those in Python): they
are written as escapes, and a backslash as two.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slm.text.dates import instant

_UNHELD = re.compile("[\\\\\\x00\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(\\|u[0-9a-f]{4})")
_HALVES = re.compile("[\ud800-\udfff]")


def stored(text: str) -> str:
    """A text as a column has it."""
    return _UNHELD.sub(lambda m: "\\\\" if m[0] == "\\" else f"\\u{ord(m[0]):04x}", text)


def unstored(text: str) -> str:
    """The text that a column stands for."""
    return _ESCAPE.sub(lambda m: "\\" if m[1] == "\\" else chr(int(m[1][1:], 16)), text) if "\\" in text else text


def as_json(value: Any) -> str:
    """JSON that a text column holds and people can read; `json.loads` gives the value back."""
    return _HALVES.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(value, ensure_ascii=False))


def key_of(source: str) -> bytes:
    """What a document is found and locked by: a source may be longer than an index of the database takes."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()


def lock_of(key: bytes) -> int:
    """The number of an advisory lock, 64 bits with sign."""
    return int.from_bytes(key[:8], "big", signed=True)


@dataclass(frozen=True)
class Columns:
    """What of a document's entry filters are decided by. rules: JSON of its restrictions, None where there are none."""

    lang: str
    space: str
    labels: list[str]
    changed: datetime | None
    rules: str | None


def columns_of(entry: Mapping[str, Any]) -> Columns:
    """The columns of an entry, as `rag.index.generation.facets` reads it."""
    meta = entry.get("meta", {})
    rules = [[stored(str(name)) for name in rule] for rule in meta.get("restrictions", ())]
    return Columns(
        stored(str(entry["lang"])), stored(str(meta.get("space", ""))),
        [stored(str(label)) for label in meta.get("labels", ())],
        instant(str(meta.get("modified") or meta.get("created") or "")), json.dumps(rules) if rules else None,
    )  # fmt: skip
