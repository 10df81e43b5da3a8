"""A Confluence site as a sync sees it: its spaces, listings of their pages, single pages.

`open_site` finds out which of both answers at an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import urlsplit

from rag.sources.confluence.rest.client import AbsentError, Client
from rag.sources.confluence.rest.cloud import Cloud
from rag.sources.confluence.rest.content import Page
from rag.sources.confluence.rest.data_center import DataCenter
from slm.errors import InputError, UnknownNameError

# Windows of changes reach back so much further than asked: times are cut to the minute and are in the account's time
# zone (up to 14 hours off), and the index that searches are answered from lags behind.
OVERLAP = timedelta(hours=26)
# Where a page's address of the browser begins behind the site's own.
_INSIDE = re.compile(r"/(?:display|spaces|pages|x|rest|api|dashboard|login|index)(?:[/.].*)?$")


@dataclass(frozen=True)
class Space:
    """A space of a site: its key, and the id that Cloud has for it."""

    key: str
    id: str
    name: str = ""


class Site(Protocol):
    """What both kinds of site can do. All raise the errors of `Client.json`."""

    kind: str

    def space(self, key: str) -> tuple[str, str] | None:
        """The id and the name of a space; None where there is none that the account sees."""
        ...

    def space_keys(self) -> list[str]:
        """Keys of spaces that the account sees, the first hundred."""
        ...

    def listing(self, key: str, id_: str, *, bodies: bool, on_note: Callable[[str], None]) -> Iterator[list[Page]]:
        """All current pages and blog posts of a space, each once; with `bodies` in the storage format."""
        ...

    def changed(self, key: str, id_: str, since: datetime, *, bodies: bool) -> Iterator[list[Page]]:
        """The pages changed since then, and others that are not harmful."""
        ...

    def files(self, key: str) -> Iterator[list[Page]]:
        """The files that are attached to pages of a space, each once."""
        ...

    def comments(self, key: str) -> Iterator[list[Page]]:
        """The comments on pages of a space, each once, without their bodies; their parent is the page."""
        ...

    def comments_on(self, id_: str) -> Iterator[list[Page]]:
        """The comments on a page, with their bodies."""
        ...

    def user(self, key: str) -> str:
        """A person's name by the key of the account."""
        ...

    def page(self, id_: str, *, body: bool = True) -> Page | None:
        """A current page or attached file, wherever it is; None for one that is not there or in the bin."""
        ...

    def content(self, path: str) -> bytes:
        """The bytes of an attached file."""
        ...

    def view(self, id_: str) -> str:
        """A page's body as the site shows it, in HTML."""
        ...


def site_address(url: str) -> str:
    """The address of a site, from what a user copies out of a browser. Raises InputError."""
    parts = urlsplit(url.strip())
    if parts.username or parts.password:
        raise InputError(
            f"the address of '{parts.hostname}' holds a name or password; it was not used",
            hint="Give the bare address; the token is taken from CONFLUENCE_TOKEN.",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"'{url}' is no address of a site", hint="It looks like https://example.atlassian.net/wiki.")
    path = _INSIDE.sub("", parts.path.rstrip("/")).rstrip("/")
    if parts.hostname.endswith(".atlassian.net"):
        path = "/wiki"
    return f"{parts.scheme}://{parts.netloc}{path}"


def open_site(make: Callable[[str], Client], url: str, key: str) -> tuple[Site, Client, Space]:
    """The site at an address (made by `site_address`) and its space. `make` opens a client of a base.

    Raises UnknownNameError for a space that is not there, and the errors of `Client.json`.
    """
    kinds: list[tuple[Callable[[Client], Site], str]] = [(Cloud, url), (DataCenter, url)]
    if not url.endswith("/wiki"):
        kinds = [(DataCenter, url), (Cloud, url + "/wiki")]
    known: list[str] = []
    absent: AbsentError | None = None
    for kind, base in kinds:
        client = make(base)
        site = kind(client)
        try:
            found = site.space(key)
            if found is not None:
                return site, client, Space(key, *found)
            known += site.space_keys()
        except AbsentError as error:
            absent = error  # the other kind of site does not have these addresses
        except BaseException:
            client.__exit__(None, None, None)
            raise
        client.__exit__(None, None, None)
    if absent is not None and not known:
        raise InputError(
            f"'{url}' has no space '{key}', or is no Confluence", found="it shows this account no space at all",
            hint="Check the address, the key and what the token's account may read.",
        )  # fmt: skip
    raise UnknownNameError("space", key, known[:20], hint=f"Looked at '{url}'. Keys are case-sensitive.")
