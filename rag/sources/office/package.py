"""Opens the zip of XML parts that .docx, .pptx and .xlsx files are, and believes nothing of it.

Sizes are bounded before anything is unpacked, a document type (and so any entity) is refused, links that lead out
of the package are never followed. It knows nothing of what the parts mean.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

from rag.document import Meta
from rag.sources.properties import told_meta
from slm.errors import DamagedFileError, UnsupportedError

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_MOST_ENTRIES = 50_000
_MOST_BYTES = 2 << 30  # unpacked, of all parts together
_MOST_TREE = 100 << 20  # unpacked, of a part that is held in memory
_PROLOG = 1 << 16
_MOST_RATIO, _RATIO_MATTERS = 400, 20 << 20  # markup packs well, but not so well
# The transitional and the strict spelling of a namespace (ISO/IEC 29500-1 and -4) get one prefix.
_NAMESPACES = (
    (re.compile(r"/wordprocessingml/(2006/)?main$"), "w"),
    (re.compile(r"/officeDocument/(2006/)?math$"), "m"),
    (re.compile(r"/drawingml/(2006/)?main$"), "a"),
    (re.compile(r"/drawingml/(2006/)?chart$"), "c"),
    (re.compile(r"/drawingml/(2006/)?diagram$"), "dgm"),
    (re.compile(r"/drawingml/(2006/)?wordprocessingDrawing$"), "wp"),
    (re.compile(r"/presentationml/(2006/)?main$"), "p"),
    (re.compile(r"/markup-compatibility/2006$"), "mc"),
    (re.compile(r"//purl\.org/dc/elements/1\.1/$"), "dc"),
)
_short: dict[str, str] = {}


def tag(element: Any) -> str:
    """The name of an element with the usual prefix of its namespace (w:p), or without one where it is no usual one."""
    full = element.tag
    if not isinstance(full, str):  # a comment or a processing instruction
        return ""
    if full not in _short:
        space, _, name = full.removeprefix("{").rpartition("}")
        prefix = next((prefix for pattern, prefix in _NAMESPACES if pattern.search(space)), "")
        if len(_short) > 20_000:  # names that a file made up
            _short.clear()
        _short[full] = f"{prefix}:{name}" if prefix else name
    return _short[full]


def attribute(element: Any, name: str, default: str = "") -> str:
    """An attribute by its local name, whatever its namespace."""
    for key, value in element.attrib.items():
        if key == name or key.endswith("}" + name):
            return str(value)
    return default


def relation_id(element: Any) -> str:
    """The relation that an element names (r:id, r:dm), which is no id of its own."""
    return next((str(v) for key, v in element.attrib.items() if key.endswith(("}id", "}dm"))), "")


def child(element: Any, *path: str) -> Any:
    """The first element down this path of names; None where there is none."""
    for name in path:
        element = next((part for part in element if tag(part) == name), None)
        if element is None:
            return None
    return element


def below(element: Any, *names: str) -> Iterator[Any]:
    """All elements of these names under an element, in document order."""
    return (part for part in element.iter() if tag(part) in names)


@dataclass(frozen=True)
class Relation:
    """A part that another one names; `target` is a part's name, "" where it lies outside of the package."""

    kind: str
    target: str


class Package:
    """The parts of an office file. Raises DamagedFileError and UnsupportedError in words, when opened and read."""

    def __init__(self, raw: bytes) -> None:
        if raw.startswith(_OLE):
            if "EncryptedPackage".encode("utf-16-le") in raw:
                raise UnsupportedError("it is encrypted with a password; save it without one")
            raise UnsupportedError("it is of the binary format before 2007; save it as .docx, .xlsx or .pptx")
        try:
            self._zip = zipfile.ZipFile(BytesIO(raw))
            entries = self._zip.infolist()
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise DamagedFileError(f"it is no whole zip archive, as office files are ({error})") from error
        if len(entries) > _MOST_ENTRIES or sum(entry.file_size for entry in entries) > _MOST_BYTES:
            raise DamagedFileError(f"it unpacks to more than {_MOST_BYTES >> 30} GB or {_MOST_ENTRIES} parts")
        self._entries = {entry.filename.replace("\\", "/").lstrip("/").lower(): entry for entry in entries}

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._entries

    def read(self, name: str, most: int = _MOST_TREE) -> bytes:
        """The bytes of a part."""
        with self.open(name, most) as file:
            try:
                data: bytes = file.read()
            except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
                raise DamagedFileError(f"its part {name} is damaged ({error})") from error
        return data

    def open(self, name: str, most: int = _MOST_TREE) -> Any:
        """A part as a stream; what it unpacks to is bounded by `most` bytes (zipfile stops at the size it declares)."""
        entry = self._entries.get(name.lower())
        if entry is None:
            raise DamagedFileError(f"its part {name} is missing")
        if entry.flag_bits & 1:
            raise UnsupportedError("it is encrypted with a password; save it without one")
        if entry.file_size > most:
            raise DamagedFileError(f"its part {name} unpacks to {entry.file_size >> 20} MB")
        if entry.file_size > _RATIO_MATTERS and entry.file_size > _MOST_RATIO * max(entry.compress_size, 1):
            raise DamagedFileError(f"its part {name} unpacks to {entry.file_size // max(entry.compress_size, 1)} times "
                                   "its size, as no document does")  # fmt: skip
        try:
            return self._zip.open(entry)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise DamagedFileError(f"its part {name} is damaged ({error})") from error

    def check(self, *, most: int = _MOST_TREE) -> None:
        """Bound every XML part, for a library that opens the package itself; refuse document types in them."""
        for name in self._entries:
            if not name.endswith((".xml", ".rels", ".vml")):
                continue
            with self.open(name, most) as file:
                try:
                    head = file.read(_PROLOG).replace(b"\0", b"")
                except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError):
                    continue  # the part is named where it is read
            # A document type stands before the first element, which must be seen, in whatever encoding.
            if b"<!DOCTYPE" in head or (head.strip() and not re.search(rb"<[A-Za-z_]", head)):
                raise DamagedFileError(f"its part {name} declares a document type, or does not begin as XML does")

    def replaced(self, parts: Mapping[str, bytes]) -> bytes:
        """The package with these parts, named as `names` names them, replaced."""
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            for name, entry in self._entries.items():
                file.writestr(entry.filename, parts[name] if name in parts else self.read(name, entry.file_size))
        return buffer.getvalue()

    @property
    def names(self) -> list[str]:
        """The names of all parts, in lower case."""
        return list(self._entries)

    def tree(self, name: str, *, mended: bool = False) -> Any:
        """A part as a tree of elements; what can be read of it where it is damaged, if that is wanted."""
        from lxml import etree

        parser = etree.XMLParser(
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            remove_comments=True,
            recover=mended,
        )
        try:
            root = etree.fromstring(self.read(name), parser)
        except etree.XMLSyntaxError as error:
            raise DamagedFileError(f"its part {name} is no XML that can be read ({error})") from error
        if root is None:
            raise DamagedFileError(f"its part {name} is no XML that can be read")
        if root.getroottree().docinfo.doctype:
            raise DamagedFileError(f"its part {name} declares a document type, as no office file does")
        return root

    def relations(self, name: str = "") -> dict[str, Relation]:
        """What a part names, by id; that of the package itself for ""."""
        folder, base = posixpath.split(name)
        rels = posixpath.join(folder, "_rels", f"{base}.rels")
        found: dict[str, Relation] = {}
        if rels not in self:
            return found
        for element in self.tree(rels):
            target = attribute(element, "Target").replace("\\", "/")
            if attribute(element, "TargetMode") == "External":
                target = ""
            elif target:
                target = posixpath.normpath(posixpath.join("/" + folder, target)).lstrip("/")
            kind = attribute(element, "Type").rpartition("/")[2]
            found[attribute(element, "Id")] = Relation(kind, target)
        return found

    def main_part(self, default: str) -> str:
        """The part that the package is about."""
        found = (relation.target for relation in self.relations().values() if relation.kind == "officeDocument")
        return next((target for target in found if target in self), default)

    def title(self) -> str:
        """The title among the package's properties; "" for none, or one that a program made up."""
        titles = (element.text or "" for element in self._properties if tag(element) == "dc:title")
        return told_title(next(titles, ""))

    def meta(self) -> Meta:
        """What the package's properties say of it: keywords, author, dates."""
        return told_meta({str(one.tag).rpartition("}")[2]: one.text or "" for one in self._properties})

    @cached_property
    def _properties(self) -> list[Any]:
        """The elements of the package's properties; none where it has no part of them that can be read."""
        try:
            return list(self.tree("docProps/core.xml"))
        except DamagedFileError:
            return []


_MADE_UP = re.compile(
    r"(?:microsoft (?:word|powerpoint|excel) - .*|(?:powerpoint|word) ?(?:presentation|document|プレゼンテーション)"
    r"|untitled.*|document ?\d*|presentation ?\d*|slide ?\d*|無題.*|スライド ?\d*|title|(?:un)?named"
    r"|\(?(?:anonymous|unspecified|none)\)?|.*\.\w{2,5})",
    re.IGNORECASE | re.DOTALL,
)


def told_title(title: str) -> str:
    """A title of a file's properties in one line; "" where a program put it there."""
    line = " ".join(title.split())
    return "" if _MADE_UP.fullmatch(line) else line
