"""The JSON of Confluence's REST interfaces, v1 and v2, into pages. Nothing in it is taken for granted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rag.sources.clean import whole
from rag.sources.confluence.page import file_address, page_address
from rag.sources.confluence.rest.content import Page
from rag.sources.confluence.saved import at, list_of, text_at


def page_of_v1(found: Any, base: str) -> Page:
    """A content of v1, with as much as was expanded."""
    id_ = text_at(found, "id")
    ancestors = [above for above in list_of(at(found, "ancestors")) if isinstance(above, dict)]
    return Page(
        id=id_, title=text_at(found, "title"), space=text_at(found, "space", "key"),
        version=_number(at(found, "version", "number")), url=page_address(base, id_),
        kind=text_at(found, "type") or "page",
        created=text_at(found, "history", "createdDate"),
        modified=text_at(found, "version", "when") or text_at(found, "history", "lastUpdated", "when"),
        author=text_at(found, "history", "createdBy", "displayName"),
        parent=text_at(ancestors[-1], "id") if ancestors else "",
        ancestors=tuple(text_at(above, "title") for above in ancestors),
        labels=_labels(at(found, "metadata", "labels", "results")),
        restrictions=_restrictions(at(found, "restrictions", "read", "restrictions")),
        position=_place(at(found, "extensions", "position")),
        storage=_body(found, "storage"), view=_body(found, "view"),
    )  # fmt: skip


def comment_of_v1(found: Any, base: str) -> Page:
    """A comment of v1, with its container expanded, which is the page it is on."""
    page = page_of_v1(found, base)
    return replace(page, kind="comment", parent=text_at(found, "container", "id"))


def file_of_v1(found: Any, base: str) -> Page:
    """An attached file of v1, with its container expanded: it is read where its page is."""
    page = page_of_v1(found, base)
    parent = text_at(found, "container", "id")
    url = file_address(base, parent, page.title)
    return replace(page, kind="attachment", parent=parent, url=url, file=text_at(found, "_links", "download"))


def page_of_v2(found: Any, base: str, key_of: Callable[[str], str], kind: str) -> Page:
    """A page or blog post of v2; key_of gives the key of the space with an id."""
    id_ = text_at(found, "id")
    return Page(
        id=id_, title=text_at(found, "title"), space=key_of(text_at(found, "spaceId")),
        version=_number(at(found, "version", "number")), url=page_address(base, id_), kind=kind,
        created=text_at(found, "createdAt"), modified=text_at(found, "version", "createdAt"),
        parent=text_at(found, "parentId"),
        labels=_labels(at(found, "labels", "results")), storage=_body(found, "storage"), view=_body(found, "view"),
        position=_place(found.get("position")), detailed=False,
    )  # fmt: skip


def _place(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _body(found: Any, form: str) -> str | None:
    value = at(found, "body", form, "value")
    return whole(value) if isinstance(value, str) else None


def _labels(results: Any) -> tuple[str, ...]:
    names = {text_at(label, "name") for label in list_of(results)}
    return tuple(sorted(names - {""}))


def _restrictions(read: Any) -> tuple[tuple[str, ...], ...]:
    """Who may read: one rule for the page, or none where everybody may."""
    users = [
        text_at(user, "accountId") or text_at(user, "username") or text_at(user, "userKey")
        for user in list_of(at(read, "user", "results"))
    ]
    groups = [text_at(group, "name") or text_at(group, "id") for group in list_of(at(read, "group", "results"))]
    named = {f"user:{name}" for name in users if name} | {f"group:{name}" for name in groups if name}
    return (tuple(sorted(named)),) if named else ()
