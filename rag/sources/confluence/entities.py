"""Reads the objects of an XML export one after another, however large the file and however damaged.

An export is one flat list of <object class="..."> elements. Each is cut out of the stream and parsed by itself, so
that neither the file is ever in memory nor a fault in one object costs more than that object. It knows nothing of what
the classes mean.
"""

from __future__ import annotations

import codecs
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from rag.sources.confluence.body.nodes import Node, parse, text_of

_BEGIN = re.compile(r"<object\b([^<>]*)>")
_CLASS = re.compile(r"\bclass\s*=\s*[\"']([\w.$]{1,200})[\"']")
_END = re.compile(r"<!\[CDATA\[|</object\s*>")
_DECLARED = re.compile(rb"^\s*<\?xml[^>]{0,200}?\bencoding\s*=\s*[\"']([\w.:-]{1,40})")
_CHUNK = 1 << 20
_LARGEST = 64_000_000


@dataclass
class Entity:
    """An object: its class, its id, its properties (text, or the id of what they refer to) and its collections of ids.

    kinds: the classes of what properties refer to.
    """

    kind: str
    id: str = ""
    properties: dict[str, str] = field(default_factory=dict)
    collections: dict[str, list[str]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def get(self, *names: str) -> str:
        """The first of these properties that says something, without white space around it."""
        return next(filter(None, (self.properties.get(name, "").strip() for name in names)), "")


@dataclass
class StreamFaults:
    """What was met while a stream was read that is not as it should be."""

    cut_off: bool = False
    too_large: int = 0


def entities(stream: BinaryIO, kinds: Collection[str], faults: StreamFaults) -> Iterator[Entity]:
    """The objects of these classes in a stream, as they come."""
    for kind, text in _objects(_decoded(stream, faults), kinds, faults):
        node = parse(text).first("object")
        if node is not None:
            yield _entity(kind, node)


def _decoded(stream: BinaryIO, faults: StreamFaults) -> Iterator[str]:
    def read() -> bytes:
        try:
            return stream.read(_CHUNK)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError):  # what came before is sound
            faults.cut_off = True
            return b""

    first = read()
    declared = _DECLARED.search(first[:1024])
    name = "utf-16" if first[:2] in (b"\xff\xfe", b"\xfe\xff") else declared.group(1).decode() if declared else "utf-8"
    try:
        decoder = codecs.getincrementaldecoder(name)(errors="replace")
        text = decoder.decode(first)
    except (LookupError, UnicodeError):
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = decoder.decode(first)
    yield text
    while chunk := read():
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _objects(chunks: Iterator[str], kinds: Collection[str], faults: StreamFaults) -> Iterator[tuple[str, str]]:
    """(class, text) of each object of these classes; of others only the end is looked for."""
    buffer, at = "", 0
    for chunk in chunks:
        buffer, at = buffer[at:] + chunk, 0
        while begin := _BEGIN.search(buffer, at):
            named = _CLASS.search(begin.group(1))
            kind = named.group(1).rpartition(".")[2] if named else ""
            if begin.group(1).endswith("/"):
                at = begin.end()
                continue
            end = _object_end(buffer, begin.end())
            if end < 0:
                at = begin.start()
                break
            if kind in kinds:
                yield kind, buffer[begin.start() : end]
            at = end
        else:
            # A tag may be cut in two by the end of what has been read.
            at = max(at, buffer.rfind("<", max(at, len(buffer) - 1000)), 0) if "<" in buffer[-1000:] else len(buffer)
        if len(buffer) - at > _LARGEST:
            faults.too_large += 1
            at = len(buffer)
    faults.cut_off = faults.cut_off or _BEGIN.search(buffer, at) is not None


def _object_end(buffer: str, at: int) -> int:
    """Where an object ends that goes on at a place; -1 when that is not there yet. Ends inside of CDATA are none."""
    while match := _END.search(buffer, at):
        if match.group() != "<![CDATA[":
            return match.end()
        at = buffer.find("]]>", match.end()) + 3
        if at < 3:
            return -1
    return -1


def _entity(kind: str, node: Node) -> Entity:
    entity = Entity(kind)
    for child in node.elements():
        name = child.get("name")
        if child.name == "id" and not entity.id:
            entity.id = text_of(child).strip()
        elif child.name == "property":
            refers = child.first("id")
            entity.properties[name] = text_of(refers).strip() if refers is not None else text_of(child)
            entity.kinds[name] = child.get("class").rpartition(".")[2]
        elif child.name == "collection":
            entity.collections[name] = [
                text_of(element.first("id") or element).strip() for element in child.elements("element")
            ]
    return entity
