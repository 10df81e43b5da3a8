"""What a sync of a space has to read, to keep and to remove. It reads, writes and removes nothing.

A page is the same when its mark is: version, title, space, ancestors, labels and restrictions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rag.index.change.planned import PAGE
from rag.sources.confluence.rest.content import Page
from slm.errors import InputError

# Of so many pages of a space and more, no larger share goes unasked.
MANY, MOST_MISSING = 20, 0.5


@dataclass(frozen=True)
class Plan:
    """By page id what is to be read, and what is the same; by source what the listing does not have any more."""

    read: tuple[str, ...]
    same: tuple[str, ...]
    missing: tuple[str, ...]


def plan(
    listing: Mapping[str, Page],
    entries: Mapping[str, Mapping[str, Any]],
    root: str,
    blank: Mapping[str, str],
    *,
    full: bool,
    same_around: Callable[[Page, Mapping[str, Any]], bool] = lambda page, entry: True,
) -> Plan:
    """What to do about a complete listing.

    entries: the index's documents, blank: the marks of pages without text. same_around: whether what a page shows of
    others is as its entry remembers it.
    """
    read: list[str] = []
    same: list[str] = []
    for page in listing.values():
        entry = entries.get(page.url)
        mark = page_of(entry).get("mark") if entry is not None else blank.get(page.id)
        unchanged = mark == page.mark and (
            entry is None or (entry.get("roots") == [root] and same_around(page, page_of(entry)))
        )
        (same if unchanged and not full else read).append(page.id)
    listed = {page.url for page in listing.values()}
    missing = tuple(source for source in held_by(entries, root) if source not in listed)
    return Plan(tuple(read), tuple(same), missing)


def held_by(entries: Mapping[str, Mapping[str, Any]], root: str) -> list[str]:
    """The sources of documents that came by this root."""
    return [source for source, entry in entries.items() if root in entry.get("roots", ())]


def page_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an index's entry remembers of the page it came from."""
    page = entry.get(PAGE)
    return page if isinstance(page, dict) else {}


def remembered(page: Page) -> dict[str, Any]:
    """What an index remembers of a page for its next sync, beside its Meta."""
    comments = {"comments": [list(comment) for comment in page.comments]} if page.comments else {}
    return {
        "id": page.id, "mark": page.mark, "modified": page.modified, "labels": list(page.labels),
        "own": [list(rule) for rule in page.own], **comments,
    }  # fmt: skip


def confirm_removal(space: str, held: int, missing: Collection[str]) -> None:
    """Raise InputError when a space would lose most of many pages."""
    if held >= MANY and len(missing) > MOST_MISSING * held:
        raise InputError(
            f"{len(missing)} of the {held} pages of the space '{space}' are not listed any more; none was removed",
            found=", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else ""),
            hint="Check what the token's account may read. If they are to be forgotten, add --allow-mass-delete.",
        )
