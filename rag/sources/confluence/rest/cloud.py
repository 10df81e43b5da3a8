"""A Cloud site: REST v2, listings by cursors; labels and restrictions by the search of v1, which alone lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import chain
from typing import Any

from rag.sources.confluence.rest.client import AbsentError, Client, DeniedError, OverloadError
from rag.sources.confluence.rest.content import Page
from rag.sources.confluence.rest.data_center import SearchedSite, in_cql, quoted, search
from rag.sources.confluence.rest.paging import LISTED, walk
from rag.sources.confluence.rest.wire import page_of_v1, page_of_v2
from rag.sources.confluence.saved import list_of, text_at

_LIST, _BODIES = 250, 50
_KINDS = (("pages", "page"), ("blogposts", "blogpost"))
_DETAILS = (
    "metadata.labels,restrictions.read.restrictions.user,restrictions.read.restrictions.group,version,space,history"
)


class Cloud(SearchedSite):
    """The Site of REST v2."""

    kind = "Cloud"

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._keys: dict[str, str] = {}

    def space(self, key: str) -> tuple[str, str] | None:
        for found in self._client.json("/api/v2/spaces", {"keys": key, "limit": "25"}).get("results") or []:
            if text_at(found, "key") == key:
                self._keys[text_at(found, "id")] = key
                return text_at(found, "id"), text_at(found, "name")
        return None

    def space_keys(self) -> list[str]:
        results = self._client.json("/api/v2/spaces", {"limit": "100"}).get("results")
        return [text_at(space, "key") for space in list_of(results)]

    def listing(self, key: str, id_: str, *, bodies: bool, on_note: Callable[[str], None]) -> Iterator[list[Page]]:
        details = {} if bodies else self._details(key, on_note)
        for path, kind in _KINDS:
            for pages in self._walk(id_, path, kind, "id", bodies):
                yield [_detailed(page, details) for page in pages]

    def changed(self, key: str, id_: str, since: datetime, *, bodies: bool) -> Iterator[list[Page]]:
        for path, kind in _KINDS:
            for pages in self._walk(id_, path, kind, "-modified-date", bodies):
                yield pages
                if all(page.changed_at is not None and page.changed_at < since for page in pages):
                    break

    def _walk(self, id_: str, path: str, kind: str, sort: str, bodies: bool) -> Iterator[list[Page]]:
        wanted = {"sort": sort, "status": "current"}
        form = {"body-format": "storage"} if bodies else {}

        def light(place: Mapping[str, str]) -> dict[str, Any]:
            return self._client.json(f"/api/v2/spaces/{quoted(id_)}/{path}", {**wanted, **place}, tries=LISTED)

        items = walk(
            lambda place: light({**form, **place}), _BODIES if bodies else _LIST, offsets=False,
            light=light if bodies else None,
        )  # fmt: skip
        try:
            first = next(items, [])
        except AbsentError:
            if kind == "page":
                raise
            return  # a site without blog posts
        for page in chain([first], items):
            yield [page_of_v2(item, self._client.base, self._key_of, kind) for item in page]

    def _details(self, key: str, on_note: Callable[[str], None]) -> dict[str, Page]:
        """By id what v2 does not list: labels and restrictions."""
        cql = f"space = {in_cql(key)} and type in (page, blogpost) order by created asc"
        try:
            return {
                page.id: page
                for items in search(self._client, cql, _DETAILS, _LIST)
                for page in (page_of_v1(item, self._client.base) for item in items)
            }
        except (AbsentError, DeniedError, OverloadError) as error:
            on_note(f"labels and restrictions were not read: {error.what}")
            return {}

    def user(self, key: str) -> str:
        return text_at(self._client.json("/rest/api/user", {"accountId": key}), "displayName")

    def page(self, id_: str, *, body: bool = True) -> Page | None:
        wanted = {"body-format": "storage"} if body else {}
        for path, kind in (("attachments", "attachment"),) if id_.startswith("att") else _KINDS:
            try:
                found = self._client.json(f"/api/v2/{path}/{quoted(id_)}", wanted)
            except AbsentError:
                continue
            if found.get("status", "current") == "current":
                return page_of_v2(found, self._client.base, self._key_of, kind)
        return None

    def view(self, id_: str) -> str:
        for path, _ in _KINDS:
            try:
                found = self._client.json(f"/api/v2/{path}/{quoted(id_)}", {"body-format": "view"})
            except AbsentError:
                continue
            return text_at(found, "body", "view", "value")
        return ""

    def _key_of(self, space_id: str) -> str:
        if space_id and space_id not in self._keys:
            try:
                self._keys[space_id] = text_at(self._client.json(f"/api/v2/spaces/{quoted(space_id)}"), "key")
            except (AbsentError, DeniedError):
                self._keys[space_id] = ""
        return self._keys.get(space_id, "")


def _detailed(page: Page, details: Mapping[str, Page]) -> Page:
    more = details.get(page.id)
    return (
        page
        if more is None
        else replace(page, labels=more.labels, restrictions=more.restrictions, author=more.author, detailed=True)
    )
