"""Walks through a listing of many answers so that nothing is lost and nothing comes twice. It sends nothing itself.

Sites give fewer results than asked for without a word, count `start` wrongly, link to an empty page, and things are
deleted, edited and moved while one reads. So a listing by offsets asks for the last one it has seen again: where that
does not come, something before it went, and it steps back. One by cursors follows them to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rag.sources.confluence.rest.client import OverloadError
from slm.errors import DownloadError

FLOOR = 5
_MOST_EMPTY = 20  # answers in a row without results, though a next one is promised
_SMALL = 25  # a step over results that the account may not see, before any answer has shown how many one holds
_MOST_KNOWN = 50  # answers in a row that hold only what was seen before
_MOST_STEPS_BACK = 50
_MOST_FAILED = 3  # failures at one place of a listing

Item = dict[str, Any]
LISTED = 2  # tries of a request for a listing, before less is asked for
Fetch = Callable[[Mapping[str, str]], Mapping[str, Any]]


def walk(fetch: Fetch, limit: int, *, offsets: bool, light: Fetch | None = None) -> Iterator[list[Item]]:
    """The items (with an "id") of a listing, each once, answer by answer; `fetch` takes limit, start and cursor.

    offsets: whether the listing takes `start`; one whose links hold a cursor is walked by that. Less is asked for
    when the site fails; where it fails with the least, `light` asks for less of each. Raises OverloadError when that
    fails too, DownloadError when it goes in circles.
    """
    seen: set[str] = set()
    cursors: set[str] = set()
    largest = failed = 0
    cursor, start, back, steps, empty, known = "", 0, 0, 0, 0, 0
    while True:
        place = {"cursor": cursor} if cursor else {"start": str(start)} if offsets else {}
        try:
            answer = fetch({"limit": str(limit), **place})
        except OverloadError:
            failed += 1
            if limit > FLOOR or failed <= _MOST_FAILED:
                limit = max(FLOOR, limit // 2)
                continue
            if light is None:
                raise
            answer = light({"limit": str(limit), **place})
        failed = 0
        results = [item for item in answer.get("results") or () if isinstance(item, dict) and item.get("id")]
        fresh = list({str(item["id"]): item for item in results if str(item["id"]) not in seen}.values())
        if back and start and len(fresh) == len(results) > 0 and steps < _MOST_STEPS_BACK:
            start, back, steps = max(0, start - back), back * 2, steps + 1
            continue
        largest = max(largest, len(results))
        seen.update(str(item["id"]) for item in fresh)
        if fresh:
            yield fresh
        known = 0 if fresh else known + 1
        empty = 0 if results else empty + 1
        if known > _MOST_KNOWN:
            raise DownloadError("a listing of the site goes in circles", found=f"{len(seen)} pages, then none anew")
        following = next_link(answer)
        token = _parameter(following, "cursor")
        if token:
            if token in cursors or empty > _MOST_EMPTY:
                return
            cursors.add(token)
            cursor = token
        elif cursor or not offsets or empty > _MOST_EMPTY or (not following and not fresh):
            return
        elif results:
            # Also where no next answer is promised: what was cut without a word shows there.
            overlaps = bool(fresh) and len(results) > 1
            start += len(results) - overlaps
            back = int(overlaps)
        else:
            back = 0
            # Not by the link's own start, which counts what was asked for and not what would have been given.
            start += min(limit, largest or _SMALL)


def next_link(answer: Mapping[str, Any]) -> str:
    """The link to what follows, of the body or of the Link header; "" for none."""
    links = answer.get("_links")
    following = links.get("next") if isinstance(links, dict) else None
    return str(following or answer.get("_next") or "")


def _parameter(link: str, name: str) -> str:
    return parse_qs(urlsplit(link).query).get(name, [""])[0]
