"""A Data Center or Server site: REST v1, listings by offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from rag.sources.confluence.rest.client import AbsentError, Client
from rag.sources.confluence.rest.content import Page
from rag.sources.confluence.rest.paging import LISTED, Item, walk
from rag.sources.confluence.rest.wire import comment_of_v1, file_of_v1, page_of_v1
from rag.sources.confluence.saved import list_of, text_at

_LIST, _BODIES = 200, 50
_DETAILS = (
    "version,space,history,history.lastUpdated,metadata.labels,ancestors,"
    "restrictions.read.restrictions.user,restrictions.read.restrictions.group"
)


class SearchedSite:
    """What sites of both kinds give by the search of v1, which alone lists it for a whole space."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def files(self, key: str) -> Iterator[list[Page]]:
        """The attached files of a space."""
        cql = f"space = {in_cql(key)} and type = attachment order by created asc"
        for items in search(self._client, cql, "version,space,history,container,metadata.labels", _LIST):
            yield [file_of_v1(item, self._client.base) for item in items]

    def comments(self, key: str) -> Iterator[list[Page]]:
        """The comments on pages of a space, without their bodies."""
        cql = f"space = {in_cql(key)} and type = comment order by created asc"
        for items in search(self._client, cql, "version,container", _LIST):
            yield [comment_of_v1(item, self._client.base) for item in items]

    def comments_on(self, id_: str) -> Iterator[list[Page]]:
        """The comments on a page with their bodies, as they were written one after the other."""
        cql = f"container = {in_cql(id_)} and type = comment order by created asc"
        for items in search(self._client, cql, "body.storage,version,history,container", _BODIES):
            yield [comment_of_v1(item, self._client.base) for item in items]

    def content(self, path: str) -> bytes:
        """The bytes of a file."""
        return self._client.content(path)


class DataCenter(SearchedSite):
    """The Site of REST v1."""

    kind = "Data Center"

    def space(self, key: str) -> tuple[str, str] | None:
        try:
            found = self._client.json(f"/rest/api/space/{quoted(key)}")
        except AbsentError:
            return None
        return text_at(found, "id"), text_at(found, "name")

    def space_keys(self) -> list[str]:
        results = self._client.json("/rest/api/space", {"limit": "100"}).get("results")
        return [text_at(space, "key") for space in list_of(results)]

    def listing(self, key: str, id_: str, *, bodies: bool, on_note: Callable[[str], None]) -> Iterator[list[Page]]:
        yield from self._search(f"space = {in_cql(key)} and type in (page, blogpost) order by created asc", bodies)

    def changed(self, key: str, id_: str, since: datetime, *, bodies: bool) -> Iterator[list[Page]]:
        moment = since.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M")
        cql = f'space = {in_cql(key)} and type in (page, blogpost) and lastmodified >= "{moment}"'
        yield from self._search(f"{cql} order by lastmodified desc", bodies)

    def _search(self, cql: str, bodies: bool) -> Iterator[list[Page]]:
        expand = f"body.storage,{_DETAILS}" if bodies else _DETAILS
        for items in search(self._client, cql, expand, _BODIES if bodies else _LIST, _DETAILS):
            yield [page_of_v1(item, self._client.base) for item in items]

    def page(self, id_: str, *, body: bool = True) -> Page | None:
        try:
            found = self._client.json(
                f"/rest/api/content/{quoted(id_)}",
                {"status": "current", "expand": f"body.storage,{_DETAILS}" if body else _DETAILS},
            )
        except AbsentError:
            return None
        return page_of_v1(found, self._client.base) if found.get("status", "current") == "current" else None

    def user(self, key: str) -> str:
        return text_at(self._client.json("/rest/api/user", {"key": key}), "displayName")

    def view(self, id_: str) -> str:
        found = self._client.json(f"/rest/api/content/{quoted(id_)}", {"expand": "body.view"})
        return text_at(found, "body", "view", "value")


def search(client: Client, cql: str, expand: str, limit: int, less: str = "") -> Iterator[list[Item]]:
    """The contents that a CQL query finds, as v1 gives them; Cloud has this search too.

    less: what to expand of those that the site cannot give with all of `expand`.
    """

    def fetch(place: Mapping[str, str], expand: str = expand) -> dict[str, Any]:
        return client.json("/rest/api/content/search", {"cql": cql, "expand": expand, **place}, tries=LISTED)

    return walk(fetch, limit, offsets=True, light=(lambda place: fetch(place, less)) if less else None)


def in_cql(word: str) -> str:
    """A word as a string of CQL."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quoted(part: str) -> str:
    """A part of a path."""
    return quote(part, safe="~")
