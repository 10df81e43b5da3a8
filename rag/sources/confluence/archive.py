"""Reads zips: exports as XML and as HTML. A zip is nobody's word: what it says of itself is checked before it is read.

Nothing is unpacked onto the disk. Entries that lead out of the archive, unpack to far more than they are, are encrypted
or damaged are named and left out; the others are read.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from rag.sources.confluence.attached import LARGEST_FILE, Stored
from rag.sources.confluence.html_export import ExportIndex, is_export_page, read_export_page, read_index
from rag.sources.confluence.xml_export import read_entities
from rag.sources.reader import LARGEST_PAGE, LeftOut, Read, ReadOptions, Whole, failure_of
from slm.errors import DamagedFileError, InputError, SlmError, UnsupportedError

ENTITIES, DESCRIPTOR = "entities.xml", "exportDescriptor.properties"
_MOST_ENTRIES = 1_000_000
_HARMLESS, _MOST_TIMES = 20_000_000, 200
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


def read_zip(path: Path, wanted: ReadOptions) -> Iterator[Read | LeftOut | Whole]:
    """The pages of an export. Raises DamagedFileError, or UnsupportedError for a zip that is no export."""
    try:
        archive = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise DamagedFileError(f"it is no zip archive that can be read: {error}") from error
    with archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > _MOST_ENTRIES:
            raise UnsupportedError(f"it holds {len(entries)} files, more than an export would")
        made = max(("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}".format(*entry.date_time) for entry in entries), default="")
        for read in _read_entries(archive, entries, wanted):
            yield replace(read, made=made) if isinstance(read, Whole) else read


def _read_entries(
    archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], wanted: ReadOptions
) -> Iterator[Read | LeftOut | Whole]:
    named = {PurePosixPath(entry.filename).name: entry for entry in reversed(entries)}
    files = {entry.filename: entry for entry in entries}
    if ENTITIES in named:
        reason = _refused(named[ENTITIES], most=None)
        if reason:
            raise DamagedFileError(f"{ENTITIES} in it is not read: {reason}")
        try:
            beside = _stored(archive, files, PurePosixPath(named[ENTITIES].filename).parent)
            with archive.open(named[ENTITIES]) as stream:
                yield from read_entities(stream, wanted, beside)  # type: ignore[arg-type]  # it only reads
        except _BROKEN as error:
            raise DamagedFileError(f"{ENTITIES} in it is damaged: {error}") from error
        return
    pages = [entry for entry in entries if entry.filename.lower().endswith((".html", ".htm"))]
    if not pages:
        raise UnsupportedError(csv_export() if DESCRIPTOR in named else
                               "it is a zip archive, but no export of Confluence; unpack it")  # fmt: skip
    yield from _pages(archive, pages, wanted, files)


def csv_export() -> str:
    """Why an export without entities.xml is not read, and what to do."""
    return (
        "it is an export of Confluence in the CSV form, which is a backup to restore a site from; "
        "export the space as HTML or XML instead (Space settings > Export space)"
    )


def _pages(
    archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], wanted: ReadOptions, files: Mapping[str, zipfile.ZipInfo]
) -> Iterator[Read | LeftOut | Whole]:
    index: dict[PurePosixPath, ExportIndex] = {}
    whole, count = True, 0
    # The index of a folder before its pages.
    for entry in sorted(entries, key=lambda entry: (not entry.filename.endswith("index.html"), entry.filename)):
        name = PurePosixPath(entry.filename)
        try:
            reason = _refused(entry)
            if reason:
                raise InputError(reason)
            raw = _bytes_of(archive, entry)
            if not is_export_page(raw):
                continue
            if name.name == "index.html" and (said := read_index(raw)) is not None:
                index[name.parent] = said
                continue
            count += 1
            beside = _stored(archive, files, name.parent)
            yield from read_export_page(raw, name.stem, wanted, index.get(name.parent), beside)
        except InputError as error:
            whole = False
            yield LeftOut(name.stem.rpartition("_")[2] or name.as_posix(), f"{name.as_posix()}: {error.what}")
        except (SlmError, ImportError):
            raise  # a missing package is not the file's fault
        except Exception as error:  # one page that the reader fails at must not end the reading of all others
            whole = False
            yield LeftOut(name.as_posix(), failure_of(error))
    if not count and whole:
        raise UnsupportedError("it is a zip archive, but no export of Confluence; unpack it")
    present = {name.name for name in map(PurePosixPath, archive.namelist())}
    # An index that lists pages which are not there is that of a part of a space.
    spaces = {said.key for said in index.values() if said.key and {f for f in said.titles if "/" not in f} <= present}
    yield Whole(tuple(sorted(spaces)) if whole else ())


def _stored(archive: zipfile.ZipFile, files: Mapping[str, zipfile.ZipInfo], folder: PurePosixPath) -> Stored:
    """The files of an archive by their paths from a folder in it."""

    def stored(path: str) -> bytes | None:
        entry = files.get((folder / path).as_posix()) if path else None
        if entry is None:
            return None
        reason = _refused(entry, LARGEST_FILE)
        if reason:
            raise InputError(reason)
        return _bytes_of(archive, entry)

    return stored


def _refused(entry: zipfile.ZipInfo, most: int | None = LARGEST_PAGE) -> str:
    """Why an entry is not read, in words; "" when it is."""
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or (name.parts and name.parts[0].endswith(":")):
        return "its name leads out of the archive"
    if entry.flag_bits & 0x1:
        return "it is encrypted"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "it is a link"
    if entry.file_size > _HARMLESS and entry.file_size > _MOST_TIMES * max(entry.compress_size, 1):
        return f"it would unpack to {entry.file_size} bytes from {entry.compress_size}"
    if most is not None and entry.file_size > most:
        return f"it has {entry.file_size} bytes, more than any page that somebody wrote"
    return ""


def _bytes_of(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry, never more than it said. Raises DamagedFileError."""
    try:
        with archive.open(entry) as stream:
            return stream.read(entry.file_size + 1)
    except _BROKEN as error:
        raise DamagedFileError(f"it is damaged: {error}") from error
