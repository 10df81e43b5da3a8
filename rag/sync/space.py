"""Brings an index into step with one space of a Confluence site.

First the space is listed completely, without bodies; what is new or has another mark is read, in bulk where there is
much of it; what is not listed any more is asked for once more by its id before it is removed. What was read goes into
the index batch by batch, so that a sync that breaks off goes on where it was: the index itself says what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from rag.document import Document
from rag.index.change.planned import Told
from rag.index.embed import Embedder
from rag.sources.confluence.attached import read_attached
from rag.sources.confluence.rest.client import AbsentError, DeniedError, OverloadError, TokenError
from rag.sources.confluence.rest.content import UNKNOWN, Page, placed
from rag.sources.confluence.rest.convert import meta_of, read_page
from rag.sources.confluence.rest.site import OVERLAP, Site, Space
from rag.sources.files import is_document
from rag.sources.reader import failure_of
from rag.stores.interface import IndexStore
from rag.sync.neighbours import Neighbours, Uses
from rag.sync.plan import Plan, confirm_removal, held_by, page_of, plan, remembered
from rag.sync.report import Report, ShowProgress
from slm.errors import DownloadError, InputError, SlmError
from slm.text.dates import instant

# A batch goes into the index with so many characters or pages: some minutes of embedding.
_BATCH_CHARACTERS, _BATCH_PAGES = 500_000, 500
# So few pages are read one by one.
_FEW = 5
_MOST_WINDOWS = 3


@dataclass(frozen=True)
class How:
    """How to sync. full: read every page again; mass_delete: remove even most of a space; comments: with those on
    pages from now on, or without (None: as before); show: is told (what, done, of how many)."""

    full: bool = False
    mass_delete: bool = False
    comments: bool | None = None
    show: ShowProgress = lambda what, done, total: None


@dataclass
class SpaceSync:
    """One run over one space, into the index of a store."""

    store: IndexStore
    site: Site
    url: str
    space: Space
    embedder: Embedder
    how: How
    report: Report
    started: datetime
    _blank: dict[str, str] = field(default_factory=dict)
    _documents: list[Document] = field(default_factory=list)
    _entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _emptied: dict[str, str] = field(default_factory=dict)
    _characters: int = 0
    _neighbours: Neighbours = field(init=False)
    _comments: bool = False
    _roots: frozenset[str] = frozenset()

    def run(self) -> None:
        """Bring the index into step; the report gets the counts. Raises SlmError where the space cannot be listed."""
        known, self._blank = self._known()
        listing = self._listed(known)
        held = held_by(known, self.root)
        if not listing and not held:
            raise InputError(
                f"the space '{self.space.key}' shows this account no page at all",
                hint="Check what the token's account may read.",
            )
        self._neighbours = Neighbours(self.space.key, listing, self._single, self.site.user)
        same = self._neighbours.same
        todo = plan(listing, known, self.root, self._blank, full=self.how.full, same_around=same)
        self._blank = {id_: mark for id_, mark in self._blank.items() if id_ in listing}
        for id_ in todo.same:
            if listing[id_].url in known:
                self.report.same += 1
            else:
                self.report.skip(listing[id_].title, "it holds no visible text", unread=False)
        try:
            vanished = self._read(todo, listing, known)
            if not self.how.mass_delete:
                confirm_removal(self.space.key, len(held), todo.missing)
            gone = self._gone((*todo.missing, *(url for url in vanished if url in known)), known)
        except SlmError:
            self._commit({})  # what was read before a token expired is not read again
            raise
        self._commit(gone)
        self.report.gone += list(gone.items())

    @property
    def root(self) -> str:
        """What the index knows this space by."""
        return f"{self.url}#{self.space.key}"

    def _known(self) -> tuple[Mapping[str, Mapping[str, Any]], dict[str, str]]:
        self._comments = bool(self.how.comments)
        if not self.store.exists():
            return {}, {}
        generation = self.store.held()
        self._roots = frozenset(generation.sources)
        held = generation.sources.get(self.root, {})
        if self.how.comments is None:
            self._comments = bool(held.get("comments"))
        return generation.documents, dict(held.get("blank", {}))

    def _listed(self, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Page]:
        """All pages of the space by id, and what was changed while they were listed."""
        listing: dict[str, Page] = {}
        for pages in self.site.listing(self.space.key, self.space.id, bodies=False, on_note=self._note):
            listing.update({page.id: page for page in pages})
            self.how.show("listing", len(listing), 0)
        for _ in range(_MOST_WINDOWS):
            before = len(listing)
            for pages in self.site.changed(self.space.key, self.space.id, self.started - OVERLAP, bodies=False):
                for page in pages:
                    old = listing.get(page.id)
                    if old is None or page.version > old.version:
                        listing[page.id] = page if old is None or page.detailed else _with_place(page, old)
            if len(listing) == before:
                break
        self._list_files(listing)
        self._list_comments(listing, known)
        here = {id_: page for id_, page in listing.items() if page.space in ("", self.space.key)}
        return placed({id_: _detailed(page, known.get(page.url, {})) for id_, page in here.items()})

    def _list_files(self, listing: dict[str, Page]) -> None:
        """Add the files that are attached to listed pages, of the kinds that are read."""
        try:
            for files in self.site.files(self.space.key):
                listing.update({f.id: f for f in files if f.parent in listing and is_document(f.title)})
        except (AbsentError, DeniedError, OverloadError) as error:
            self._note(f"attached files were not listed: {error.what}")

    def _list_comments(self, listing: dict[str, Page], known: Mapping[str, Mapping[str, Any]]) -> None:
        """Tell the listed pages of the comments on them, where they are wanted."""
        if not self._comments:
            return
        on: dict[str, list[tuple[str, int]]] = {}
        try:
            for comments in self.site.comments(self.space.key):
                for comment in comments:
                    on.setdefault(comment.parent, []).append((comment.id, comment.version))
        except (AbsentError, DeniedError, OverloadError) as error:
            self._note(f"comments were not listed: {error.what}")
            on = {
                id_: [(one[0], one[1]) for one in page_of(known.get(page.url, {})).get("comments", ())]
                for id_, page in listing.items()
            }
        for id_, page in list(listing.items()):
            if on.get(id_) and not page.file:
                listing[id_] = replace(page, comments=tuple(sorted(on[id_])))

    def _note(self, text: str) -> None:
        self.report.partial = True
        if text not in self.report.notes:
            self.report.notes.append(text)

    def _read(self, todo: Plan, listing: Mapping[str, Page], known: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Read what is to be read; the addresses of pages that were not there any more."""
        wanted = dict.fromkeys(todo.read)
        vanished = []
        pages = {id_: None for id_ in todo.read if not listing[id_].file}
        for page in self._in_bulk(pages, listing, known):
            # One without anything may have it in the editor's own format: the site shows it.
            if page.id in pages and (page.storage or "").strip() and page.version >= listing[page.id].version:
                del wanted[page.id], pages[page.id]
                self._take(_with_place(page, listing[page.id]), known)
                self.how.show("reading", len(todo.read) - len(wanted), len(todo.read))
        for number, id_ in enumerate(list(wanted), start=len(todo.read) - len(wanted) + 1):
            listed = listing[id_]
            if listed.file:
                self._take(listed, known)
                continue
            try:
                single = self._single(id_)
            except (DeniedError, OverloadError) as error:
                self.report.skip(listed.title, error.what)
            else:
                if single is None or single.space not in ("", self.space.key):
                    vanished.append(listed.url)
                    if listed.url not in known:
                        self.report.skip(listed.title, "it went while the space was read", unread=False)
                else:
                    self._take(_with_place(single, listed), known)
            self.how.show("reading", number, len(todo.read))
        return vanished

    def _in_bulk(
        self, wanted: Mapping[str, None], listing: Mapping[str, Page], known: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[Page]:
        """Pages with their bodies: of the whole space, or those of a window of time; not all that are wanted."""
        if len(wanted) <= _FEW:
            return
        key, id_ = self.space.key, self.space.id
        held = [page_of(known[source]).get("modified", "") for source in held_by(known, self.root)]
        last = max((at for date in held if (at := instant(date)) is not None), default=None)
        if last is None or len(wanted) * 2 > len(listing):
            answers = self.site.listing(key, id_, bodies=True, on_note=self._note)
        else:
            answers = self.site.changed(key, id_, last - OVERLAP, bodies=True)
        with suppress(DownloadError, DeniedError):  # what is left is read one by one, and told of if that fails too
            for pages in answers:
                yield from pages
                if not wanted:
                    return

    def _single(self, id_: str) -> Page | None:
        """One page; what the site shows of it where its storage format cannot be had."""
        try:
            page = self.site.page(id_)
            failed: OverloadError | None = None
        except OverloadError as error:
            page, failed = self.site.page(id_, body=False), error
        if page is None or (page.storage or "").strip():
            return page
        try:
            return replace(page, view=self.site.view(id_))
        except (AbsentError, DeniedError, OverloadError):
            if failed is not None:
                raise failed from None
            return page

    def _take(self, page: Page, known: Mapping[str, Mapping[str, Any]]) -> None:
        """A page that was read, into the batch."""
        uses = Uses()
        try:
            if page.file:
                read = read_attached(self.site.content(page.file), page.title, page.url, meta_of(page))
            else:
                said = [one for some in self.site.comments_on(page.id) for one in some] if page.comments else []
                read = read_page(page, self._neighbours.around(page, uses), said)
        except TokenError:
            raise
        except SlmError as error:
            self.report.skip(page.title, error.what)
            return
        except Exception as error:  # one page that a reader fails at must not end the reading of all others
            self.report.skip(page.title, failure_of(error))
            return
        if read is None:
            # What it shows of others may come to have text.
            self._blank[page.id] = "" if uses else page.mark
            self.report.skip(page.title, "it holds no visible text", unread=False)
            if page.url in known:
                self._emptied[page.url] = "it is empty now"
            return
        self._blank.pop(page.id, None)
        if page.url in known:
            self.report.changed += 1
        else:
            self.report.added += 1
        if read.note:
            self.report.notes.append(f"{page.title}: {read.note}")
        self._documents.append(read.document)
        self._entries[page.url] = {**remembered(page), **self._neighbours.remembered(page, uses)}
        self._characters += sum(len(section.text) for section in read.document.sections)
        if self._characters >= _BATCH_CHARACTERS or len(self._documents) >= _BATCH_PAGES:
            self._commit({})

    def _gone(self, missing: Iterable[str], known: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Those of the missing pages that are not there when asked for by their ids."""
        gone: dict[str, str] = {}
        for source in missing:
            id_ = str(page_of(known[source]).get("id", ""))
            try:
                page = self.site.page(id_, body=False)
            except (DeniedError, OverloadError) as error:
                self.report.skip(source, f"it kept its old text: {error.what}")
                continue
            if page is None:
                gone[source] = "it is no longer there"
            elif page.space not in ("", self.space.key):
                if f"{self.url}#{page.space}" not in self._roots:
                    gone[source] = f"it was moved to the space '{page.space}'"
            else:
                self._note(f"'{page.title}' is there, but was not listed; its old text was kept")
        return gone

    def _commit(self, gone: Mapping[str, str]) -> None:
        """Put the batch into the index, and remove what is gone."""
        gone = {**gone, **self._emptied}
        if not self._documents and not self.store.exists():
            return
        source: dict[str, Any] = {
            "kind": "confluence", "url": self.url, "space": self.space.key, "blank": self._blank,
        }  # fmt: skip
        source |= {"comments": True} if self._comments else {}
        told = Told(self.root, source, self._entries, gone)
        self.store.add(self._documents, self.embedder, lambda n, total: self.how.show("embedding", n, total), seen=told)
        self.report.gone += list(self._emptied.items())
        self._documents, self._entries, self._emptied, self._characters = [], {}, {}, 0


def _with_place(page: Page, listed: Page) -> Page:
    """A page with what only the whole listing says: its ancestors, labels and restrictions."""
    return replace(
        page, ancestors=listed.ancestors, labels=listed.labels, restrictions=listed.restrictions, own=listed.own,
        author=listed.author, comments=listed.comments, position=listed.position,
        space=page.space or listed.space, created=page.created or listed.created, detailed=listed.detailed,
    )  # fmt: skip


def _detailed(page: Page, entry: Mapping[str, Any]) -> Page:
    """A page of which the site did not say labels and restrictions: with those that the index remembers.

    One that the index does not know yet is for nobody where restrictions are asked for, until the site has said.
    """
    if page.detailed:
        return page
    held = page_of(entry)
    restrictions = tuple(tuple(rule) for rule in held.get("own", [UNKNOWN]))
    return replace(page, labels=tuple(held.get("labels", ())), restrictions=restrictions)
