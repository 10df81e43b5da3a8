"""Finds files and reads them into documents by their kind; what could not be read is reported by name.

A file may hold many documents (an export of Confluence): the source of each is then the file's path and a name below.

It knows nothing of chunks, embeddings or indexes, nor of how a kind of file is read: a reader a kind does that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from rag.document import Document
from rag.sources.reader import (
    LARGEST_PAGE,
    Collection,
    FileReader,
    LeftOut,
    Read,
    ReadOptions,
    Whole,
    failure_of,
    language_of,
)
from rag.sources.superseded import Given, superseded
from slm.errors import DamagedFileError, InputError, MissingFileError, SlmError, UnsupportedError
from slm.paths import composed, on_disk, own_name, resolved
from slm.weights.checkpoint_files import pointer_of

MARKDOWN = (".md", ".markdown", ".mdown")
HTML = (".html", ".htm", ".xhtml")
TEXT = (".txt", ".text")
# Their readers say what to do about the formats before 2007.
_BEFORE_2007 = (".doc", ".ppt", ".xls")
MOST_TOLD = 5
"""So many files are named where nothing could be read."""
OFFICE = {
    (".csv", ".tsv"): ("delimited", "read_delimited"),
    (".docx", ".docm", ".doc"): ("word.read", "read_word"),
    (".pdf",): ("pdf.read", "read_pdf"),
    (".pptx", ".pptm", ".ppsx", ".ppt"): ("slides", "read_slides"),
    (".xlsx", ".xlsm", ".xls"): ("workbook", "read_workbook"),
}
# Readers are imported when the first file of their kind is met.
_READERS = {
    **dict.fromkeys(MARKDOWN, ("rag.sources.markdown.page", "read_markdown")),
    **dict.fromkeys(TEXT, ("rag.sources.text", "read_text")),
    **{
        suffix: (f"rag.sources.office.{part}", name) for suffixes, (part, name) in OFFICE.items() for suffix in suffixes
    },
}
# Readers of files that may hold many documents.
_COLLECTIONS = {
    **dict.fromkeys(HTML, ("rag.sources.confluence.loose", "read_page_file")),
    **dict.fromkeys((".xml", ".storage", ".mraw"), ("rag.sources.confluence.loose", "read_xml_file")),
    ".zip": ("rag.sources.confluence.archive", "read_zip"),
    ".json": ("rag.sources.confluence.saved", "read_answer_file"),
    ".properties": ("rag.sources.confluence.loose", "explain_descriptor"),
}
# What an unpacked XML export is read by; the other files in its folder have no names of their own.
_EXPORT, _DESCRIPTOR = "entities.xml", "exportDescriptor.properties"
# Of an unpacked HTML export.
_INDEX, _ATTACHED, _INDEX_HEAD = "index.html", "attachments", 100_000
# Parts of web pages that belong to the site and not to the page; they are never worth an error or a report.
_SITE_FILES = (".css", ".js", ".map", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".ico", ".webp", ".woff", ".woff2")
_NOT_FILES = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
              (stat.S_ISBLK, "a device"))  # fmt: skip
_POINTER_BYTES = 1024  # a pointer is shorter (git-lfs, docs/spec.md)


@dataclass(frozen=True)
class Skipped:
    """A file that gave no document or a folder that could not be listed, and why in words."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Note:
    """A document's source, and what is not certain about it in words."""

    source: str
    text: str


@dataclass
class Reading:
    """What a set of paths gave: documents, notes on some of them, and what could not be read.

    files: by the source of each document, the file that it was read from. spaces: those of which every page was given.
    unread: ids of what is there and could not be read.
    """

    documents: list[Document] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    spaces: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)


def find_files(paths: Sequence[Path | str], on_skip: Callable[[Skipped], None] = lambda _: None) -> list[Path]:
    """The files of these files and folders, sorted, each once; hidden files and folders are left out.

    Links to folders are followed, each folder once. A link to a file is read by its own name, unless the file itself
    is found as well. `on_skip` is told of what cannot be listed and of what is no file that can be read. Raises
    MissingFileError.
    """
    return list(named_files(paths, on_skip).values())


def named_files(paths: Sequence[Path | str], on_skip: Callable[[Skipped], None] = lambda _: None) -> dict[Path, Path]:
    """What `find_files` finds: by the file itself, behind all links, the name that it is read by."""
    found: dict[Path, Path] = {}
    for path in map(on_disk, paths):
        if path.is_dir():
            files = sorted(_files_below(path, on_skip))
        elif os.path.lexists(path):
            files = [path]
        else:
            raise MissingFileError(f"there is no file or folder '{_printable(path)}'")
        for file in files:
            reason = _no_file(file)
            if reason:
                on_skip(Skipped(_printable(file), reason))
            elif file == path or file.suffix.lower() not in _SITE_FILES:
                itself = resolved(file)
                name = _name_to_read(file, itself)
                before = found.setdefault(itself, name)
                if (_is_read(name), name == itself) > (_is_read(before), before == itself):
                    found[itself] = name
    return found


def _name_to_read(file: Path, itself: Path) -> Path:
    """A file's own name in a folder without links; that of what it links to where that alone says what it is.

    A hub's cache links guide.md to a blob that is named by its hash, and a folder may link "latest" to a page.
    """
    own = own_name(file)
    return itself if _is_read(itself) and not _is_read(own) else own


def _is_read(path: Path) -> bool:
    """Whether files of this kind are read."""
    suffix = path.suffix.lower()
    return suffix in _READERS or suffix in _COLLECTIONS


def _files_below(folder: Path, on_skip: Callable[[Skipped], None]) -> Iterator[Path]:
    """Unhidden names below a folder; one that is removed meanwhile does not stop the walk."""

    def unlisted(error: OSError) -> None:
        on_skip(Skipped(_printable(Path(error.filename)), error.strerror or str(error)))

    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, onerror=unlisted, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        try:
            identity = Path(parent).stat()
        except OSError as error:
            unlisted(error)
            folders.clear()
            continue
        # A link may lead to a folder above it, or two links to the same one.
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        export = next((name for name in (_EXPORT, _DESCRIPTOR) if name in names), None)
        if export is not None:
            folders.clear()
            names = [export]
        elif _ATTACHED in folders and _INDEX in names and _is_of_export(Path(parent) / _INDEX):
            folders.remove(_ATTACHED)  # the pages name them, and are read with them
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def _is_of_export(index: Path) -> bool:
    """Whether a folder's index.html is that of an HTML export of Confluence."""
    try:
        with index.open("rb") as file:
            return b'id="title-text"' in file.read(_INDEX_HEAD)
    except OSError:
        return False


def _no_file(path: Path) -> str:
    """Why a path is no file that can be read, in words; "" when it is one."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "it is a link to nothing"
    except OSError as error:
        return error.strerror or str(error)
    kind = next((name for is_kind, name in _NOT_FILES if is_kind(mode)), "")
    return f"it is {kind}, not a file" if kind else ""


def _printable(path: Path) -> Path:
    """A path whose name can be shown and sent: bytes that are not UTF-8 as escapes."""
    return Path(os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8"))


ReadEach = Callable[[Sequence[Path], ReadOptions], Iterator[tuple[Path, Iterable[Read | LeftOut | Whole]]]]
"""Files, in order, each with what it gives: an iterable that may raise as `read_each` does."""


def read_here(files: Sequence[Path], wanted: ReadOptions) -> Iterator[tuple[Path, Iterable[Read | LeftOut | Whole]]]:
    """A `ReadEach` in this process, one file after the other."""
    for path in files:
        yield path, read_each(path, wanted)


def read_files(
    paths: Sequence[Path | str],
    on_file: Callable[[int], None] = lambda _: None,
    *,
    none_ok: bool = False,
    wanted: ReadOptions = ReadOptions(),  # noqa: B008  # it is frozen
    by: ReadEach = read_here,
) -> Reading:
    """Read everything below the paths. `on_file` is told how many files are done. by: who reads them.

    Of a page that comes several times (two exports of a space) the newest is kept. Raises MissingFileError for a path
    that is not there, InputError when no document at all came out (unless none_ok).
    """
    reading = Reading()
    pages: dict[str, int] = {}
    given: dict[Path, Given] = {}
    files = find_files(paths, reading.skipped.append)
    for number, (path, pieces) in enumerate(by(files, wanted), start=1):
        try:
            for read in pieces:
                given.setdefault(path, Given()).take(read, path)
                _take(read, path, reading, pages)
        except InputError as error:
            reading.skipped.append(Skipped(path, error.what))
        except (SlmError, ImportError):
            raise  # a missing package is not the file's fault
        except OSError as error:
            reading.skipped.append(Skipped(path, error.strerror or str(error)))
        except Exception as error:  # one file that a reader fails at must not end the reading of all others
            reading.skipped.append(Skipped(path, failure_of(error)))
        on_file(number)
    _forget(reading, given)
    if not reading.documents and not none_ok:
        raise nothing_read(paths, reading)
    return reading


def _take(read: Read | LeftOut | Whole, path: Path, reading: Reading, pages: dict[str, int]) -> None:
    """Put what was read into a reading; `pages` has the place of each page in it by its id."""
    if isinstance(read, LeftOut):
        reading.skipped.append(Skipped(path / read.name, read.reason))
        reading.unread |= {read.id} - {""}
        return
    if isinstance(read, Whole):
        reading.spaces |= set(read.spaces)
        if read.note:
            reading.notes.append(Note(_source(path), read.note))
        return
    document = read.document
    if document.source in reading.files:
        raise InputError("another file has the same name in Unicode's composed form (NFC)")
    known = pages.get(document.meta.id) if document.meta.id else None
    if known is not None:
        older, newer = reading.documents[known], document
        if _age(newer, path) <= _age(older, reading.files[older.source]):
            older, newer = newer, older
        reading.documents[known] = newer
        reading.skipped.append(Skipped(Path(older.source), f"the same page was read from {newer.source}"))
        if newer is not document:
            return
        del reading.files[older.source]
    else:
        pages[document.meta.id] = len(reading.documents)
        reading.documents.append(document)
    reading.files[document.source] = path
    if read.note:
        reading.notes.append(Note(document.source, read.note))


def _forget(reading: Reading, given: Mapping[Path, Given]) -> None:
    """Take out what a newer export of the same space has no more; given: what each file gave."""
    gone = {document.source: newer for document, newer in superseded(reading.documents, reading.files, given)}
    for source in gone:
        del reading.files[source]
    reading.documents = [document for document in reading.documents if document.source not in gone]
    reading.notes = [note for note in reading.notes if note.source not in gone]
    for source, newer in gone.items():  # no file that could not be read: what an index holds of it is to go
        reading.notes.append(Note(source, f"it is left out: the newer export of its space, {newer}, has it no more"))


def _age(document: Document, path: Path) -> tuple[int, str, int]:
    return document.meta.version, document.meta.modified, path.stat().st_mtime_ns


def is_document(name: str) -> bool:
    """Whether a file of this name is read as one document."""
    suffix = Path(name).suffix.lower()
    return suffix in _READERS or suffix in HTML


def nothing_read(paths: Sequence[Path | str], reading: Reading) -> InputError:
    """The error for paths that gave no document at all, with the reasons."""
    named = ", ".join(str(_printable(Path(path))) for path in paths)
    told = reading.skipped[:MOST_TOLD]
    reasons = "; ".join(f"{skipped.path.name}: {skipped.reason}" for skipped in told)
    kinds = (suffix for suffix in (*_READERS, *HTML) if suffix not in _BEFORE_2007)
    hint = f"Files that are read: {', '.join(kinds)}, and exports of Confluence (.zip, .xml, .json)."
    # Where each file is of a kind that is read, its reason says what to do.
    unknown = not told or any(skipped.path.suffix.lower() not in (*_READERS, *_COLLECTIONS) for skipped in told)
    return InputError(f"no document was found in {named}", found=reasons or "no files", hint=hint if unknown else "")


def read_each(path: Path, wanted: ReadOptions = ReadOptions()) -> Iterator[Read | LeftOut | Whole]:  # noqa: B008  # it is frozen
    """All documents of a file, with what is not certain about them.

    The source of a document is its path in Unicode's composed form (NFC), however the disk spells it. Raises
    UnsupportedError (its kind), DamagedFileError (empty, binary).
    """
    _refuse_pointer(path)
    suffix = path.suffix.lower()
    if suffix in _COLLECTIONS and (suffix != ".properties" or path.name == _DESCRIPTOR):
        module, name = _COLLECTIONS[suffix]
        collection: Collection = getattr(import_module(module), name)
        for read in collection(path, wanted):
            yield _finished(read, path) if isinstance(read, Read) else read
        return
    if suffix not in _READERS:
        raise UnsupportedError(f"files of the kind '{suffix or path.name}' are not read")
    _refuse_size(suffix, path.stat().st_size)
    yield _finished(read_bytes(path.read_bytes(), path.name), path)


def read_bytes(raw: bytes, name: str) -> Read:
    """The one document that bytes with this name hold, for which `is_document` holds. Raises InputError."""
    suffix = Path(name).suffix.lower()
    _refuse_size(suffix, len(raw))
    if not raw.strip():
        raise DamagedFileError("it is empty")
    module, function = _READERS.get(suffix, ("rag.sources.html.page", "read_html"))
    reader: FileReader = getattr(import_module(module), function)
    return reader(raw, composed(Path(name).stem))


def _refuse_size(suffix: str, size: int) -> None:
    if suffix in (*MARKDOWN, *TEXT, *HTML) and size > LARGEST_PAGE:
        raise UnsupportedError(f"it has {size} bytes, more than any page that somebody wrote")


def _refuse_pointer(path: Path) -> None:
    """Raise DamagedFileError for what a clone without its large files has in a document's place."""
    with path.open("rb") as file:
        head = file.read(_POINTER_BYTES)
    kind = pointer_of(head) if len(head) < _POINTER_BYTES else ""
    if kind:
        command = "git lfs pull" if kind == "Git LFS" else "git annex get"
        raise DamagedFileError(f"it is a {kind} pointer, not the document; fetch it with: {command}")


def _finished(read: Read, path: Path) -> Read:
    """What a reader gave with its source and language; a page that is known by an id may be empty."""
    document = read.document
    if not document.sections and not document.meta.id:
        raise DamagedFileError("it holds no visible text")
    source = _source(path) + (f"/{document.source}" if document.source else "")
    return replace(read, document=replace(document, source=source, lang=language_of(document)))


def _source(path: Path) -> str:
    return composed(path.as_posix())
