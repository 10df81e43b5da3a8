"""Asks a Confluence site for JSON: waits when it says so, asks again when it fails, names what was wrong.

It knows nothing of pages and spaces. Only paths of the site itself are asked for, whatever its answers link to, so
that the token goes nowhere else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx

from rag.sources.confluence.rest.credentials import Credentials
from rag.sources.confluence.rest.retry import Do, back_off, judge, moment
from slm import __version__
from slm.errors import DownloadError, InputError

_TIMEOUT_S = 60.0
_WAITS = 12  # in a row for one request
_LONGEST_ASKED_WAIT_S = 900.0
_TRIES = 4  # of one request that fails
_LARGEST_ANSWER = 200_000_000
_ELSEWHERE = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: httpx.Headers
    content: bytes
    following: str


class AbsentError(InputError):
    """The site has no such thing, or not for this account."""


class DeniedError(InputError):
    """The account may not read it."""


class TokenError(InputError):
    """The site does not accept the token."""


class OverloadError(DownloadError):
    """The site did not answer, or only with failures; it may answer a smaller request."""


class Client:
    """A site's REST interface below `base` (https://host/context), as a context manager.

    sleep waits so many seconds; on_wait is told of each wait: seconds, and why. `now` is the site's clock.
    """

    def __init__(
        self,
        base: str,
        credentials: Credentials,
        *,
        transport: httpx.BaseTransport | None = None,
        timeout_s: float = _TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[float, str], None] = lambda seconds, why: None,
    ) -> None:
        self.base, self._origin = base, credentials.origin
        self._sleep, self._on_wait = sleep, on_wait
        self.now = datetime.now(timezone.utc)
        # A proxy of the environment is honoured; a .netrc is not, it would take the token's place.
        self._http = httpx.Client(
            transport=transport, timeout=timeout_s, follow_redirects=False,
            headers={
                "Authorization": credentials.authorization, "Accept": "application/json",
                "User-Agent": f"slm-cpu/{__version__}",
            },
        )  # fmt: skip

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def json(self, path: str, params: Mapping[str, str] | None = None, *, tries: int = _TRIES) -> dict[str, Any]:
        """The JSON object at a path below the base, with the Link header's `next` under "_next".

        tries: how often a request that fails is sent; fewer for one that could ask for less.
        Raises AbsentError, DeniedError, TokenError, OverloadError, or InputError for what is no Confluence.
        """
        failed = ""
        for _ in range(tries):
            answer = self._answer(path, params, tries)
            try:
                value = json.loads(answer.content)
            except (ValueError, RecursionError) as error:
                if b"<html" in answer.content[:2000].lower():
                    raise self._no_site("a page of HTML; a login page may stand before it") from error
                failed = f"JSON that breaks off or is damaged: {error}"
                continue
            if not isinstance(value, dict):
                raise self._no_site("JSON that is no object")
            return {**value, "_next": answer.following} if answer.following else value
        raise OverloadError(f"'{self._place(path)}' gave {failed}")

    def content(self, path: str) -> bytes:
        """The bytes at a path below the base. Raises as `json` does.

        Cloud sends on to where files are kept, with a link that needs no token: none is sent there.
        """
        parts = urlsplit(path)
        below = parts.path.removeprefix(urlsplit(self.base).path) if self.base.count("/") > 2 else parts.path
        answer = self._answer("/" + below.lstrip("/"), dict(parse_qsl(parts.query)), _TRIES, {"Accept": "*/*"})
        if answer.status not in _ELSEWHERE:
            return answer.content
        target = urljoin(self.base, answer.headers.get("location", ""))
        bare = httpx.Request("GET", target)
        if urlsplit(target).scheme != "https":
            raise self._no_site("a link to a place that is not secure")
        try:
            return self._received(bare).content
        except httpx.HTTPError as error:
            raise OverloadError(f"a file could not be had: {str(error) or type(error).__name__}") from error

    def _answer(
        self, path: str, params: Mapping[str, str] | None, tries: int, headers: Mapping[str, str] | None = None
    ) -> _Answer:
        waits = failures = 0
        while True:
            try:
                answer = self._get(path, params, headers)
            except httpx.InvalidURL as error:
                raise InputError(f"'{self.base}' is no address of a site") from error
            except httpx.HTTPError as error:
                failures += 1
                if failures >= tries:
                    raise OverloadError(
                        f"'{self._place(path)}' does not answer: {str(error) or type(error).__name__}",
                        hint="Check the address and the network, then run it again: it goes on where it broke off.",
                    ) from error
                self._wait(back_off(failures - 1), "no answer")
                continue
            self.now = moment(answer.headers.get("date", "")) or self.now
            verdict = judge(answer.status, answer.headers, answer.content[:2000].decode("utf-8", "replace"), waits)
            if verdict.do is Do.USE or (headers and answer.status in _ELSEWHERE):
                return answer
            if verdict.do is Do.WAIT:
                waits += 1
                if waits > _WAITS or verdict.seconds > _LONGEST_ASKED_WAIT_S:
                    raise OverloadError(
                        f"'{self._place(path)}' asks to wait again and again (HTTP {answer.status})",
                        found=f"{verdict.seconds:,.0f} s this time", hint="Run it again later: it goes on from here.",
                    )  # fmt: skip
                self._wait(verdict.seconds, f"the site limits requests (HTTP {answer.status})")
            elif verdict.do is Do.LESSEN:
                failures += 1
                if failures >= tries:
                    raise OverloadError(f"'{self._place(path)}' fails (HTTP {answer.status})")
                self._wait(back_off(failures - 1), f"the site fails (HTTP {answer.status})")
            else:
                raise self._error(verdict.do, answer, path)

    def _get(self, path: str, params: Mapping[str, str] | None, headers: Mapping[str, str] | None) -> _Answer:
        request = self._http.build_request("GET", self.base + path, params=params or None, headers=dict(headers or {}))
        return self._received(request)

    def _received(self, request: httpx.Request) -> _Answer:
        """The answer to a request, of a bounded size."""
        answer = self._http.send(request, stream=True)
        try:
            pieces, size = [], 0
            for piece in answer.iter_bytes():
                size += len(piece)
                if size > _LARGEST_ANSWER:
                    raise httpx.ReadError(f"an answer of more than {_LARGEST_ANSWER / 1e6:.0f} MB")
                pieces.append(piece)
        finally:
            answer.close()
        following = answer.links.get("next", {}).get("url", "")
        return _Answer(answer.status_code, answer.headers, b"".join(pieces), following)

    def _wait(self, seconds: float, why: str) -> None:
        self._on_wait(seconds, why)
        self._sleep(seconds)

    def _place(self, path: str) -> str:
        return self.base + path

    def _no_site(self, found: str) -> InputError:
        return InputError(
            f"'{self.base}' does not answer as Confluence does", found=found,
            hint="Name the site's own address, such as https://example.atlassian.net/wiki.",
        )  # fmt: skip

    def _error(self, do: Do, answer: _Answer, path: str) -> InputError:
        if do is Do.REFUSED:
            return TokenError(
                f"'{self.base}' does not accept the token: it is wrong, has expired or was withdrawn",
                found=f"HTTP 401, token from {self._origin}",
                hint="Make a new token there. A Cloud site takes the account's address in CONFLUENCE_EMAIL with it.",
            )
        if do is Do.ABSENT:
            return AbsentError(f"'{self._place(path)}' is not there, or not for this account")
        if do is Do.DENIED:
            return DeniedError(f"the account may not read '{self._place(path)}'", found="HTTP 403")
        target = urlsplit(answer.headers.get("location", ""))
        found = f"HTTP {answer.status}" + (f" to '{target.hostname or self.base}{target.path}'" if target.path else "")
        return self._no_site(found)
