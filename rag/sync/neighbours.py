"""What the pages of a space show of each other: included texts, the titles of pages below them, people's names.

A page that shows something of another one is read again when that changes, though its own version stays. Nothing is
shown of a page that fewer people may see than the one that shows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rag.sources.confluence.body.around import Around
from rag.sources.confluence.body.nodes import Node
from rag.sources.confluence.page import person_name
from rag.sources.confluence.rest.client import DeniedError, TokenError
from rag.sources.confluence.rest.content import Page
from rag.sources.confluence.rest.convert import nodes_of
from slm.errors import DownloadError, InputError


@dataclass
class Uses:
    """What a page's text took of others: titles of those it includes, and of those below which it lists pages."""

    bodies: dict[str, None] = field(default_factory=dict)
    below: dict[str, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.bodies or self.below)


class Neighbours:
    """The pages of a space by what they call each other.

    fetch: a page with its body by its id, None where it is not there; name_of: a person's name by the key of the
    account. Both raise as `rag.sources.confluence.rest.client.Client.json` does.
    """

    def __init__(
        self,
        space: str,
        listing: Mapping[str, Page],
        fetch: Callable[[str], Page | None],
        name_of: Callable[[str], str],
    ) -> None:
        self._space, self._name_of = space, name_of
        pages = [page for page in listing.values() if not page.file]
        # Of a page and a blog post with one title the page is meant.
        self._titles = {page.title.casefold(): page for page in sorted(pages, key=lambda page: page.kind == "page")}
        self._children: dict[str, list[Page]] = {}
        for page in sorted(pages, key=lambda page: (page.position is None, page.position or 0, page.title)):
            self._children.setdefault(page.parent, []).append(page)
        self._names: dict[str, str] = {}
        self._mute = False

        @lru_cache(maxsize=32)
        def nodes(id_: str) -> Node | None:
            with suppress(DownloadError, DeniedError):
                found = fetch(id_)
                return nodes_of(found) if found is not None else None
            return None

        self._nodes = nodes

    def around(self, page: Page, uses: Uses) -> Around:
        """What a page's text may refer to; `uses` is told of what it does refer to."""

        def body(space: str, title: str) -> Node | None:
            if space not in ("", self._space):
                return None
            uses.bodies[title] = None
            other = self._seen(page, title)
            return self._nodes(other.id) if other is not None else None

        def children(space: str, title: str) -> list[str]:
            if space not in ("", self._space):
                return []
            uses.below[title] = None
            return [child.title for child in self._below(page, title)]

        return Around(page.space, page.title, body, self._name, children)

    def state(self, page: Page, uses: Uses) -> str:
        """Differs when anything differs that a page's text took of others."""
        bodies = [other.mark if (other := self._seen(page, title)) is not None else "" for title in uses.bodies]
        below = [[child.title for child in self._below(page, title)] for title in uses.below]
        return hashlib.sha256(json.dumps([bodies, below]).encode()).hexdigest()[:16]

    def remembered(self, page: Page, uses: Uses) -> dict[str, Any]:
        """What an index remembers of this, for `same`."""
        if not uses:
            return {}
        return {"uses": {"bodies": list(uses.bodies), "below": list(uses.below), "state": self.state(page, uses)}}

    def same(self, page: Page, entry: Mapping[str, Any]) -> bool:
        """Whether what a page's text took of others is as it was when the entry was made."""
        held = entry.get("uses")
        if not isinstance(held, dict):
            return True
        uses = Uses(dict.fromkeys(held.get("bodies", ())), dict.fromkeys(held.get("below", ())))
        return held.get("state") == self.state(page, uses)

    def _seen(self, page: Page, title: str) -> Page | None:
        """A page by its title, if all who may see `page` may see it."""
        other = self._titles.get(title.casefold())
        return other if other is not None and set(other.restrictions) <= set(page.restrictions) else None

    def _below(self, page: Page, title: str) -> list[Page]:
        above = self._titles.get(title.casefold())
        children = self._children.get(above.id, []) if above is not None else []
        return [child for child in children if set(child.restrictions) <= set(page.restrictions)]

    def _name(self, key: str) -> str:
        if key and key not in self._names and not self._mute:
            try:
                self._names[key] = person_name(self._name_of(key))
            except TokenError:
                raise
            except DeniedError:
                self._mute = True  # the account may not look people up
            except (InputError, DownloadError):
                self._names[key] = ""
        return self._names.get(key, "")
