"""Brings an index into step with the files and folders that were added to it.

All of them are read again, which is quick; only what has another content is embedded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag.index.embed import Embedder
from rag.index.names import is_below
from rag.sources.files import find_files, read_files
from rag.sources.reader import ReadOptions
from rag.stores.interface import IndexStore
from rag.sync.look import BLANK, seen
from rag.sync.report import Report, ShowProgress
from slm.paths import composed, on_disk


def sync_files(
    store: IndexStore,
    roots: Mapping[str, Mapping[str, Any]],
    embedder: Callable[[], Embedder],
    report: Report,
    *,
    sure: bool,
    show: ShowProgress,
) -> None:
    """Read these files and folders, as `Inventory.sources` has them, again into the index; the report gets the counts.

    A folder that is not there is an error of the report, and its documents stay: it is more often a disk that is not
    there than a decision. Raises InputError when most of a folder would go (unless sure).
    """
    known = store.held().documents
    places = {root: on_disk(root) for root in roots}  # absolute; the index keeps names composed (NFC)
    there = [root for root, place in places.items() if place.exists()]
    deleted = [root for root in roots if root not in there and root in known]
    missing = [root for root in roots if root not in there and root not in known]
    if missing:
        report.error = _missing(missing, known)
    for root in deleted:
        report.gone += [(source, "it is no longer there") for source in store.remove([root])]
    asked = {
        root: ReadOptions(bool(roots[root].get("comments")), str(roots[root].get("base_url", ""))) for root in roots
    }
    for wanted in dict.fromkeys(asked[root] for root in there):
        alike = [places[root] for root in there if asked[root] == wanted]
        _sync_alike(store, alike, wanted, embedder, report, sure=sure, show=show)


def _sync_alike(
    store: IndexStore,
    there: Sequence[Path],
    wanted: ReadOptions,
    embedder: Callable[[], Embedder],
    report: Report,
    *,
    sure: bool,
    show: ShowProgress,
) -> None:
    total = len(find_files(there))
    reading = read_files(there, lambda done: show("reading files", done, total), none_ok=True, wanted=wanted)
    change = store.add(
        reading.documents, embedder(), lambda n, total: show("embedding", n, total),
        seen=seen(there, reading, wanted), sure=sure,
    )  # fmt: skip
    report.added += change.added
    report.changed += change.replaced + change.moved  # a document that only has another place is no new one
    report.same += change.unchanged
    report.gone += list(change.gone.items())
    for skipped in reading.skipped:
        report.skip(str(skipped.path), skipped.reason, unread=skipped.reason not in BLANK)


def _missing(roots: Sequence[str], known: Mapping[str, object]) -> str:
    held = sum(any(is_below(composed(source), root) for root in roots) for source in known)
    return (
        f"there is no file or folder '{roots[0]}'"
        + (f" and {len(roots) - 1} more" if len(roots) > 1 else "")
        + f"; {held} documents of it in the index go on answering"
    )
