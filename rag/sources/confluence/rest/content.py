"""What a Confluence site says of its pages, in one form for Cloud and Data Center."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from slm.text.dates import instant

UNKNOWN = ("unknown",)  # the rule of a page whose restrictions could not be read: it names nobody


@dataclass(frozen=True)
class Page:
    """A page, a blog post, or a file that is attached to one (whose parent is that page).

    Dates are ISO 8601 with their offset, as the site gave them; "" where it did not.
    ancestors: titles from the top down. restrictions: for the page and each of its ancestors that is restricted, who
    may read it ("user:..." and "group:..."); a reader has to be named by each of them. own: the page's own of these.
    detailed: whether the site said labels and restrictions. position: its place among those beside it, None where
    nobody gave it one. comments: (id, version) of those on it, where they are read. file: where an attached file's
    bytes are, below the site's address. storage, view: its body in the storage format and as the site shows it; None
    where it was not asked for or not given.
    """

    id: str
    title: str
    space: str
    version: int
    url: str
    kind: str = "page"
    created: str = ""
    modified: str = ""
    author: str = ""
    parent: str = ""
    ancestors: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    restrictions: tuple[tuple[str, ...], ...] = ()
    own: tuple[tuple[str, ...], ...] = ()
    detailed: bool = True
    position: int | None = None
    comments: tuple[tuple[str, int], ...] = ()
    file: str = ""
    storage: str | None = None
    view: str | None = None

    @property
    def changed_at(self) -> datetime | None:
        """When it was changed last; None where the site does not say."""
        return instant(self.modified)

    @property
    def mark(self) -> str:
        """Differs when anything differs that an index holds of the page; labels and restrictions have no version."""
        held: tuple[Any, ...] = (
            self.version, self.title, self.space, self.ancestors, self.labels, self.restrictions,
        )  # fmt: skip
        held += (self.comments,) if self.comments else ()
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]


def placed(pages: Mapping[str, Page]) -> dict[str, Page]:
    """The pages of a listing with the titles of their ancestors, and what restricts those added to their own.

    What restricts a page for readers holds for all that is below it.
    """
    found: dict[str, Page] = {}
    for id_, page in pages.items():
        above: list[Page] = []
        while (parent := pages.get((above[-1] if above else page).parent)) and parent is not page:
            if parent in above:
                break
            above.append(parent)
        titles = page.ancestors or tuple(parent.title for parent in reversed(above))
        restrictions = [rule for part in (*reversed(above), page) for rule in part.restrictions]
        found[id_] = replace(
            page, ancestors=titles, restrictions=tuple(dict.fromkeys(restrictions)), own=page.restrictions
        )
    return found
