"""Dates of ISO 8601 as people, sites and files write them. It knows nothing of what is dated."""

from __future__ import annotations

import re
from datetime import datetime, timezone

FORM = "A date looks like 2026-04-01 or 2026-04-01T09:00Z"
# +0900, which Python reads from 3.11 on.
_OFFSET = re.compile(r"([+-]\d\d)(\d\d)$")


def instant(text: str) -> datetime | None:
    """The instant of a date, in UTC where it names no offset; None for what is none."""
    try:
        found = datetime.fromisoformat(_OFFSET.sub(r"\1:\2", text.strip().replace("Z", "+00:00")))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
