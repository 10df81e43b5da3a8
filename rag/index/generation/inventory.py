"""What a generation holds, without the chunks themselves: its manifest, its table of documents, its list of parts.

Whoever changes an index needs no more than this of it, so that a change costs nothing for what stays. The manifest
has the size and the SHA-256 of every file: sizes are compared whenever an index is opened, contents when they are read.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rag.index.generation.part import part_files
from rag.index.names import index_name
from slm.artifacts import MANIFEST, read_manifest, sha256_file
from slm.errors import UnsupportedError

KIND = "index generation"
# Format 1 had no checksums, and words in the lexical index as they were written. Chunks of format 2 had no context line
# of their own. Up to format 3 a generation was one part, and its manifest held the table. All of them are read.
# Up to format 4 words were always found by character pairs.
FORMAT = 5
OLDER = 3
DOCUMENTS = "documents.jsonl"
_AT = "at"


class Place(NamedTuple):
    """Where a document's chunks are: rows first, ..., first + chunks - 1 of a part."""

    part: str
    first: int
    chunks: int


@dataclass(frozen=True)
class Inventory:
    """One generation: documents by source, where the chunks of each are (not in formats before 4), and parts."""

    folder: Path
    manifest: dict[str, Any]
    documents: dict[str, dict[str, Any]]
    """By source: title, lang, sha256 of document and of text alone, roots, number of chunks, any meta."""
    places: dict[str, Place]

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Where documents come from, by their roots: {"kind": "files"}, or "confluence" with its url and space.

        An index that was written before they were kept has those of its documents.
        """
        kept: dict[str, dict[str, Any]] | None = self.manifest.get("sources")
        if kept is None:
            kept = {root: {"kind": "files"} for entry in self.documents.values() for root in entry.get("roots", ())}
        return kept

    @property
    def made_with(self) -> dict[str, Any]:
        """The identity of the embedder that made it."""
        made_with: dict[str, Any] = self.manifest["embedder"]
        return made_with

    @property
    def words(self) -> dict[str, Any] | None:
        """How its terms are made, as `rag.index.lexical.terms.kept_wording` reads it; None before it was kept."""
        words: dict[str, Any] | None = self.manifest.get("words")
        return words

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """By name: rows, how it is searched ("kind"), and the bytes and sha256 of its files."""
        parts: dict[str, dict[str, Any]] = self.manifest.get("parts", {})
        return parts

    @property
    def format(self) -> int:
        return int(self.manifest.get("format", 1))

    @property
    def count(self) -> int:
        """How many chunks it has."""
        return int(self.manifest["chunks"])


def read_inventory(folder: Path, path: Path, roots: set[str]) -> Inventory:
    """Read and check what a generation's manifest says; the roots of its documents are put into `roots`.

    Raises UnsupportedError (a newer format), and whatever comes of damage: `rag.index.store` says it in one way.
    """
    manifest = read_manifest(folder)
    version = manifest.get("format", 1)
    if not isinstance(version, int) or manifest.get("kind") != KIND:
        raise ValueError(f"'{folder / MANIFEST}' is not the manifest of an index")
    if version > FORMAT:
        raise UnsupportedError(
            f"the index '{index_name(path)}' was made by a newer version of this program",
            found=f"format {version}, known up to {FORMAT}",
            hint=f"Update, or make it anew with: slm rag add {shlex.quote(index_name(path))} PATH... --fresh",
        )
    roots |= set(manifest.get("sources") or ())
    if version <= OLDER:
        documents = manifest["documents"]
        places: dict[str, Place] = {}
        roots |= {root for entry in documents.values() for root in entry.get("roots", ())}
    else:
        check_file(folder / DOCUMENTS, manifest["files"][DOCUMENTS])
        documents, places = _table(folder / DOCUMENTS)
        for name, part in manifest["parts"].items():
            for file in part_files(part["kind"]):
                _check_size(folder / name / file, part["files"][file])
    _check(manifest, documents)
    inventory = Inventory(folder, manifest, documents, places)
    if version > OLDER:
        _check_places(inventory)
    return inventory


def check_file(path: Path, told: Mapping[str, Any]) -> None:
    """Raise ValueError or OSError unless the file is what the manifest tells of it."""
    _check_size(path, told)
    if sha256_file(path) != told["sha256"]:
        raise ValueError(f"'{path}' is not what was written")


def described(path: Path) -> dict[str, Any]:
    """What a manifest tells of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _check_size(path: Path, told: Mapping[str, Any]) -> None:
    if not path.is_file() or path.stat().st_size != told["bytes"]:
        raise ValueError(f"'{path}' is missing, or not as long as it was written")


def write_table(file: Path, documents: Mapping[str, Mapping[str, Any]], places: Mapping[str, Place]) -> None:
    """Write the table of documents, a line each. Raises OSError."""
    with file.open("w", encoding="utf-8", errors="surrogatepass") as lines:
        for source, entry in documents.items():
            place = {_AT: list(places[source])} if source in places else {}
            lines.write(json.dumps({"source": source, **entry, **place}, ensure_ascii=False) + "\n")


def _table(file: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Place]]:
    documents: dict[str, dict[str, Any]] = {}
    places: dict[str, Place] = {}
    with file.open(encoding="utf-8", errors="surrogatepass") as lines:
        for line in lines:
            entry = json.loads(line)
            source, place = entry.pop("source"), entry.pop(_AT, None)
            documents[source] = entry
            if place is not None:
                places[source] = Place(*place)
    return documents, places


def _check(manifest: Mapping[str, Any], documents: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless the manifest has all that a reader or writer takes from it."""
    embedder = manifest["embedder"]
    if not all(isinstance(embedder[key], str) for key in ("name", "revision")) or int(embedder["max_tokens"]) < 1:
        raise ValueError("its manifest does not say which embedder made it")
    if int(embedder["dimension"]) < 1 or int(manifest["chunks"]) < 0:
        raise ValueError("its manifest does not say how large it is")
    for entry in documents.values():
        if not all(isinstance(entry[key], str) for key in ("title", "lang", "sha256")) or entry["chunks"] < 0:
            raise ValueError("an entry of its manifest is no document")
    words = manifest.get("words", {})
    if words and not all(isinstance(words[key], str) for key in ("kind", "made_by")):
        raise ValueError("its manifest does not say how its words are found")
    if not all(isinstance(source["kind"], str) for source in manifest.get("sources", {}).values()):
        raise ValueError("its manifest does not say where documents come from")


def _check_places(inventory: Inventory) -> None:
    ends: dict[str, list[tuple[int, int]]] = {name: [] for name in inventory.parts}
    for source, entry in inventory.documents.items():
        place = inventory.places.get(source, Place("", 0, 0))
        if place.chunks != entry["chunks"]:
            raise ValueError("its table of documents does not fit together")
        if place.chunks:
            ends[place.part].append((place.first, place.first + place.chunks))
    for name, spans in ends.items():
        spans.sort()
        inside = [(0, 0), *spans, (int(inventory.parts[name]["rows"]),) * 2]
        if any(before[1] > after[0] for before, after in pairwise(inside)):
            raise ValueError("its table of documents does not fit together")
    if inventory.count != sum(place.chunks for place in inventory.places.values()):
        raise ValueError("its parts do not have the same number of chunks")
