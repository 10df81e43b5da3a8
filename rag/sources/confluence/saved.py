"""Reads answers of Confluence's REST API, version 1 or 2, that were saved to files: a page, or a list of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag.document import Meta
from rag.sources.clean import whole
from rag.sources.confluence.body.adf import storage_of_adf
from rag.sources.confluence.body.around import Around
from rag.sources.confluence.body.nodes import Node
from rag.sources.confluence.body.storage import markdown_of_nodes, read_nodes
from rag.sources.confluence.html_export import nodes_of_html
from rag.sources.confluence.page import alone, iso_time, page_id, page_read, person_name
from rag.sources.html.page import parse_html
from rag.sources.reader import LARGEST_PAGE, LeftOut, Read, ReadOptions, Whole
from slm.errors import DamagedFileError, UnsupportedError
from slm.text.encoding.decode import decode

_SPACE = re.compile(r"/(?:spaces|display|api/space)/(~?[\w.@-]{1,255})")
_SITE = re.compile(r"(https?://[^/\s]{1,255}(?:/wiki)?)(?=/(?:rest|api)/)")


def read_answer_file(path: Path, wanted: ReadOptions) -> Iterator[Read | LeftOut | Whole]:
    """The pages of a saved answer. Raises DamagedFileError (no JSON) and UnsupportedError (no pages with a body)."""
    if path.stat().st_size > 10 * LARGEST_PAGE:
        raise UnsupportedError("it is larger than any answer of an API")
    try:
        answer = json.loads(decode(path.read_bytes()).text.lstrip("\ufeff"))
    except RecursionError as error:
        raise UnsupportedError("it is JSON that nests deeper than any answer of Confluence") from error
    except ValueError as error:
        raise DamagedFileError(f"it is no JSON that can be read: {error}") from error
    single = isinstance(answer, dict) and "results" not in answer
    pages = [answer] if single else list_of(answer.get("results") if isinstance(answer, dict) else answer)
    pages = [page["content"] if isinstance(page.get("content"), dict) else page for page in pages if _is_page(page)]
    if not pages:
        raise UnsupportedError("it is JSON, but no answer of Confluence that holds pages")
    base = text_at(answer, "_links", "base") if isinstance(answer, dict) else ""
    if all(body_of(page) is None for page in pages):
        raise UnsupportedError("it is an answer of Confluence that lists pages without their bodies")
    others = _Others(pages)
    for page in pages:
        if body_of(page) is None:
            yield LeftOut(text_at(page, "id"), "the answer lists it without its body")
            continue
        read = read_answer(page, base or wanted.base_url, others.around(page))
        yield alone(read) if single else read


def read_answer(page: dict[str, Any], base: str = "", around: Around | None = None) -> Read:
    """A page as the API gives it (v1 with expanded body, version, space, ancestors, metadata.labels; or v2).

    base: the address of the site, where the answer does not say it.
    """
    nodes = body_of(page)
    if nodes is None:
        raise DamagedFileError("the answer holds no body")
    number, title = text_at(page, "id"), text_at(page, "title")
    links = page.get("_links")
    links = links if isinstance(links, dict) else {}
    webui = text_at(links, "webui")
    own = _SITE.match(text_at(links, "self"))
    site = (text_at(links, "base") or base or (own.group(1) if own else "")).rstrip("/")
    space = _space_of(page)
    labels = list_of(at(page, "metadata", "labels", "results")) or list_of(at(page, "labels", "results"))
    version = at(page, "version", "number")
    who = _who_may_see(page)
    meta = Meta(
        id=page_id(number), url=f"{site}{webui}" if site and webui else "", space=space,
        ancestors=tuple(text_at(one, "title") for one in list_of(page.get("ancestors")) if text_at(one, "title")),
        labels=tuple(sorted({text_at(label, "name") for label in labels if text_at(label, "prefix") != "my"} - {""})),
        author=person_name(text_at(page, "history", "createdBy", "displayName") or
                           text_at(page, "version", "by", "displayName")),
        created=iso_time(text_at(page, "history", "createdDate") or text_at(page, "createdAt")),
        modified=iso_time(text_at(page, "version", "when") or text_at(page, "version", "createdAt")),
        version=version if isinstance(version, int) else 0, restrictions=(who,) if who else (),
    )  # fmt: skip
    files = [text_at(file, "title") for file in list_of(at(page, "children", "attachment", "results"))]
    written = markdown_of_nodes(nodes, around or Around(space, title))
    return page_read(title or number, number, written, meta, files=[file for file in files if file])


class _Others:
    """The pages of one answer, as they show and list each other."""

    def __init__(self, pages: list[dict[str, Any]]) -> None:
        # Of a page and a blog post with one title the page is meant.
        by_kind = sorted(pages, key=lambda page: page.get("type", "page") == "page")
        self._by_title = {(_space_of(page), text_at(page, "title").casefold()): page for page in by_kind}
        title_of = {text_at(page, "id"): text_at(page, "title") for page in pages}
        self._below: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for page in pages:
            above = [text_at(one, "title") for one in list_of(page.get("ancestors"))]
            parent = above[-1] if above else title_of.get(text_at(page, "parentId"), "")
            self._below.setdefault((_space_of(page), parent.casefold()), []).append(page)

    def around(self, page: dict[str, Any]) -> Around:
        """What a page may show of the others: those that are not for fewer people than it is."""
        own = ((), _who_may_see(page))

        def body(space: str, title: str) -> Node | None:
            found = self._by_title.get((space, title.casefold()))
            return body_of(found) if found is not None and _who_may_see(found) in own else None

        def children(space: str, title: str) -> list[str]:
            below = self._below.get((space, title.casefold()), ()) if title else ()
            return [text_at(one, "title") for one in below if _who_may_see(one) in own]

        return Around(_space_of(page), text_at(page, "title"), body, children=children)


def _space_of(page: dict[str, Any]) -> str:
    """The key of a page's space."""
    links = page.get("_links")
    webui = text_at(links, "webui") if isinstance(links, dict) else ""
    return text_at(page, "space", "key") or _space_in(text_at(page, "_expandable", "space")) or _space_in(webui)


def _who_may_see(page: dict[str, Any]) -> tuple[str, ...]:
    """Who a page's own restrictions let see it; nobody is named where all may."""
    read_by = at(page, "restrictions", "read", "restrictions")
    users = [text_at(user, "username") or text_at(user, "accountId") or text_at(user, "userKey")
             for user in list_of(at(read_by, "user", "results"))]  # fmt: skip
    groups = [text_at(group, "name") for group in list_of(at(read_by, "group", "results"))]
    return tuple(sorted([*(f"user:{user}" for user in users if user), *(f"group:{name}" for name in groups if name)]))


def body_of(page: dict[str, Any]) -> Node | None:
    """The nodes of a page's body in the best form that the answer holds; None when it holds none."""
    body = page.get("body")
    storage = text_at(body, "storage", "value")
    if storage.strip():
        return read_nodes(storage)
    document = text_at(body, "atlas_doc_format", "value")
    if document.strip():
        return read_nodes(storage_of_adf(document))
    for form in ("export_view", "view", "styled_view"):
        html = text_at(body, form, "value")
        if html.strip():
            return nodes_of_html(parse_html(html).body)
    return read_nodes("") if isinstance(at(body, "storage", "value"), str) else None


def _is_page(page: Any) -> bool:
    """Whether a part of an answer is a current page or blog post."""
    if not isinstance(page, dict):
        return False
    page = page["content"] if isinstance(page.get("content"), dict) else page
    kind = page.get("type", "page")
    return bool(text_at(page, "id") and text_at(page, "title")) and kind in ("page", "blogpost") and page.get(
        "status", "current") == "current"  # fmt: skip


def at(value: Any, *path: str) -> Any:
    """What is at a path of keys; None where there is nothing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def text_at(value: Any, *path: str) -> str:
    """The text or number at a path of keys, as text; "" for anything else."""
    found = at(value, *path)
    return whole(str(found)) if isinstance(found, (str, int)) and not isinstance(found, bool) else ""


def list_of(value: Any) -> list[Any]:
    """A list as it is; an empty one for anything else."""
    return value if isinstance(value, list) else []


def _space_in(link: str) -> str:
    found = _SPACE.search(link)
    return found.group(1) if found else ""
