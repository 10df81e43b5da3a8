"""What to do about an answer of a Confluence site that is not the one asked for. It sends nothing, and does not wait.

A site says "too much" in many ways: 429 with and without Retry-After, 403 with the signs of a rate limit, 503 with
Retry-After, and 5xx or silence because an answer of so many pages is too heavy for it.
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum

_LONGEST_BACK_OFF_S = 60.0
# A 403 without any sign may be a rate limit all the same: it is asked again so often before it is believed.
_DOUBTS = 2
_SIGNS = ("rate limit", "ratelimit", "rate-limit", "too many requests", "throttl", "quota")


class Do(Enum):
    """What is to be done: use the answer, wait and ask again, ask for less, or give up for one of three reasons."""

    USE = "use"
    WAIT = "wait"
    LESSEN = "lessen"
    ABSENT = "absent"
    DENIED = "denied"
    REFUSED = "refused"
    WRONG = "wrong"


@dataclass(frozen=True)
class Verdict:
    """What to do, and for WAIT how long in seconds."""

    do: Do
    seconds: float = 0.0


def judge(status: int, headers: Mapping[str, str], text: str, tried: int) -> Verdict:
    """What an answer asks for; `tried` counts the same request from 0. Header names are in lower case."""
    if 200 <= status < 300:
        return Verdict(Do.USE)
    asked = retry_after(headers)
    if status == 429 or (status in (403, 503) and asked is not None):
        return Verdict(Do.WAIT, back_off(tried) if asked is None else asked)
    if status == 403:
        limited = headers.get("x-ratelimit-remaining", "").strip() == "0" or any(s in text.lower() for s in _SIGNS)
        return Verdict(Do.WAIT, back_off(tried)) if limited or tried < _DOUBTS else Verdict(Do.DENIED)
    if status == 401:
        return Verdict(Do.REFUSED)
    if status in (404, 410):
        return Verdict(Do.ABSENT)
    if status >= 500 or status in (408, 413):
        return Verdict(Do.LESSEN)
    return Verdict(Do.WRONG)


def back_off(tried: int) -> float:
    """Seconds to wait where the site does not say how long: 1, 2, 4 ... up to a minute."""
    return min(_LONGEST_BACK_OFF_S, 2.0 ** min(tried, 10))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that Retry-After names, as a number or a date (RFC 9110, 10.2.3); None where it names none."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds < float("inf") else None
    except ValueError:
        pass
    then = moment(value)
    now = moment(headers.get("date", "")) or datetime.now(timezone.utc)
    return max(0.0, (then - now).total_seconds()) if then else None


def moment(date: str) -> datetime | None:
    """The instant of an HTTP date; None for what is none."""
    try:
        then = email.utils.parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return None
    return then if then.tzinfo else then.replace(tzinfo=timezone.utc)
