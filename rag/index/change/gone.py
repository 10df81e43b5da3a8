"""Which documents of an index are no longer where they came from. It knows nothing of files: it is told what was seen.

A file that could not be read this time is not a deleted one, and a folder in which nothing is left is more often a
disk that is not there than a decision: what would remove most of a folder has to be confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from rag.index.names import is_below
from slm.errors import InputError
from slm.paths import composed

# Of a folder or space of this many documents on, more than half do not go unasked.
_MANY = 20


@dataclass(frozen=True)
class Seen:
    """What a run was given and found there; paths are absolute, in NFC.

    roots: each given path with the paths it stands for (itself, and itself without symbolic links).
    files: for every file that is there, the roots it was found by. unread: files and folders that could not be read,
    with the reason. blank: files without any text. spaces: collections of pages of which every page was given; ids:
    those of the pages that are there, be they read or not. asked: how the roots were read (as in `Inventory.sources`).
    """

    roots: Mapping[str, Collection[str]] = field(default_factory=dict)
    files: Mapping[str, Collection[str]] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    blank: Collection[str] = ()
    spaces: Collection[str] = ()
    ids: Collection[str] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Departed:
    """gone: sources that answer no more, with the reason. kept: sources that keep their old text, with the reason."""

    gone: Mapping[str, str]
    kept: Mapping[str, str]


def departed(
    documents: Mapping[str, Mapping[str, Any]],
    seen: Seen,
    exists: Callable[[str], bool],
    is_file: Callable[[str], bool] = lambda path: False,
) -> Departed:
    """What of an index's documents (source: entry with its "roots") a run has to remove or to keep as it was.

    Below a place that could not be read anything may still lie, but not where that place is a file by now; pages of an
    export lie in a file.
    """
    gone: dict[str, str] = {}
    kept: dict[str, str] = {}
    places = {place: reason for place, reason in seen.unread.items() if not is_file(place)}
    for source, entry in documents.items():
        came_by = set(entry.get("roots", ()))
        given = _roots_of(source, came_by, seen)
        meta = entry.get("meta", {})
        if meta.get("id") in seen.ids:
            continue  # the page is there, be it in another file
        reason = _unread(source, seen.unread, seen.unread if meta.get("id") else places)
        if meta.get("id") and meta.get("space") in seen.spaces and not reason:
            gone[source] = f"it is not in the new export of the space {meta['space']}"
            continue
        if not given:
            continue
        if composed(source) in seen.blank:
            gone[source] = "it is empty now"
        elif reason:
            kept[source] = reason
        elif composed(source) in seen.files:
            continue
        elif not exists(source):
            gone[source] = "it is no longer there"
        elif came_by and came_by <= set(given):
            gone[source] = "it is no longer found by the folder it came from"
    return Departed(gone, kept)


def is_page(entry: Mapping[str, Any]) -> bool:
    """Whether a document is known by an id, and not by the place of its file."""
    return bool(entry.get("meta", {}).get("id"))


def left_behind(documents: Mapping[str, Mapping[str, Any]], seen: Seen, exists: Callable[[str], bool]) -> list[str]:
    """Files that were added by their own names, are not there any more, and lay beside what was looked through now.

    Such a file may have been renamed and changed, or deleted once it was read, so that the index has its only text:
    that is the user's to say.
    """
    folders = {PurePath(file).parent for file in seen.files}
    return sorted(
        source for source, entry in documents.items()
        if entry.get("roots") and not is_page(entry) and PurePath(composed(source)).parent in folders
        and not any(map(exists, (source, *entry["roots"])))
    )  # fmt: skip


def successors(
    documents: Mapping[str, Mapping[str, Any]],
    left: Departed,
    new: Mapping[str, tuple[str, str]],
    roots: Collection[str],
    exists: Callable[[str], bool],
) -> dict[str, str]:
    """By new source the document whose place it takes: a folder was moved, and texts in it were changed as well.

    new: title and hash of the text of each document that the index does not know. Where files that are not there any
    more have their names again under another folder, and most of these the same text or title, that is the folder
    moved. A single title says too little (many a file is called README), and one that is the file's name nothing.
    Documents with the same text are left out: those are known by it. Pages are known by their ids.
    """
    lost = {
        composed(source): source for source, entry in documents.items()
        if source not in left.gone and source not in left.kept and not is_page(entry)
        and PurePath(source).is_absolute() and not exists(source)
    }  # fmt: skip
    found: dict[str, str] = {}
    for old_head, new_head in _moves(documents, lost, new, roots):
        pairs = [
            (lost[path], new_head + path[len(old_head) :]) for path in lost
            if is_below(path, old_head) and new_head + path[len(old_head) :] in new
        ]  # fmt: skip
        texts = [documents[old].get("text_sha256") == new[path][1] for old, path in pairs]
        titles = [documents[old].get("title") == new[path][0] != PurePath(path).stem for old, path in pairs]
        alike = sum(text or title for text, title in zip(texts, titles, strict=True))
        if (any(texts) or alike >= 2) and 2 * alike >= len(pairs):
            for (old, path), same in zip(pairs, texts, strict=True):
                if not same and old not in found.values():
                    found.setdefault(path, old)
    return found


def _moves(
    documents: Mapping[str, Mapping[str, Any]],
    lost: Mapping[str, str],
    new: Mapping[str, tuple[str, str]],
    roots: Collection[str],
) -> list[tuple[str, str]]:
    """Folders and where they may be now: as files of the same name and text tell, or as they were given."""
    by_text: dict[tuple[str, Any], list[str]] = {}
    for path, source in lost.items():
        by_text.setdefault((PurePath(path).name, documents[source].get("text_sha256")), []).append(path)
    moves = {
        _heads(old, path) for path, (_, text) in new.items() for old in by_text.get((PurePath(path).name, text), ())
    }
    before = {root for source in lost.values() for root in documents[source].get("roots", ())}
    moves |= {
        (composed(old).rstrip("/"), composed(root).rstrip("/")) for old in before for root in roots if old != root
    }
    return sorted(moves)


def _heads(old: str, new: str) -> tuple[str, str]:
    """What is left of two paths without the end that they share."""
    ours, theirs = old.split("/"), new.split("/")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return "/".join(ours), "/".join(theirs)


def confirm_removal(
    documents: Mapping[str, Mapping[str, Any]], gone: Mapping[str, str], moved: Collection[str], seen: Seen
) -> None:
    """Raise InputError when a folder would lose all its documents, or most of many."""
    for space in seen.spaces:
        held = [s for s, entry in documents.items() if entry.get("meta", {}).get("space") == space]
        lost = [source for source in held if source in gone and source not in moved]
        if len(held) >= _MANY and len(lost) * 2 > len(held):
            raise _too_many(lost, held, f"the space {space}", "If this is an export of a part of it, add the whole.")
    for root in seen.roots:
        held = [s for s, entry in documents.items() if root in _roots_of(s, set(entry.get("roots", ())), seen)]
        lost = [source for source in held if source in gone and source not in moved]
        missing = [source for source in lost if composed(source) not in seen.blank]
        left = any(root in roots for file, roots in seen.files.items() if file not in seen.blank)
        if (missing and len(missing) == len(held) and not left) or (len(held) >= _MANY and len(lost) * 2 > len(held)):
            raise _too_many(lost, held, f"'{root}'", "If a disk is not there, bring it back.")


def _too_many(lost: Collection[str], held: Collection[str], origin: str, first: str) -> InputError:
    return InputError(
        f"{len(lost)} of the {len(held)} documents that came from {origin} are not there any more; "
        "the index was not changed",
        found=", ".join(sorted(lost)[:5]) + (", ..." if len(lost) > 5 else ""),
        hint=f"{first} If they are to be forgotten, add --yes.",
    )


def _roots_of(source: str, came_by: Collection[str], seen: Seen) -> list[str]:
    """The given roots that a document belongs to: it came by them before, or lies below them."""
    return [
        root for root, paths in seen.roots.items() if root in came_by or any(is_below(source, path) for path in paths)
    ]


def _unread(source: str, unread: Mapping[str, str], folders: Mapping[str, str]) -> str:
    """Why a source could not be read: it or a folder that it lies in; "" where nothing stood in the way."""
    path = composed(source)
    if path in unread:
        return unread[path]
    return next((reason for place, reason in folders.items() if is_below(path, place)), "")
