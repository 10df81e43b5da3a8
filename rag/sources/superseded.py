"""Of a space that was exported whole several times only the newest export says which pages there are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rag.document import Document
from rag.sources.reader import LeftOut, Read, Whole


@dataclass
class Given:
    """What one file gave: by the id of each page (version, time of its last change), also of pages that could not be
    read. spaces: those of which it gave every page; made: when, as ISO 8601 and the file's own time in nanoseconds."""

    pages: dict[str, tuple[int, str]] = field(default_factory=dict)
    spaces: frozenset[str] = frozenset()
    made: tuple[str, int] = ("", 0)

    def take(self, read: Read | LeftOut | Whole, path: Path) -> None:
        """Remember what a file gave next."""
        if isinstance(read, Whole):
            self.spaces |= frozenset(read.spaces)
            self.made = (read.made, path.stat().st_mtime_ns)
        elif isinstance(read, LeftOut):
            self.pages.setdefault(read.id, (0, ""))
        elif read.document.meta.id:
            self.pages[read.document.meta.id] = (read.document.meta.version, read.document.meta.modified)


def superseded(
    documents: Collection[Document], files: Mapping[str, Path], given: Mapping[Path, Given]
) -> Iterator[tuple[Document, Path]]:
    """Documents that a newer export of their space has no more, each with that export.

    files: by the source of a document the file that it was read from. Two exports are of one space when they share a
    page as well as its key: sites call their spaces alike.
    """
    whole = {file: export for file, export in given.items() if export.spaces}
    newer = {
        file: [other for other, one in whole.items() if one.spaces & export.spaces and _is_newer(one, export)]
        for file, export in whole.items()
    }
    for document in documents:
        space, file = document.meta.space, files[document.source]
        if file not in whole or space not in whole[file].spaces:
            continue
        for other in newer[file]:
            if space in whole[other].spaces and document.meta.id not in whole[other].pages:
                yield document, other
                break


def _is_newer(one: Given, other: Given) -> bool:
    """Whether one export was made after another: its pages say so, else its own time does."""
    shared = one.pages.keys() & other.pages.keys() - {""}
    later = sum((one.pages[page] > other.pages[page]) - (one.pages[page] < other.pages[page]) for page in shared)
    return bool(shared) and (later > 0 or (later == 0 and one.made > other.made))
