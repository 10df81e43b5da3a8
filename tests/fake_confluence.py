"""A Confluence that is none: the REST interfaces of Cloud (v2) and Data Center (v1), with the faults of real sites.

It answers at httpx's transport (`transport`) or on a port (`serving`). `Faults` switches each fault on.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx

Answer = tuple[int, dict[str, str], bytes]
TOKEN, EMAIL = "s3cret-token", "aoi@example.com"


@dataclass
class FakePage:
    """A page; `hidden` is there, but not for the account (cut out of answers after they are counted)."""

    id: str
    title: str
    body: str
    space: str = "DOCS"
    version: int = 1
    created: datetime = datetime(2024, 1, 1, tzinfo=timezone.utc)
    modified: datetime = datetime(2024, 1, 1, tzinfo=timezone.utc)
    parent: str = ""
    labels: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    kind: str = "page"
    status: str = "current"
    hidden: bool = False


@dataclass
class Faults:
    """What goes wrong. Numbers of 0 and empty ones are off.

    cap: results an answer has at most, without a word. miscount: `start` and `next` count what was asked for.
    promise: the end links to an empty answer. wait_every: each so-manieth request is refused with 429 (with and without
    Retry-After) or 403, in turn. heavy: answers of more than so many pages with bodies are a 500. fail_every: each
    so-manieth request is a 502. slow_every: is answered too late. broken_every: breaks off. token_until: requests after
    which the token is no longer accepted. minute: times are cut to it. zone: hours that the account's clock is ahead.
    no_storage: ids whose storage format fails. native: ids whose storage format is empty. bare: lists have no bodies.
    churn: is called before each listing.
    no_search: the search of v1 is not there.
    """

    cap: int = 0
    miscount: bool = False
    promise: bool = False
    wait_every: int = 0
    heavy: int = 0
    fail_every: int = 0
    slow_every: int = 0
    broken_every: int = 0
    token_until: int = 0
    minute: bool = False
    zone: int = 0
    no_storage: tuple[str, ...] = ()
    native: tuple[str, ...] = ()
    bare: bool = False
    churn: Callable[[], None] | None = None
    no_search: bool = False


class FakeConfluence:
    """A site with pages by id. `requests` holds the path and query of each request."""

    def __init__(self, *, cloud: bool, faults: Faults | None = None, context: str | None = None) -> None:
        self.cloud, self.faults = cloud, faults or Faults()
        self.context = context if context is not None else "/wiki" if cloud else ""
        self.pages: dict[str, FakePage] = {}
        self.people = {"557058:1a2b": "Aoi Tanaka"}
        self.spaces = {"DOCS": "7001", "OTHER": "7002"}
        self.clock = datetime(2024, 6, 1, 12, 0, 30, tzinfo=timezone.utc)
        self.requests: list[str] = []
        self.refused = 0
        self._next_id = 1000
        self._lock = threading.Lock()

    def tick(self, seconds: float = 7) -> datetime:
        """Later by so much."""
        self.clock += timedelta(seconds=seconds)
        return self.clock

    def add(self, title: str, body: str, **more: Any) -> FakePage:
        """A new page."""
        self._next_id += 1
        now = self.tick()
        page = FakePage(str(self._next_id), title, body, created=now, modified=now, **more)
        self.pages[page.id] = page
        return page

    def attach(self, page: FakePage, name: str, text: str) -> FakePage:
        """A file of a page; its body is its text."""
        file = self.add(name, text, parent=page.id, kind="attachment", space=page.space)
        del self.pages[file.id]
        file.id = f"att{file.id}"
        self.pages[file.id] = file
        return file

    def comment(self, page: FakePage, text: str) -> FakePage:
        """A comment on a page."""
        return self.add("", text, parent=page.id, kind="comment", space=page.space)

    def edit(self, id_: str, body: str) -> None:
        """A new version of a page."""
        page = self.pages[id_]
        page.body, page.version, page.modified = body, page.version + 1, self.tick()

    def delete(self, id_: str) -> None:
        """Into the bin."""
        self.pages[id_].status = "trashed"

    def move(self, id_: str, space: str) -> None:
        """Into another space, which makes no new version."""
        self.pages[id_].space = space

    def shown(self, space: str = "DOCS") -> dict[str, FakePage]:
        """The pages that the account sees in a space, by id."""
        return {
            id_: page for id_, page in self.pages.items()
            if (page.space, page.status, page.hidden) == (space, "current", False) and page.kind in ("page", "blogpost")
        }  # fmt: skip

    # -- answers

    def answer(self, target: str, headers: Mapping[str, str]) -> Answer:
        """What the site says to GET `target` (path and query)."""
        with self._lock:
            self.requests.append(target)
            number, faults = len(self.requests), self.faults
            status, more, value = self._guarded(target, headers, number)
            more = {"content-type": "application/json", "date": self._http_date(), **more}
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            if faults.broken_every and status == 200 and number % faults.broken_every == 3:
                body = body[: len(body) // 2]
            return status, more, body

    def _guarded(self, target: str, headers: Mapping[str, str], number: int) -> tuple[int, dict[str, str], Any]:
        faults = self.faults
        given = headers.get("authorization", "")
        basic = base64.b64encode(f"{EMAIL}:{TOKEN}".encode()).decode()
        right = given in (f"Bearer {TOKEN}", f"Basic {basic}")
        if not right or (faults.token_until and number > faults.token_until):
            return 401, {}, {"statusCode": 401, "message": "Unauthorized"}
        if faults.wait_every and number % faults.wait_every == 0:
            self.refused += 1
            return [
                (429, {"retry-after": "3"}, {"message": "Rate limit exceeded"}),
                (429, {}, {"message": "Too many requests"}),
                (403, {}, {"message": "You have exceeded a rate limit"}),
                (403, {"retry-after": "2"}, {"message": "Forbidden"}),
                (429, {"retry-after": "Sat, 01 Jun 2024 12:00:00 GMT"}, {}),
            ][self.refused % 5]  # fmt: skip
        if faults.fail_every and number % faults.fail_every == 0:
            return 502, {}, b"<html><body>Bad gateway</body></html>"
        if faults.slow_every and number % faults.slow_every == 0:
            raise TimeoutError
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        if not parts.path.startswith(self.context):
            return 404, {}, b"<html>not here</html>"
        path = parts.path[len(self.context) :]
        for pattern, handler in self._routes():
            if match := re.fullmatch(pattern, path):
                return handler(query, *match.groups())
        return 404, {}, {"statusCode": 404, "message": "No such resource"}

    def _routes(self) -> list[tuple[str, Callable[..., tuple[int, dict[str, str], Any]]]]:
        both: list[tuple[str, Callable[..., tuple[int, dict[str, str], Any]]]] = [
            (r"/download/attachments/(\w+)", self._file), (r"/rest/api/user", self._user),
        ]  # fmt: skip
        both += [] if self.faults.no_search else [(r"/rest/api/content/search", self._search)]
        if self.cloud:
            return [
                *both, (r"/api/v2/spaces", self._spaces_v2), (r"/api/v2/spaces/(\d+)", self._space_v2),
                (r"/api/v2/spaces/(\d+)/(pages|blogposts)", self._list_v2),
                (r"/api/v2/(pages|blogposts|attachments)/(\w+)", self._page_v2),
            ]  # fmt: skip
        return [
            *both, (r"/rest/api/space", self._spaces_v1), (r"/rest/api/space/([^/]+)", self._space_v1),
            (r"/rest/api/content/(\w+)", self._page_v1),
        ]  # fmt: skip

    def _file(self, query: dict[str, str], id_: str) -> tuple[int, dict[str, str], Any]:
        return 200, {}, self.pages[id_].body.encode()

    def _user(self, query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        name = self.people.get(query["accountId" if self.cloud else "key"])
        return (200, {}, {"displayName": name}) if name else (404, {}, {"message": "No user found"})

    def _spaces_v1(self, query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        return 200, {}, {"results": [{"id": int(id_), "key": key} for key, id_ in self.spaces.items()]}

    def _space_v1(self, query: dict[str, str], key: str) -> tuple[int, dict[str, str], Any]:
        if key not in self.spaces:
            return 404, {}, {"statusCode": 404, "message": f"No space with key : {key}"}
        return 200, {}, {"id": int(self.spaces[key]), "key": key, "name": key.title()}

    def _spaces_v2(self, query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        keys = query["keys"].split(",") if "keys" in query else list(self.spaces)
        found = [{"id": self.spaces[key], "key": key, "name": key.title()} for key in keys if key in self.spaces]
        return 200, {}, {"results": found, "_links": {}}

    def _space_v2(self, query: dict[str, str], id_: str) -> tuple[int, dict[str, str], Any]:
        key = next((key for key, other in self.spaces.items() if other == id_), None)
        return (200, {}, {"id": id_, "key": key}) if key else (404, {}, {"errors": [{"status": 404}]})

    def _search(self, query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        faults, cql = self.faults, query["cql"]
        if faults.churn:
            faults.churn()
        space, container = (re.search(rf'{name}\s*=\s*"([^"]*)"', cql) for name in ("space", "container"))
        assert space or container, cql
        since = re.search(r'lastmodified\s*>=\s*"([\d-]+ [\d:]+)"', cql)
        single = re.search(r"type = (attachment|comment)", cql)
        kinds = (single[1],) if single else ("page", "blogpost")
        pages = [
            p for p in self.pages.values() if p.status == "current" and p.kind in kinds
            and (not space or p.space == space[1]) and (not container or p.parent == container[1])
        ]  # fmt: skip
        if since:
            # The words of a query are in the account's own time zone.
            local = datetime.strptime(since[1], "%Y-%m-%d %H:%M").replace(tzinfo=self._zone())
            pages = [page for page in pages if page.modified >= local]  # whole minutes
        if "order by lastmodified desc" in cql:
            pages.sort(key=lambda page: page.modified, reverse=True)
        else:
            assert "order by created asc" in cql  # which is the order they are kept in
        expand = query.get("expand", "")
        start, asked = int(query.get("start", "0")), int(query.get("limit", "25"))
        given = min(asked, faults.cap or asked, 50 if "body.storage" in expand else 200)
        window = pages[start : start + given]
        visible = [page for page in window if not page.hidden]
        if "body.storage" in expand and self._too_heavy(visible):
            return 500, {}, {"statusCode": 500, "message": "java.lang.OutOfMemoryError"}
        links: dict[str, str] = {"base": "http://internal-host:8090", "context": self.context}
        if start + given < len(pages) or faults.promise:
            then = {**query, "start": str(start + (asked if faults.miscount else given))}
            links["next"] = "/rest/api/content/search?" + urlencode(then)
        return 200, {}, {
            "results": [self._v1(page, "" if faults.bare and "body" in expand else expand) for page in visible],
            "start": asked if faults.miscount else start, "limit": asked, "size": len(visible), "_links": links,
        }  # fmt: skip

    def _page_v1(self, query: dict[str, str], id_: str) -> tuple[int, dict[str, str], Any]:
        page = self.pages.get(id_)
        if page is None or page.status != "current" or page.hidden:
            return 404, {}, {"statusCode": 404, "message": "No content found"}
        if "body.storage" in query.get("expand", "") and id_ in self.faults.no_storage:
            return 500, {}, {"statusCode": 500, "message": "could not be converted"}
        return 200, {}, self._v1(page, query.get("expand", ""))

    def _list_v2(self, query: dict[str, str], space_id: str, kind: str) -> tuple[int, dict[str, str], Any]:
        faults = self.faults
        if faults.churn:
            faults.churn()
        key = next(key for key, id_ in self.spaces.items() if id_ == space_id)
        kinds = {"pages": "page", "blogposts": "blogpost"}
        pages = [p for p in self.pages.values() if (p.space, p.status, p.kind) == (key, "current", kinds[kind])]

        def place(page: FakePage) -> list[float]:
            if query.get("sort") == "-modified-date":
                return [-page.modified.timestamp(), -int(page.id)]
            return [int(page.id)]

        pages.sort(key=place)
        if "cursor" in query:
            after = json.loads(base64.urlsafe_b64decode(query["cursor"]))
            pages = [page for page in pages if place(page) > after] if after else []
        asked = int(query.get("limit", "25"))
        given = min(asked, faults.cap or asked, 250)
        window = pages[:given]
        visible = [page for page in window if not page.hidden]
        with_body = "body-format" in query
        if with_body and self._too_heavy(visible):
            return 500, {}, {"errors": [{"status": 500}]}
        links = {"base": "https://internal.example/wiki"}
        if given < len(pages) or faults.promise:
            cursor = base64.urlsafe_b64encode(json.dumps(place(window[-1]) if window else []).encode()).decode()
            rest = {k: v for k, v in query.items() if k != "cursor"}
            links["next"] = f"/wiki/api/v2/spaces/{space_id}/{kind}?" + urlencode({**rest, "cursor": cursor})
        results = [self._v2(page, "storage" if with_body and not faults.bare else "") for page in visible]
        return 200, {}, {"results": results, "_links": links}

    def _page_v2(self, query: dict[str, str], kind: str, id_: str) -> tuple[int, dict[str, str], Any]:
        page = self.pages.get(id_)
        if page is None or page.hidden or f"{page.kind}s" != kind:
            return 404, {}, {"errors": [{"status": 404, "code": "NOT_FOUND"}]}
        form = query.get("body-format", "")
        if form == "storage" and id_ in self.faults.no_storage:
            return 500, {}, {"errors": [{"status": 500}]}
        return 200, {}, self._v2(page, form)  # also one in the bin: v2 says so in `status`

    def _too_heavy(self, pages: list[FakePage]) -> bool:
        heavy = self.faults.heavy
        return bool(heavy and len(pages) > heavy) or any(page.id in self.faults.no_storage for page in pages)

    def _v1(self, page: FakePage, expand: str) -> dict[str, Any]:
        value: dict[str, Any] = {
            "id": page.id, "type": page.kind, "status": page.status, "title": page.title,
            "_links": {"webui": f"/display/{page.space}/{page.id}", "download": f"/download/attachments/{page.id}?v=1"},
            "_expandable": {},
        }  # fmt: skip
        if "version" in expand:
            value["version"] = {"number": page.version, "when": self._date(page.modified)}
        if "space" in expand:
            value["space"] = {"id": int(self.spaces[page.space]), "key": page.space}
        if "container" in expand:
            value["container"] = {"id": page.parent, "type": "page"}
        if "history" in expand:
            value["history"] = {"createdDate": self._date(page.created), "createdBy": {"displayName": "Aoi Tanaka"}}
        if "metadata.labels" in expand:
            value["metadata"] = {"labels": {"results": [{"prefix": "global", "name": name} for name in page.labels]}}
        if "ancestors" in expand:
            value["ancestors"] = [{"id": above.id, "title": above.title} for above in self._above(page)]
        if "restrictions.read" in expand:
            groups = [{"type": "group", "name": r[6:]} for r in page.readers if r.startswith("group:")]
            users = [{"type": "known", "username": r[5:]} for r in page.readers if r.startswith("user:")]
            value["restrictions"] = {
                "read": {"operation": "read",
                         "restrictions": {"user": {"results": users}, "group": {"results": groups}}}
            }  # fmt: skip
        value["body"] = {
            form: {"value": self._stored(page) if form == "storage" else f"<p>{page.body}</p>", "representation": form}
            for form in ("storage", "view") if f"body.{form}" in expand
        }  # fmt: skip
        return value

    def _v2(self, page: FakePage, form: str) -> dict[str, Any]:
        value: dict[str, Any] = {
            "id": page.id, "status": page.status, "title": page.title, "spaceId": self.spaces[page.space],
            "parentId": page.parent or None, "authorId": "557058:1a2b", "createdAt": self._date(page.created),
            "version": {"number": page.version, "createdAt": self._date(page.modified)},
            "_links": {"webui": f"/spaces/{page.space}/pages/{page.id}"}, "body": {},
        }  # fmt: skip
        if form:
            shown = self._stored(page) if form == "storage" else page.body
            value["body"] = {form: {"value": shown, "representation": form}}
        return value

    def _stored(self, page: FakePage) -> str:
        return "" if page.id in self.faults.native else page.body

    def _above(self, page: FakePage) -> list[FakePage]:
        above: list[FakePage] = []
        while page.parent in self.pages:
            page = self.pages[page.parent]
            above.insert(0, page)
        return above

    def _zone(self) -> timezone:
        return timezone(timedelta(hours=self.faults.zone))

    def _cut(self, date: datetime) -> datetime:
        return date.replace(second=0, microsecond=0) if self.faults.minute else date

    def _date(self, date: datetime) -> str:
        return self._cut(date).astimezone(self._zone()).isoformat(timespec="milliseconds")

    def _http_date(self) -> str:
        return self.clock.strftime("%a, %d %b %Y %H:%M:%S GMT")


def transport(site: FakeConfluence) -> httpx.MockTransport:
    """The site at httpx's seam; a slow answer is a read timeout."""

    def handle(request: httpx.Request) -> httpx.Response:
        try:
            status, headers, body = site.answer(request.url.raw_path.decode(), request.headers)
        except TimeoutError:
            raise httpx.ReadTimeout("timed out", request=request) from None
        return httpx.Response(status, headers=headers, content=body)

    return httpx.MockTransport(handle)


@contextmanager
def serving(site: FakeConfluence, port: int = 0) -> Iterator[str]:
    """The site on a port until the end of the block; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                status, headers, body = site.answer(self.path, {k.lower(): v for k, v in self.headers.items()})
            except TimeoutError:
                time.sleep(0.5)
                self.close_connection = True
                return
            self.send_response_only(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: tests read stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{site.context}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
