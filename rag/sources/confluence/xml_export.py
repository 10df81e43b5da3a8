"""Reads XML exports: the current pages and blog posts of entities.xml, with what they refer to and include.

Old revisions, drafts and what was deleted are no pages. Of people only their names are read: neither addresses nor
password hashes, which exports of whole sites hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO

from rag.document import Meta
from rag.sources.confluence.attached import AttachedFile, Stored, files_of
from rag.sources.confluence.body.around import Around
from rag.sources.confluence.body.nodes import Node
from rag.sources.confluence.body.storage import markdown_of_nodes, read_nodes
from rag.sources.confluence.body.wiki import storage_of_wiki
from rag.sources.confluence.entities import Entity
from rag.sources.confluence.gathered import ExportObjects, gather, left_out
from rag.sources.confluence.page import iso_time, page_address, page_id, page_read, person_name
from rag.sources.reader import LARGEST_PAGE, LeftOut, Read, ReadOptions, Whole, failure_of
from slm.errors import DamagedFileError

_IN_MEMORY = 64_000_000
_WIKI = "0"  # of BodyContent's bodyType: Confluence 3 and older; 2 is the storage format


def read_entities(
    stream: BinaryIO, wanted: ReadOptions, stored: Stored = lambda path: None
) -> Iterator[Read | LeftOut | Whole]:
    """The pages of an entities.xml, each named by its id, and the files that are attached to them.

    stored: the bytes of the export's other files. Raises DamagedFileError when it holds no pages.
    """
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as bodies:
        export = gather(stream, bodies)  # type: ignore[arg-type]  # it is a BinaryIO in all but name
        if not export.pages and not export.spaces:
            raise DamagedFileError("it holds no pages of Confluence")
        site = _Site(export, wanted)
        for number in export.pages:
            try:
                read = site.read(number)
            except Exception as error:  # one page that cannot be read must not end the reading of all others
                reason = failure_of(error)
                read = LeftOut(number, reason, page_id(number))
            yield read
            if isinstance(read, Read):
                base = wanted.base_url.rstrip("/")
                yield from files_of(read.document, site.files(number), stored, base, export.absent)
        # A page may be missing only because the file ends too soon.
        whole = not export.faults.cut_off and not export.faults.too_large
        spaces = {space for space in (site.space(page) for page in export.pages.values()) if space}
        yield Whole(tuple(sorted(spaces)) if whole else (), left_out(export))


class _Site:
    """The pages of an export, by what they call each other."""

    def __init__(self, export: ExportObjects, wanted: ReadOptions) -> None:
        self._export, self._wanted = export, wanted
        self._titles: dict[tuple[str, str], str] = {}
        self._children: dict[str, list[str]] = {}
        # Of a page and a blog post with one title the page is meant.
        for number, page in sorted(export.pages.items(), key=lambda one: one[1].kind == "Page"):
            self._titles[(self.space(page), page.get("title").casefold())] = number
            self._children.setdefault(page.get("parent"), []).append(number)
        self._restricted = self._restrictions()
        self.body = lru_cache(maxsize=32)(self._body)

    def space(self, page: Entity) -> str:
        """The key of a page's space."""
        return self._export.spaces.get(page.get("space"), "")

    def read(self, number: str) -> Read | LeftOut:
        """A page as a document."""
        export, page = self._export, self._export.pages[number]
        if export.places.get(number, (0, 0))[1] > LARGEST_PAGE:
            return LeftOut(number, "it is larger than any page that somebody wrote", page_id(number))
        space, title = self.space(page), page.get("title")
        rules = frozenset(self._rules(number))
        around = Around(
            space, title, lambda space, title: self._other(space, title, rules), lambda key: export.users.get(key, ""),
            lambda space, title: self._below(space, title, rules),
        )  # fmt: skip
        written = markdown_of_nodes(self._nodes(number), around)
        above = self._above(page)
        base = self._wanted.base_url.rstrip("/")
        meta = Meta(
            id=page_id(number), url=page_address(base, number) if base else "", space=space,
            ancestors=tuple(export.pages[one].get("title") for one in reversed(above)),
            labels=self._labels(number), author=self._name(page, "creator", "creatorName"),
            created=iso_time(page.get("creationDate")), modified=iso_time(page.get("lastModificationDate")),
            version=_version(page.get("version")),
            restrictions=self._rules(number),
        )  # fmt: skip
        comments = self._comments(number) if self._wanted.comments else ()
        return page_read(
            title or number, number, written, meta, files=[file.name for file in self.files(number)], comments=comments
        )

    def files(self, number: str) -> list[AttachedFile]:
        """The files that are attached to a page."""
        found = []
        for file in self._export.files.get(number, ()):
            meta = Meta(
                labels=self._labels(file.id), author=self._name(file, "creator", "creatorName"),
                created=iso_time(file.get("creationDate")), modified=iso_time(file.get("lastModificationDate")),
                version=_version(file.get("version", "attachmentVersion")),
            )  # fmt: skip
            # As the export lays them down; ids come out of the file, and are no paths.
            plain = all(part.isascii() and part.isalnum() for part in (number, file.id))
            path = f"attachments/{number}/{file.id}/{meta.version or 1}" if plain else ""
            found.append(AttachedFile(file.id, file.get("title", "fileName"), path, meta))
        return found

    def _labels(self, number: str) -> tuple[str, ...]:
        labels = [self._export.labels.get(label, "") for label in self._export.labelled.get(number, ())]
        return tuple(sorted(set(filter(None, labels))))

    def _rules(self, number: str) -> tuple[tuple[str, ...], ...]:
        """Who may see a page: its own restrictions, and those of the pages above it."""
        places = (number, *self._above(self._export.pages[number]))
        return tuple(self._restricted[one] for one in places if one in self._restricted)

    def _order(self, number: str) -> tuple[int, str]:
        position = self._export.pages[number].get("position")
        ranked = int(position) if position.isascii() and position.isdigit() and len(position) < 10 else 1 << 32
        return ranked, self._export.pages[number].get("title")

    def _name(self, entity: Entity, *names: str) -> str:
        key = entity.get(*names)
        return self._export.users.get(key, "") or (person_name(key) if "Name" in names[-1] and names[0] not in
                                                   entity.properties else "")  # fmt: skip

    def _above(self, page: Entity) -> list[str]:
        """The pages above a page, from the nearest up; a circle ends where it closes."""
        above: dict[str, None] = {}
        number = page.get("parent")
        while number in self._export.pages and number not in above and number != page.id:
            above[number] = None
            number = self._export.pages[number].get("parent")
        return list(above)

    def _nodes(self, number: str) -> Node:
        offset, length, kind = self._export.places.get(number, (0, 0, ""))
        self._export.bodies.seek(offset)
        text = self._export.bodies.read(length).decode("utf-8", "replace")
        return read_nodes(storage_of_wiki(text) if kind == _WIKI else text)

    def _other(self, space: str, title: str, rules: frozenset[tuple[str, ...]]) -> Node | None:
        """The nodes of a page by its space and title, if all who fit these rules may see it."""
        number = self._titles.get((space, title.casefold()))
        return self.body(number) if number is not None and rules.issuperset(self._rules(number)) else None

    def _below(self, space: str, title: str, rules: frozenset[tuple[str, ...]]) -> list[str]:
        """The titles of the pages right below a page that all who fit these rules may see, in their order."""
        number = self._titles.get((space, title.casefold()))
        below = self._children.get(number, ()) if number is not None else ()
        shown = [number for number in below if rules.issuperset(self._rules(number))]
        return [self._export.pages[number].get("title") for number in sorted(shown, key=self._order)]

    def _body(self, number: str) -> Node:
        return self._nodes(number)

    def _comments(self, number: str) -> list[str]:
        comments = sorted(self._export.comments.get(number, ()), key=lambda comment: comment.get("creationDate"))
        around = Around(user=lambda key: self._export.users.get(key, ""))
        texts = []
        for comment in comments:
            text = markdown_of_nodes(self._nodes(comment.id), around).markdown
            name = self._name(comment, "creator", "creatorName")
            texts.append(f"{name}: {text}" if name and text else text)
        return texts

    def _restrictions(self) -> dict[str, tuple[str, ...]]:
        """By page: who may see it, where not all may."""
        who: dict[str, set[str]] = {}
        for permission in self._export.permissions:
            owner = self._export.view_sets.get(
                permission.get("owningSet") or self._export.members.get(permission.id, "")
            )
            if not owner:
                continue
            group, key = permission.get("groupName"), permission.get("userSubject", "userName")
            name = self._export.accounts.get(key) or key
            if group or name:
                who.setdefault(owner, set()).add(f"group:{group}" if group else f"user:{name}")
        # Whose members are not in the export is for nobody; it must not be open to all.
        for number, owner in self._export.view_sets.items():
            if number in self._export.members.values():
                who.setdefault(owner, set())
        return {owner: tuple(sorted(names)) for owner, names in who.items()}


def _version(said: str) -> int:
    return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else 0
