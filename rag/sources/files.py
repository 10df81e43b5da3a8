"""Finds files and reads them into documents by their kind; what could not be read is reported by name.

It knows nothing of chunks, embeddings or indexes, nor of how a kind of file is read: a reader a kind does that.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path

from rag.document import Document
from rag.sources.reader import Read, Reader
from slm.errors import DamagedFileError, InputError, MissingFileError, SlmError, UnsupportedError
from slm.text.language import detect

MARKDOWN = (".md", ".markdown", ".mdown")
HTML = (".html", ".htm", ".xhtml")
TEXT = (".txt", ".text")
# Those of .doc, .xls and .ppt say what to do about the formats before 2007.
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
    **dict.fromkeys(HTML, ("rag.sources.html.page", "read_html")),
    **dict.fromkeys(TEXT, ("rag.sources.text", "read_text")),
    **{
        suffix: (f"rag.sources.office.{part}", name) for suffixes, (part, name) in OFFICE.items() for suffix in suffixes
    },
}
# Parts of web pages that belong to the site and not to the page; they are never worth an error or a report.
_SITE_FILES = (".css", ".js", ".map", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".ico", ".webp", ".woff", ".woff2")
_NOT_FILES = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
              (stat.S_ISBLK, "a device"))  # fmt: skip
_LANG_SAMPLE = 4000


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
    """What a set of paths gave: documents, notes on some of them, and what could not be read."""

    documents: list[Document] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def find_files(paths: Sequence[Path | str], on_skip: Callable[[Skipped], None] = lambda _: None) -> list[Path]:
    """The files of these files and folders, sorted, each once; hidden files and folders are left out.

    Links to folders are followed, each folder once. `on_skip` is told of what cannot be listed and of what is no
    file that can be read. Raises MissingFileError.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
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
                found[file.resolve()] = None
    return list(found)


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
        yield from (Path(parent) / name for name in names if not name.startswith("."))


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


def read_files(
    paths: Sequence[Path | str], on_file: Callable[[int], None] = lambda _: None, *, none_ok: bool = False
) -> Reading:
    """Read everything below the paths. `on_file` is told how many files are done.

    Raises MissingFileError for a path that is not there, InputError when no document at all came out (unless none_ok).
    """
    reading = Reading()
    sources: set[str] = set()
    for number, path in enumerate(find_files(paths, reading.skipped.append), start=1):
        try:
            read = read_noted(path)
            if read.document.source in sources:
                raise InputError("another file has the same name in Unicode's composed form (NFC)")
            sources.add(read.document.source)
            reading.documents.append(read.document)
            if read.note:
                reading.notes.append(Note(read.document.source, read.note))
        except InputError as error:
            reading.skipped.append(Skipped(path, error.what))
        except (SlmError, ImportError):
            raise  # a missing package is not the file's fault
        except OSError as error:
            reading.skipped.append(Skipped(path, error.strerror or str(error)))
        except Exception as error:  # one file that a reader fails at must not end the reading of all others
            reading.skipped.append(Skipped(path, f"it could not be read: {type(error).__name__}: {error}"[:300]))
        on_file(number)
    if not reading.documents and not none_ok:
        raise nothing_read(paths, reading)
    return reading


def nothing_read(paths: Sequence[Path | str], reading: Reading) -> InputError:
    """The error for paths that gave no document at all, with the reasons."""
    named = ", ".join(str(_printable(Path(path))) for path in paths)
    reasons = "; ".join(f"{skipped.path.name}: {skipped.reason}" for skipped in reading.skipped[:5])
    return InputError(
        f"no document was found in {named}",
        found=reasons or "no files",
        hint=f"Files that are read: {', '.join(_READERS)}.",
    )


def read_file(path: Path) -> Document:
    """One file as a document. Raises UnsupportedError (its kind), DamagedFileError (empty, binary, no text)."""
    return read_noted(path).document


def read_noted(path: Path) -> Read:
    """One file as a document, with what is not certain about it. Raises as read_file does.

    The source of a document is its path in Unicode's composed form (NFC), however the disk spells it.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UnsupportedError(f"files of the kind '{suffix or path.name}' are not read")
    raw = path.read_bytes()
    if not raw.strip():
        raise DamagedFileError("it is empty")
    module, name = _READERS[suffix]
    reader: Reader = getattr(import_module(module), name)
    read = reader(raw, unicodedata.normalize("NFC", path.stem))
    document = read.document
    if not document.sections:
        raise DamagedFileError("it holds no visible text")
    sample = " ".join([document.title, *(section.text for section in document.sections)])[:_LANG_SAMPLE]
    source = unicodedata.normalize("NFC", path.as_posix())
    return replace(read, document=replace(document, source=source, lang=detect(sample).language or "und"))
