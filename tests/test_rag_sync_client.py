"""The client of Confluence's REST interfaces: what it does about each answer, and how it walks through listings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.sources.confluence.rest.client import AbsentError, Client, DeniedError, OverloadError, TokenError
from rag.sources.confluence.rest.content import Page, placed
from rag.sources.confluence.rest.credentials import Credentials, find_credentials
from rag.sources.confluence.rest.paging import walk
from rag.sources.confluence.rest.retry import Do, judge, retry_after
from rag.sources.confluence.rest.site import site_address
from slm.errors import DownloadError, InputError
from slm.text.dates import instant

SECRET = "a-s3cret"


def client(answers: list[httpx.Response | Exception], waits: list[float]) -> Client:
    def handle(request: httpx.Request) -> httpx.Response:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://wiki.example", Credentials(SECRET), transport=httpx.MockTransport(handle), sleep=waits.append)


OK = {"ok": True}


@pytest.mark.parametrize(
    ("answer", "waited"),
    [
        (httpx.Response(429, headers={"retry-after": "17"}), 17.0),
        (httpx.Response(429, headers={"retry-after": "0.5"}), 0.5),
        (httpx.Response(429), 1.0),
        (httpx.Response(403, json={"message": "Rate limit exceeded"}), 1.0),
        (httpx.Response(403, headers={"retry-after": "4"}), 4.0),
        (httpx.Response(503, headers={"retry-after": "9"}), 9.0),
        (httpx.Response(502), 1.0),
        (httpx.Response(200, content=b'{"results": [{"id"'), 0.0),
        (httpx.ReadTimeout("slow"), 1.0),
        (httpx.RemoteProtocolError("cut off"), 1.0),
    ],
)
def test_what_passes_is_asked_again_after_the_time_that_the_site_names(
    answer: httpx.Response | Exception, waited: float
) -> None:
    waits: list[float] = []
    assert client([answer, httpx.Response(200, json=OK)], waits).json("/x") == OK
    assert sum(waits) == waited


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(401), TokenError), (httpx.Response(404), AbsentError), (httpx.Response(403), DeniedError),
        (httpx.Response(500), OverloadError), (httpx.Response(429), OverloadError),
        (httpx.Response(429, headers={"retry-after": "86400"}), OverloadError),
        (httpx.ConnectError("refused"), OverloadError), (httpx.Response(400), InputError),
        (httpx.Response(302, headers={"location": "https://login.example/"}), InputError),
        (httpx.Response(200, content=b"<html>log in</html>"), InputError), (httpx.Response(200, json=[]), InputError),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_an_error_of_its_own_without_the_token(
    answer: httpx.Response | Exception, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        client([answer] * 30, []).json("/x")
    assert SECRET not in f"{raised.value!r} {raised.value} {Credentials(SECRET)!r}"


def test_a_date_in_retry_after_is_taken_by_the_clock_of_the_site() -> None:
    headers = {"retry-after": "Sat, 01 Jun 2024 12:00:30 GMT", "date": "Sat, 01 Jun 2024 12:00:00 GMT"}
    assert retry_after(headers) == 30 and retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "inf"}) is None and retry_after({"retry-after": "-5"}) == 0
    assert judge(403, {"x-ratelimit-remaining": "0"}, "", 5).do is Do.WAIT


def test_the_token_goes_to_no_other_site_than_the_one_that_was_named() -> None:
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        rest = {"results": [{"id": str(len(asked))}], "_links": {"next": "https://evil.example/steal?cursor=abc"}}
        return httpx.Response(200, json=rest if len(asked) < 3 else {"results": []})

    one = Client("http://wiki.example", Credentials(SECRET), transport=httpx.MockTransport(handle))
    list(walk(lambda place: one.json("/list", place), 10, offsets=False))
    assert len(asked) == 2 and all(url.startswith("http://wiki.example/list") for url in asked)


def offsets(
    ids: list[int],
    cap: int,
    *,
    hidden: AbstractSet[int] = frozenset(),
    linked: bool = True,
    between: Callable[[], None] | None = None,
) -> Callable[[Mapping[str, str]], dict[str, Any]]:
    """A listing by offsets of a list that may change between answers; `next` counts what was asked for."""

    def fetch(place: Mapping[str, str]) -> dict[str, Any]:
        start, limit = int(place.get("start", 0)), int(place["limit"])
        window = ids[start : start + min(limit, cap)]
        more = start + min(limit, cap) < len(ids)
        answer = {"results": [{"id": str(id_)} for id_ in window if id_ not in hidden],
                  "_links": {"next": f"/x?start={start + limit}"} if more and linked else {}}  # fmt: skip
        if between:
            between()
        return answer

    return fetch


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 120), st.integers(1, 30), st.integers(5, 60), st.booleans())
def test_a_listing_by_offsets_gives_each_once_whatever_is_cut(total: int, cap: int, limit: int, linked: bool) -> None:
    ids = list(range(1, total + 1))
    answers = list(walk(offsets(ids, cap, linked=linked), limit, offsets=True))
    assert [int(item["id"]) for items in answers for item in items] == ids


@settings(deadline=None, max_examples=150)
@given(st.integers(30, 150), st.integers(6, 30), st.lists(st.integers(0, 200), max_size=40))
def test_what_stays_is_found_though_others_are_deleted_in_between(total: int, cap: int, deleted: list[int]) -> None:
    ids, queue = list(range(1, total + 1)), list(deleted)

    def between() -> None:
        if queue and ids:
            ids.pop(queue.pop() % len(ids))

    answers = list(walk(offsets(ids, cap, between=between), 50, offsets=True))
    found = [int(item["id"]) for items in answers for item in items]
    assert set(ids) <= set(found) and len(found) == len(set(found))


def test_results_that_the_account_may_not_see_do_not_end_a_listing() -> None:
    ids = list(range(1, 301))
    answers = walk(offsets(ids, 25, hidden=set(range(60, 200))), 200, offsets=True)
    assert len([item for items in answers for item in items]) == 300 - 140


@pytest.mark.parametrize("link", ["/x?start=10", "/x?cursor=same", "/x"])
def test_a_listing_that_always_promises_more_comes_to_an_end(link: str) -> None:
    asked: list[int] = []

    def fetch(place: Mapping[str, str]) -> dict[str, Any]:
        asked.append(1)
        return {"results": [{"id": "1"}] if len(asked) == 1 else [], "_links": {"next": link}}

    assert list(walk(fetch, 10, offsets=True)) == [[{"id": "1"}]] and len(asked) < 40


def test_a_listing_that_goes_in_circles_is_an_error() -> None:
    with pytest.raises(DownloadError, match="in circles"):
        list(walk(lambda place: {"results": [{"id": "1"}, {"id": "2"}], "_links": {"next": "/x"}}, 10, offsets=True))


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://a.atlassian.net", "https://a.atlassian.net/wiki"),
        ("https://a.atlassian.net/wiki/spaces/DOCS/overview?x=1", "https://a.atlassian.net/wiki"),
        ("https://wiki.example/display/DOCS/Home", "https://wiki.example"),
        ("https://wiki.example:8443/confluence/pages/viewpage.action?pageId=1", "https://wiki.example:8443/confluence"),
        ("http://127.0.0.1:8090/wiki/", "http://127.0.0.1:8090/wiki"),
    ],
)  # fmt: skip
def test_the_address_of_a_site_is_found_in_what_a_browser_shows(given: str, address: str) -> None:
    assert site_address(given) == address


@pytest.mark.parametrize("given", ["wiki.example", "ftp://wiki.example", "https://", "https://aoi:pw@wiki.example"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InputError) as raised:
        site_address(given)
    assert "pw" not in str(raised.value)


def test_a_token_comes_of_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"\xef\xbb\xbfabc\r\n")
    assert find_credentials(file, {}).token == "abc"
    assert find_credentials(None, {"CONFLUENCE_TOKEN": " t "}).authorization == "Bearer t"
    mail = find_credentials(None, {"CONFLUENCE_TOKEN": "t", "CONFLUENCE_EMAIL": "a@b.c"})
    assert mail.authorization == "Basic YUBiLmM6dA=="
    for bad in ("", " ", "a b", "日本", "a\nb"):
        with pytest.raises(InputError):
            find_credentials(None, {"CONFLUENCE_TOKEN": bad})


def test_dates_are_instants_whatever_their_offset_looks_like() -> None:
    at = datetime(2024, 5, 1, 1, 0, tzinfo=timezone.utc)
    for text in (
        "2024-05-01T10:00:00.000+09:00",
        "2024-05-01T10:00:00.000+0900",
        "2024-05-01T01:00Z",
        "2024-05-01 01:00",
    ):
        assert instant(text) == at, text
    assert instant("yesterday") is None and instant("") is None


def test_pages_that_are_above_each_other_in_a_circle_are_placed_all_the_same() -> None:
    def page(id_: str, parent: str) -> Page:
        return Page(id_, f"T{id_}", "DOCS", 1, id_, parent=parent, restrictions=((f"group:{id_}",),))

    found = placed({"1": page("1", "2"), "2": page("2", "1"), "3": page("3", "2"), "4": page("4", "4")})
    assert found["3"].ancestors == ("T1", "T2") and found["4"].ancestors == ()
    assert found["3"].restrictions == (("group:1",), ("group:2",), ("group:3",))


def test_a_file_that_is_kept_elsewhere_is_fetched_without_the_token() -> None:
    seen: list[tuple[str, str]] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers.get("authorization", "")))
        if request.url.host == "wiki.example":
            return httpx.Response(302, headers={"location": "https://media.example/f?sig=1"})
        return httpx.Response(200, content=b"bytes")

    one = Client("http://wiki.example/wiki", Credentials(SECRET), transport=httpx.MockTransport(handle))
    assert one.content("https://other.example/wiki/download/attachments/1/a.md?v=1") == b"bytes"
    assert seen == [
        ("http://wiki.example/wiki/download/attachments/1/a.md?v=1", f"Bearer {SECRET}"),
        ("https://media.example/f?sig=1", ""),
    ]
