"""What names an index, and what names a document in it. It knows nothing of what an index holds.

A bare name is an index of the data folder wherever a command runs; a path has a separator, or is an index folder.
Names are compared in Unicode's composed form (NFC): macOS writes the same name in pieces.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path

from slm.errors import InputError, UnknownNameError
from slm.paths import at_home, composed, indexes_dir, named_indexes, own_name, resolved

CURRENT = "CURRENT"
_NAME = re.compile(r"\w[\w.-]*")
_LISTED = 10


def index_path(index: str) -> Path:
    """The folder of an index. Raises InputError for what is neither a path nor a name.

    A name of the data folder goes before a folder of that name in the working folder (which ./NAME means).
    """
    if os.sep in index or "/" in index:
        return at_home(index)
    named = indexes_dir() / composed(index)
    valid = _NAME.fullmatch(composed(index)) is not None
    if is_index(Path(index)) and not (valid and is_index(named)):
        return Path(index)
    if not valid:
        raise InputError(
            f"'{index}' is no name for an index",
            hint="Use letters, digits, '-', '_' and '.', or a path with a separator, such as ./NAME.",
        )
    return named


def is_index(path: Path) -> bool:
    """Whether a folder is an index, be it a damaged one that has lost its pointer."""
    return (path / CURRENT).exists() or any(path.glob("gen-*/manifest.json"))


def known_indexes() -> list[str]:
    """The names of the indexes under the data folder."""
    return [name for name in named_indexes() if is_index(indexes_dir() / name)]


def index_name(path: Path) -> str:
    """How a command line names the index in this folder."""
    return path.name if path.parent == indexes_dir() else str(path)


def command_anew(name: str, roots: Iterable[str], words: str = "") -> str:
    """The commands that make an index again from its roots: files and folders, and spaces as URL#SPACE.

    words: how, where that has to be said (`rag.index.lexical.terms.KINDS`).
    """
    files = sorted({root for root in roots if not root.startswith(("http://", "https://"))})
    paths = " ".join(shlex.quote(root) for root in files) or "PATH..."
    command = f"slm rag add {shlex.quote(name)} {paths}{f' --words {words}' if words else ''} --fresh"
    for root in sorted(set(roots) - set(files)):
        url, _, space = root.rpartition("#")
        command += (
            f" && slm rag sync {shlex.quote(name)} --confluence-url {shlex.quote(url)} --space {shlex.quote(space)}"
        )
    return command


def source_matches(source: str, name: str) -> bool:
    """Whether a document's source is `name` or ends with it at a path boundary."""
    source, name = composed(source), composed(name).removeprefix("./")
    return bool(name) and (source == name or source.endswith("/" + name.lstrip("/")))


def is_below(source: str, folder: str) -> bool:
    """Whether a source is that path or lies below it."""
    source, folder = composed(source), composed(folder).rstrip("/")
    return source == folder or source.startswith(folder + "/")


def documents_named(sources: Collection[str], name: str, *, every: bool = False) -> list[str]:
    """The documents that a name means: a whole source, the end of one, or a folder with what is below it.

    Raises UnknownNameError for a name of nothing, InputError for one of several documents or folders unless `every`.
    """
    here = composed(resolved(name).as_posix())
    linked = composed(own_name(name).as_posix())  # a link is read by its own name
    exact = [source for source in sources if composed(source) in (composed(name), here, linked)]
    by_path = name.startswith(("./", "../", "/"))
    if exact and (by_path or composed(exact[0]) == composed(name)):
        return exact
    documents = {source: [source] for source in sources if source_matches(source, name)}
    folders = _folders_named(sources, name, here if by_path or not documents else "")
    meant = {**documents, **folders} if name.strip() else {}
    if not meant:
        raise UnknownNameError("document", name, sorted(sources)[:_LISTED], hint="See: slm rag status INDEX")
    if len(meant) > 1 and not every:
        shown = [f"{place} ({len(below)} documents)" if place in folders else place for place, below in meant.items()]
        raise InputError(
            f"'{name}' names {len(meant)} of the index; nothing was removed",
            found=", ".join(sorted(shown)[:_LISTED]) + (", ..." if len(shown) > _LISTED else ""),
            hint="Name one by a longer path, or all of them with --all.",
        )
    return list(dict.fromkeys(source for below in meant.values() for source in below))


def _folders_named(sources: Collection[str], name: str, here: str) -> dict[str, list[str]]:
    """The sources below each folder that `name` means: the path `here`, else any folder whose path ends with it."""
    inside = [source for source in sources if here and is_below(source, here)]
    if inside:
        return {here: inside}
    middle = "/" + composed(name).removeprefix("./").strip("/") + "/"
    folders: dict[str, list[str]] = {}
    for source in sources:
        whole = "/" + composed(source).lstrip("/")
        start = whole.find(middle)
        if start >= 0 and middle != "//":
            folders.setdefault(whole[: start + len(middle) - 1], []).append(source)
    return folders
