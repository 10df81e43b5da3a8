"""What an update does to an index: which documents are new, changed, moved or gone. It reads and writes no index.

Every store plans a change by it, so that the same files make the same index wherever that is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rag.document import NO_META, Document
from rag.index.change.gone import Departed, Seen, confirm_removal, departed, is_page, successors
from slm.errors import MismatchError
from slm.paths import composed, on_disk

PAGE = "page"
"""The key of an entry for what a sync knows of a document that is no file."""


@dataclass(frozen=True)
class Change:
    """What an update did, in numbers of documents, and the chunks now in the index.

    gone: sources that were removed, kept: sources that keep their old text; both with the reason. moved: documents
    that only changed their place.
    """

    added: int
    replaced: int
    unchanged: int
    chunks: int
    moved: int = 0
    gone: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """What a caller knows of documents that are no files, and the index is to remember.

    root: the source they came by, and what there is to know of it (as in `Inventory.sources`). pages: by a document's
    source what its entry keeps under PAGE. gone: sources to remove, with the reason.
    """

    root: str
    source: Mapping[str, Any]
    pages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AddOptions:
    """What is asked of an update. sure: documents that are gone go even if that is most of them; words: the kind of
    words of the index (`rag.index.lexical.terms.KINDS`), None: as it has them."""

    sure: bool = False
    words: str | None = None


AS_IT_IS = AddOptions()


@dataclass(frozen=True)
class ChangePlan:
    """A change of an index, decided and not yet done.

    incoming: the documents that were given, and changed: those of them that the index does not have as they are; both
    by source in NFC. named: by such a source, the source in the index of the document whose place it takes. carry: by a
    source in the index, the document that has its text under another source or with another Meta. drop: sources that
    leave the index, also of those whose place is taken. table: the documents afterwards (as `Inventory.documents`;
    those that are new have no number of chunks yet). sources: where documents come from, afterwards. same: nothing
    but files was looked at.
    """

    incoming: Mapping[str, Document]
    changed: Mapping[str, Document]
    named: Mapping[str, str]
    carry: Mapping[str, Document]
    drop: Collection[str]
    table: dict[str, dict[str, Any]]
    sources: Mapping[str, Any]
    left: Departed
    same: bool

    @property
    def embed(self) -> list[Document]:
        """The documents whose text is new."""
        return [document for document in self.changed.values() if document not in self.carry.values()]

    @property
    def gone(self) -> dict[str, str]:
        """The documents that go and whose text goes with them, each with the reason."""
        return {source: why for source, why in self.left.gone.items() if source not in self.carry}

    def change(self, chunks: int) -> Change:
        """What was done, when the index holds so many chunks afterwards."""
        replaced = sum(source in self.named for source in self.changed)
        moved = sum(old in self.left.gone for old in self.carry)
        unchanged = len(self.incoming) - len(self.changed)
        added = len(self.changed) - replaced - moved
        return Change(added, replaced, unchanged, chunks, moved, self.gone, self.left.kept)


def check_identity(made_with: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise MismatchError unless both are the same embedder, as `Identity.as_dict` tells of it."""
    if dict(made_with) != dict(given):
        differs = [key for key in given if made_with.get(key) != given[key]]
        raise MismatchError(
            f"the index was made with another embedder ({', '.join(differs)})",
            found=f"{made_with.get('name')} [{made_with.get('revision')}], not {given['name']} [{given['revision']}]",
            hint="Make a new index, or use the embedder it was made with.",
        )


def require_made_with(made_with: str, asked: str | None, index: str) -> None:
    """Raise MismatchError when another embedder is asked for by name than the index was made with."""
    if asked not in (None, made_with):
        raise MismatchError(f"the index '{index}' was made with the embedder '{made_with}', not '{asked}'")


def _digest(document: Document) -> str:
    """The SHA-256 of a document; what is known of it beside its text counts only where there is any."""
    fields = asdict(document)
    if document.meta == NO_META:
        del fields["meta"]
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _meta(document: Document) -> dict[str, Any]:
    """What is known of a document beside its text, as the manifest keeps it: without what is empty."""
    return {key: value for key, value in json.loads(json.dumps(asdict(document.meta))).items() if value}


def planned(
    known: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Any],
    documents: Sequence[Document],
    seen: Seen | Told | None,
    *,
    sure: bool,
) -> ChangePlan:
    """What it takes to bring these documents into an index of the `known` ones, which came from `sources`.

    seen: what was looked through, so that documents that are no longer there go (`rag.index.change.gone`), or what the
    caller knows of documents that are no files; sure: even if that is most of them. Raises InputError (too many are
    gone).
    """
    seen = seen or Seen()
    seen, told = (seen, None) if isinstance(seen, Seen) else (Seen(), seen)
    incoming = {composed(document.source): document for document in documents}
    # Pages of a site are kept in step by its sync alone.
    left = departed({s: entry for s, entry in known.items() if PAGE not in entry}, seen, _exists, _is_file)
    if told is not None:
        left = Departed({**left.gone, **{s: why for s, why in told.gone.items() if s in known}}, left.kept)
    digests = {source: _digest(document) for source, document in incoming.items()}
    texts = {source: _digest(replace(document, source="", meta=NO_META)) for source, document in incoming.items()}
    named = {composed(source): source for source in known}
    # A page is the same one by its id, whatever file it came in before.
    by_id = {entry["meta"]["id"]: source for source, entry in known.items() if entry.get("meta", {}).get("id")}
    if told is not None:  # two sites number their pages alike
        by_id = {id_: source for id_, source in by_id.items() if PAGE not in known[source]}
    named |= {s: by_id[d.meta.id] for s, d in incoming.items() if s not in named and d.meta.id in by_id}
    new = {s: (d.title, texts[s]) for s, d in incoming.items() if s in seen.files and s not in named}
    moved_on = successors(known, left, new, seen.roots, _lies_there)
    named |= moved_on
    changed = {s: d for s, d in incoming.items() if s not in named or known[named[s]]["sha256"] != digests[s]}
    left = replace(left, gone={**left.gone, **_moved_away(known, left, changed, texts, seen)})
    # A document is moved when its text was known under a source that is gone or written otherwise (NFD).
    homeless = {known[source].get("text_sha256"): source for source in left.gone}
    carry = {}
    for source, document in changed.items():
        old = named.get(source) if source in named else homeless.get(texts[source])
        if old is not None and known[old].get("text_sha256") == texts[source] and old not in carry:
            carry[old] = document
    if not sure:
        confirm_removal(known, left.gone, carry, seen)
    table = {source: dict(entry) for source, entry in known.items()}
    drop = {*left.gone, *(named[source] for source in changed if source in named)}
    for source in drop:
        del table[source]
    for source, document in incoming.items():
        place = document.source if source in changed else named[source]
        came_by = set(known[named[source]].get("roots", ())) if source in named and source not in moved_on else set()
        table[place] = {
            "title": document.title, "lang": document.lang, "sha256": digests[source], "text_sha256": texts[source],
            "roots": [told.root] if told else sorted(came_by | set(seen.files.get(source, ()))),
        }  # fmt: skip
        if document.meta != NO_META:
            table[place]["meta"] = _meta(document)
    after = dict(sources)
    after.update({root: {"kind": "files", **seen.asked} for root in seen.roots})
    if told is not None:
        after[told.root] = dict(told.source)
        for place, page in told.pages.items():
            table[place][PAGE] = dict(page)
    same = after == dict(sources) and without_counts(known) == without_counts(table)
    return ChangePlan(incoming, changed, named, carry, drop, table, after, left, same and not changed and not left.gone)


def _moved_away(
    known: Mapping[str, Mapping[str, Any]],
    left: Departed,
    changed: Collection[str],
    texts: Mapping[str, str],
    seen: Seen,
) -> dict[str, str]:
    """Sources of folders that were not given, whose files are not there and whose very texts now come from other files.

    So a folder that was moved and is added from its new place does not answer twice. Pages inside an export are known
    by their ids instead: their sources are no paths of files.
    """
    named = {composed(source) for source in known}
    new = {texts[source] for source in changed if source in seen.files and source not in named}
    return {
        source: "its text is now in another file"
        for source, entry in known.items()
        if entry.get("text_sha256") in new and source not in left.gone and source not in left.kept
        and not is_page(entry) and Path(source).is_absolute() and not _lies_there(source)
    }  # fmt: skip


def _exists(source: str) -> bool:
    return on_disk(source).exists()


def _is_file(source: str) -> bool:
    return on_disk(source).is_file()


def _lies_there(source: str) -> bool:
    """Whether there is anything at a source's place, be it a link to nothing."""
    return os.path.lexists(on_disk(source))


def without_counts(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Entries of documents as a plan makes them: without what only the written index knows."""
    return {source: {k: v for k, v in entry.items() if k != "chunks"} for source, entry in documents.items()}
