"""Gathers the objects of an XML export that say something of its current pages, in one pass over the file.

It knows nothing of documents. Of people only their names are kept: neither addresses nor password hashes, which exports
of whole sites hold.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO

from rag.sources.confluence.entities import Entity, StreamFaults, entities
from rag.sources.confluence.page import person_name
from slm.text.names import names

_PAGES = ("Page", "BlogPost")
_KINDS = names(
    "Space Page BlogPost BodyContent Comment Attachment Label Labelling ConfluenceUserImpl ContentPermission "
    "ContentPermissionSet"
)


@dataclass
class ExportObjects:
    """What an export says besides the bodies, which are in a file without a name.

    users: names that may be shown, accounts: names by which restrictions know people, both by key. files: the current
    attachments of each page. absent: names of files whose bytes the export does not hold.
    """

    bodies: BinaryIO
    places: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # by content: offset, bytes, bodyType
    pages: dict[str, Entity] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)
    spaces: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    accounts: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    labelled: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[Entity]] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    comments: dict[str, list[Entity]] = field(default_factory=dict)
    view_sets: dict[str, str] = field(default_factory=dict)  # by permission set: the content that it restricts
    members: dict[str, str] = field(default_factory=dict)  # by permission: its set
    permissions: list[Entity] = field(default_factory=list)
    faults: StreamFaults = field(default_factory=StreamFaults)


def left_out(export: ExportObjects) -> str:
    """What of an export was not read, in words; "" for nothing."""
    said = [f"{count} {what}" for what, count in sorted(export.left.items())]
    parts = [f"left out: {', '.join(said)}"] if said else []
    if export.absent:
        names = ", ".join(export.absent[:3]) + (", ..." if len(export.absent) > 3 else "")
        parts.append(f"{len(export.absent)} attached files are not in the export: {names}")
    if export.faults.cut_off:
        parts.append("it ends in the middle of an object: what was behind is missing")
    if export.faults.too_large:
        parts.append(f"{export.faults.too_large} objects in it are too large to be pages")
    return "; ".join(parts)


def gather(stream: BinaryIO, bodies: BinaryIO) -> ExportObjects:
    """All that matters in an entities.xml, with the bodies put into a file."""
    export = ExportObjects(bodies)
    for entity in entities(stream, _KINDS, export.faults):
        _take(entity, export)
    return export


def _take(entity: Entity, export: ExportObjects) -> None:
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
        name = entity.get("name")
        export.users[entity.id] = person_name(name)
        export.accounts[entity.id] = "" if "@" in name else name
    elif kind == "Label":
        if entity.get("namespace") in ("", "global", "team"):
            export.labels[entity.id] = entity.get("name")
    elif kind == "Labelling":
        export.labelled.setdefault(entity.get("content", "labelableId"), []).append(entity.get("label"))
    elif kind == "Attachment":
        if not _not_current(entity):
            owner = entity.get("containerContent", "content")
            export.files.setdefault(owner, []).append(entity)
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
