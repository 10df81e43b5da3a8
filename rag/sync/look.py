"""Looks through files and folders for an index: what is there now, what was read, what is gone since the last time.

It is the thin shell of rag.index.change.gone, which decides, and of rag.sources, which reads.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from rag.index.change.gone import Seen
from rag.index.names import is_below
from rag.sources.files import Reading, named_files
from rag.sources.reader import ReadOptions
from slm.errors import MissingFileError
from slm.paths import composed, on_disk, own_name, resolved

# The reasons of a reader for a file that is whole and has no text; all others are a file that could not be read.
BLANK = ("it is empty", "it holds no visible text")


def require_paths(paths: Sequence[Path], known: Collection[str], index: str) -> None:
    """Raise MissingFileError for a path that is not there, with the way to drop what the index still holds of it."""
    for path in paths:
        if on_disk(path).exists():
            continue
        held = sum(is_below(source, place) for source in known for place in _places(path))
        raise MissingFileError(
            f"there is no file or folder '{path}'",
            found=f"{held} documents of it in the index, which go on answering" if held else "",
            hint=f"To drop them: slm rag remove {index} {resolved(path).as_posix()}" if held else "",
        )


def seen(paths: Sequence[Path], reading: Reading, wanted: ReadOptions = ReadOptions()) -> Seen:  # noqa: B008  # it is frozen
    """What was looked through: each path with its files, and the files among them that could not be read.

    wanted: what was asked for beside their text, which a sync will ask for again.
    """
    files: dict[str, set[str]] = {}
    roots: dict[str, list[str]] = {}
    names = named_files(paths)  # a file that is found by several paths was read by one of its names
    for path in paths:
        root, *others = _places(path)
        roots[root] = [root, *others]
        for itself in named_files([path]):
            if itself in names:
                files.setdefault(composed(names[itself].as_posix()), set()).add(root)
    for source, file in reading.files.items():  # a file may hold many documents
        files.setdefault(composed(source), set()).update(files.get(composed(file.as_posix()), ()))
    unread: dict[str, str] = {}
    blank: set[str] = set()
    for skipped in reading.skipped:
        for place in _places(skipped.path):
            if skipped.reason in BLANK:
                blank.add(place)
            else:
                unread[place] = skipped.reason
    ids = {document.meta.id for document in reading.documents} - {""} | reading.unread
    asked = {key: value for key, value in asdict(wanted).items() if value}
    return Seen(roots, files, unread, blank, reading.spaces, ids, asked)


def _places(path: Path) -> list[str]:
    """A path as it was given, absolute, and the same without symbolic links, and with none but its own."""
    given = Path(os.path.normpath(Path.cwd() / path))
    places = (given, resolved(path), own_name(given))
    return list(dict.fromkeys(composed(place.as_posix()) for place in places))
