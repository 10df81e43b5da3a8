"""Reads XML exports: the current pages and blog posts of entities.xml, with what they refer to and include.

Old revisions, drafts and what was deleted are no pages. Of people only their names are read: neither addresses nor
password hashes, which exports of whole sites hold.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO

from rag.document import Meta
from rag.sources.confluence.body.macros import Around
from rag.sources.confluence.body.nodes import Node
from rag.sources.confluence.body.storage import markdown_of_nodes, read_nodes
from rag.sources.confluence.body.wiki import storage_of_wiki
from rag.sources.confluence.entities import Entity, StreamFaults, entities
from rag.sources.confluence.page import iso_time, page_id, page_read, person_name
from rag.sources.reader import LARGEST_PAGE, LeftOut, Read, ReadOptions, Whole
from slm.errors import DamagedFileError
from slm.text.names import names

_PAGES = ("Page", "BlogPost")
_KINDS = names(
    "Space Page BlogPost BodyContent Comment Attachment Label Labelling ConfluenceUserImpl ContentPermission "
    "ContentPermissionSet"
)
_IN_MEMORY = 64_000_000
_WIKI = "0"  # of BodyContent's bodyType: Confluence 3 and older; 2 is the storage format


@dataclass
class _Export:
    """What an export says besides the bodies, which are in a file without a name."""

    bodies: BinaryIO
    places: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # by content: offset, bytes, bodyType
    pages: dict[str, Entity] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)
    spaces: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    labelled: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    comments: dict[str, list[Entity]] = field(default_factory=dict)
    view_sets: dict[str, str] = field(default_factory=dict)  # by permission set: the content that it restricts
    members: dict[str, str] = field(default_factory=dict)  # by permission: its set
    permissions: list[Entity] = field(default_factory=list)
    faults: StreamFaults = field(default_factory=StreamFaults)


def read_entities(stream: BinaryIO, wanted: ReadOptions) -> Iterator[Read | LeftOut | Whole]:
    """The pages of an entities.xml, each named by its id. Raises DamagedFileError when it holds no pages."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as bodies:
        export = _gather(stream, bodies)  # type: ignore[arg-type]  # it is a BinaryIO in all but name
        if not export.pages and not export.spaces:
            raise DamagedFileError("it holds no pages of Confluence")
        site = _Site(export, wanted)
        for number in export.pages:
            try:
                yield site.read(number)
            except Exception as error:  # one page that cannot be read must not end the reading of all others
                yield LeftOut(number, f"it could not be read: {type(error).__name__}: {error}"[:300])
        # A page may be missing only because the file ends too soon.
        whole = not export.faults.cut_off and not export.faults.too_large
        spaces = {space for space in (site.space(page) for page in export.pages.values()) if space}
        yield Whole(tuple(sorted(spaces)) if whole else (), _said(export))


def _said(export: _Export) -> str:
    said = [f"{count} {what}" for what, count in sorted(export.left.items())]
    parts = [f"left out: {', '.join(said)}"] if said else []
    if export.faults.cut_off:
        parts.append("it ends in the middle of an object: what was behind is missing")
    if export.faults.too_large:
        parts.append(f"{export.faults.too_large} objects in it are too large to be pages")
    return "; ".join(parts)


def _gather(stream: BinaryIO, bodies: BinaryIO) -> _Export:
    export = _Export(bodies)
    for entity in entities(stream, _KINDS, export.faults):
        _take(entity, export)
    return export


def _take(entity: Entity, export: _Export) -> None:
    kind = entity.kind
    if kind in _PAGES:
        reason = _not_current(entity)
        if reason:
            export.left[reason] += 1
        elif entity.id:
            export.pages[entity.id] = entity
    elif kind == "BodyContent":
        if entity.kinds.get("content", "Page") in (*_PAGES, "Comment", ""):
            body = entity.properties.get("body", "").encode("utf-8", "replace")
            export.places[entity.get("content")] = (export.bodies.tell(), len(body), entity.get("bodyType"))
            export.bodies.write(body)
    elif kind == "Space":
        export.spaces[entity.id] = entity.get("key")
    elif kind == "ConfluenceUserImpl":
        export.users[entity.id] = person_name(entity.get("name"))
    elif kind == "Label":
        if entity.get("namespace") in ("", "global", "team"):
            export.labels[entity.id] = entity.get("name")
    elif kind == "Labelling":
        export.labelled.setdefault(entity.get("content", "labelableId"), []).append(entity.get("label"))
    elif kind == "Attachment":
        if not _not_current(entity):
            owner = entity.get("containerContent", "content")
            export.files.setdefault(owner, []).append(entity.get("title", "fileName"))
    elif kind == "Comment":
        if not _not_current(entity):
            export.comments.setdefault(entity.get("containerContent", "owner", "page"), []).append(entity)
    elif kind == "ContentPermissionSet":
        if entity.get("type").lower() == "view":
            export.view_sets[entity.id] = entity.get("owningContent")
        export.members.update(dict.fromkeys(entity.collections.get("contentPermissions", ()), entity.id))
    else:
        export.permissions.append(entity)


def _not_current(entity: Entity) -> str:
    """What an object is that is no current page, comment or attachment, in the plural; "" for one that is."""
    status = entity.get("contentStatus").lower()
    if status == "draft":
        return "drafts"
    if status in ("deleted", "trashed"):
        return "deleted pages"
    if entity.get("originalVersion", "originalVersionId"):
        return "old revisions"
    return "" if status in ("", "current") else f"pages with the status '{status[:30]}'"


class _Site:
    """The pages of an export, by what they call each other."""

    def __init__(self, export: _Export, wanted: ReadOptions) -> None:
        self._export, self._wanted = export, wanted
        self._titles: dict[tuple[str, str], str] = {}
        self._children: dict[str, list[str]] = {}
        for number, page in export.pages.items():
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
            return LeftOut(number, "it is larger than any page that somebody wrote")
        space, title = self.space(page), page.get("title")
        children = sorted(self._children.get(number, ()), key=self._order)
        around = Around(space, title, self._other, lambda key: export.users.get(key, ""),
                        [export.pages[child].get("title") for child in children])  # fmt: skip
        written = markdown_of_nodes(self._nodes(number), around)
        above = self._above(page)
        labels = [export.labels.get(label, "") for label in export.labelled.get(number, ())]
        base = self._wanted.base_url.rstrip("/")
        version = page.get("version")
        meta = Meta(
            id=page_id(number), url=f"{base}/pages/viewpage.action?pageId={number}" if base else "", space=space,
            ancestors=tuple(export.pages[one].get("title") for one in reversed(above)),
            labels=tuple(sorted(set(filter(None, labels)))), author=self._name(page, "creator", "creatorName"),
            created=iso_time(page.get("creationDate")), modified=iso_time(page.get("lastModificationDate")),
            version=int(version) if version.isascii() and version.isdigit() and len(version) < 10 else 0,
            restrictions=tuple(self._restricted[one] for one in (number, *above) if one in self._restricted),
        )  # fmt: skip
        comments = self._comments(number) if self._wanted.comments else ()
        return page_read(title or number, number, written, meta, files=export.files.get(number, ()), comments=comments)

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

    def _other(self, space: str, title: str) -> Node | None:
        number = self._titles.get((space, title.casefold()))
        return self.body(number) if number is not None else None

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
            name = self._export.users.get(key) or key
            if group or name:
                who.setdefault(owner, set()).add(f"group:{group}" if group else f"user:{name}")
        # Whose members are not in the export is for nobody; it must not be open to all.
        for number, owner in self._export.view_sets.items():
            if number in self._export.members.values():
                who.setdefault(owner, set())
        return {owner: tuple(sorted(names)) for owner, names in who.items()}
