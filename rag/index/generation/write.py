"""Writes the next generation: what stays is linked to, what is new or worn is written. Whole or not at all.

A hard link costs nothing and keeps a generation one folder that holds all it needs, so that removing another one can
take nothing from it. Where a file system has no links the files are copied.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag.index.chunk import Chunk
from rag.index.generation.arrays import Matrix
from rag.index.generation.inventory import DOCUMENTS, FORMAT, KIND, Inventory, Place, described, write_table
from rag.index.generation.merging import groups_of, is_worn
from rag.index.generation.part import Part, joined_lines, line_of, new_part, part_files, write_part
from rag.index.generation.postings import Postings, build_postings, merged_postings
from slm.artifacts import new_folder

_NEW = ""


@dataclass(frozen=True)
class Addition:
    """Chunks that come into an index, those of a document together, with their vectors (chunks, dimension)."""

    chunks: Sequence[Chunk]
    vectors: Matrix


@dataclass(frozen=True)
class Next:
    """What the next generation holds. documents: its table; kept: where the chunks that stay are in `base`.

    manifest: what its own gets besides kind, format, parts and number of chunks.
    """

    documents: dict[str, dict[str, Any]]
    kept: Mapping[str, Place]
    added: Addition
    manifest: Mapping[str, Any]


def write_generation(
    folder: Path,
    base: Inventory | None,
    following: Next,
    open_parts: Callable[[Sequence[str]], Mapping[str, Part]],
    terms: Callable[[str], Sequence[str]],
) -> int:
    """Write a generation into `folder`; its number of chunks.

    open_parts gives parts of the base by their names; terms: the index terms of a text. Raises ResourceError (a full
    disk), and what open_parts raises.
    """
    told = dict(base.parts) if base else {}
    kept = sorted((place, source) for source, place in following.kept.items() if place.chunks)
    counts: dict[str, int] = {}
    for place, _ in kept:
        counts[place.part] = counts.get(place.part, 0) + place.chunks
    # An index of an earlier format is one part that the manifest does not name.
    rows = {name: int(told[name]["rows"]) if name in told else counts[name] for name in {**told, **counts}}
    groups = groups_of({name: (rows[name], counts.get(name, 0)) for name in rows}, len(following.added.chunks))
    stay = [names[0] for names in groups if names[0] in told and len(names) == 1
            and not is_worn(rows[names[0]], counts[names[0]])]  # fmt: skip
    opened = dict(open_parts([name for names in groups for name in names if name not in (_NEW, *stay)]))
    if following.added.chunks:
        opened[_NEW] = _part_of(following.added, terms)
    places = {source: place for place, source in kept if place.part in stay}
    number = int(base.manifest.get("next_part", 1)) if base else 1
    parts: dict[str, Any] = {}
    with new_folder(folder, KIND) as (temporary, own):
        for names in groups:
            if base is not None and names[0] in stay:
                _link(base.folder / names[0], temporary / names[0], part_files(told[names[0]]["kind"]))
                parts[names[0]] = told[names[0]]
                continue
            name, number = f"part-{number}", number + 1
            within = {part: [(source, place) for place, source in kept if place.part == part] for part in names}
            if _NEW in within:
                within[_NEW] = _places(following.added.chunks)
            part, moved = _merged([(opened[each], within[each]) for each in names], name)
            kind = write_part(temporary / name, part)
            files = {file: described(temporary / name / file) for file in part_files(kind)}
            parts[name] = {"rows": len(part), "kind": kind, "files": files}
            places.update(moved)
        for source, entry in following.documents.items():
            entry["chunks"] = places[source].chunks if source in places else 0
        write_table(temporary / DOCUMENTS, following.documents, places)
        total = sum(place.chunks for place in places.values())
        own.update(
            format=FORMAT, **following.manifest, chunks=total, next_part=number, parts=parts,
            files={DOCUMENTS: described(temporary / DOCUMENTS)},
        )  # fmt: skip
    return total


def _part_of(added: Addition, terms: Callable[[str], Sequence[str]]) -> Part:
    words = build_postings(terms(chunk.indexed_text) for chunk in added.chunks)
    return new_part(joined_lines(map(line_of, added.chunks)), added.vectors, words)


def _places(chunks: Sequence[Chunk]) -> list[tuple[str, Place]]:
    """Where each document's chunks are among these, in order."""
    places: dict[str, Place] = {}
    for row, chunk in enumerate(chunks):
        place = places.get(chunk.source, Place(_NEW, row, 0))
        places[chunk.source] = place._replace(chunks=place.chunks + 1)
    return list(places.items())


def _merged(pieces: Sequence[tuple[Part, Sequence[tuple[str, Place]]]], name: str) -> tuple[Part, dict[str, Place]]:
    """One part of those chunks of several that count, and where each document is in it."""
    moved: dict[str, Place] = {}
    lines: list[bytes] = []
    vectors: list[Matrix] = []
    words: list[tuple[Postings, Any]] = []
    for part, held in pieces:
        rows = [row for _, place in held for row in range(place.first, place.first + place.chunks)]
        kept = np.full(len(part), -1, dtype=np.int64)
        kept[rows] = np.arange(len(lines), len(lines) + len(rows))
        at = len(lines)
        for source, place in held:
            moved[source] = Place(name, at, place.chunks)
            at += place.chunks
        lines += [part.lines[row] for row in rows]
        vectors.append(part.dense.vectors[rows])
        words.append((part.words, kept))
    if len(pieces) == 1 and len(lines) == len(pieces[0][0]):
        return pieces[0][0], moved
    return new_part(joined_lines(lines), np.concatenate(vectors), merged_postings(words)), moved


def _link(source: Path, target: Path, files: Sequence[str]) -> None:
    target.mkdir()
    for file in files:
        try:
            os.link(source / file, target / file)
        except OSError:  # a file system without links, or with too many of this one
            shutil.copyfile(source / file, target / file)
