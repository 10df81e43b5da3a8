"""One generation of an index in memory: chunks, their vectors and their words (BM25), all parts as one whole.

The manifest has the SHA-256 of every file, so that damage is found before anything is made of it; every error about
damage names the command that makes the index anew. It knows nothing of ranking or of where documents come from.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar, overload

import numpy as np

from rag.index.chunk import Chunk
from rag.index.embed import Vectors
from rag.index.generation.arrays import Mask, Rows
from rag.index.generation.centres import Centres, LanguageSums, centres_of, summed
from rag.index.generation.dense import Lead
from rag.index.generation.facets import Facets
from rag.index.generation.inventory import OLDER, Inventory, Place, check_file, read_inventory
from rag.index.generation.older import OLDER_PART, open_older
from rag.index.generation.part import Part, open_part, part_files
from rag.index.lexical.bm25 import Bm25, open_bm25
from rag.index.lexical.pairs import terms_of
from rag.index.lexical.terms import kept_wording
from rag.index.names import CURRENT, command_anew, index_name, is_index, known_indexes
from slm.errors import DamagedFileError, MissingFileError, ResourceError, UnknownNameError, UnsupportedError
from slm.paths import composed

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, EOFError)
_T = TypeVar("_T")


class Chunks(Sequence[Chunk]):
    """The chunks of all parts that still count, by row; each is read from its part's file when it is asked for.

    part_of, local_of, document_of: (rows,) int32, the part of each row, its row there, and the number of its source.
    """

    def __init__(self, parts: Sequence[Part], sources: Sequence[str], part_of: Rows, local_of: Rows, document_of: Rows):
        self._parts, self._sources = parts, sources
        self._part_of, self._local_of, self._document_of = part_of, local_of, document_of

    def __len__(self) -> int:
        return len(self._part_of)

    @overload
    def __getitem__(self, row: int) -> Chunk: ...

    @overload
    def __getitem__(self, row: slice) -> list[Chunk]: ...

    def __getitem__(self, row: int | slice) -> Chunk | list[Chunk]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self._parts[int(self._part_of[row])].chunk(int(self._local_of[row]), self.source(row))

    def at(self, rows: Iterable[int]) -> dict[int, Chunk]:
        """Several chunks by their rows."""
        return {row: self[row] for row in rows}

    def source(self, row: int) -> str:
        """The source of a chunk, without reading the chunk."""
        return self._sources[int(self._document_of[row])]


@dataclass(frozen=True)
class Generation(Inventory):
    """One generation in memory. Rows number the chunks that count, from 0, in the order of the parts.

    loaded: the parts in order. rows_of: for each, (its chunks,) int32 the row of each of them, -1 for those that do not
    count any more; sums: for each, where its vectors in each language lie.
    """

    loaded: tuple[Part, ...]
    rows_of: tuple[Rows, ...]
    sums: tuple[LanguageSums, ...]
    chunks: Chunks
    lexical: Bm25
    facets: Facets

    def vector(self, row: int) -> Vectors:
        """The vector of a chunk, (dimension,)."""
        part = self.loaded[int(self.chunks._part_of[row])]
        vector: Vectors = np.array(part.dense.vectors[self.chunks._local_of[row]])
        return vector

    def vectors(self, rows: Sequence[int]) -> Vectors:
        """The vectors of some chunks, (rows, dimension)."""
        return np.stack([self.vector(row) for row in rows])

    @cached_property
    def centres(self) -> Centres:
        """Where the vectors of each language lie."""
        return centres_of(self.facets.every_language, self.sums, _dimension(self))

    def dense_top(
        self, vector: Vectors, count: int, allowed: Mask | None = None, ahead: Sequence[float] | None = None
    ) -> list[tuple[int, float]]:
        """The nearest (row, inner product) pairs of one query vector (dimension,), nearest first.

        allowed: (rows,) bool, the rows to rank; None: all of them. ahead: what is added for the rows of each of
        `facets.every_language`.
        """
        found: list[tuple[int, float]] = []
        table = None if ahead is None else np.asarray(ahead, dtype=np.float32)
        for part, rows, sums in zip(self.loaded, self.rows_of, self.sums, strict=True):
            counts: Mask | None = None
            if allowed is not None:
                counts = (rows >= 0) & allowed[rows]
            elif len(part) > int(sums.counts.sum()):
                counts = rows >= 0
            lead = None if table is None else Lead(sums.language_of, table)
            local, scores = part.dense.search(vector, count, counts, lead)
            found += zip(rows[local].tolist(), scores.tolist(), strict=True)
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:count]


def open_generation(path: Path, before: Generation | None = None) -> Generation:
    """Load the current generation, ready to be searched. before: an older one, whose parts are not read again.

    Raises UnknownNameError (no such index), DamagedFileError, UnsupportedError (a newer format) or ResourceError.
    """

    def load(inventory: Inventory) -> Generation:
        generation = assembled(inventory, load_parts(inventory, inventory.parts, before), before)
        for part in generation.loaded:
            part.dense.load()
        return generation

    return _opened(path, load)


def open_inventory(path: Path) -> Inventory:
    """What the current generation holds, without its chunks. Raises as `open_generation`."""
    return _opened(path, lambda inventory: inventory)


def _instead(path: Path) -> str:
    """What was meant by a path without an index, where the data folder has one of that name."""
    if composed(path.name) not in known_indexes():
        return ""
    return f"'{path}' is a path; the index of the data folder is meant by its name alone: {path.name}. "


def _opened(path: Path, use: Callable[[Inventory], _T]) -> _T:
    for attempt in range(3):
        folder = current_folder(path)
        if folder is None:
            raise UnknownNameError(
                "index",
                path.name,
                known_indexes(),
                hint=f"{_instead(path)}Looked in '{path}'. Make one with: slm rag add INDEX PATH...",
            )
        try:
            roots: set[str] = set()
            with told_as_damage(path, roots):
                return use(read_inventory(folder, path, roots))
        except DamagedFileError:
            # A writer may have replaced the generation between two reads.
            if attempt == 2 or current_folder(path) == folder:
                raise
        except MemoryError as error:
            raise ResourceError(f"not enough memory to load the index '{path}'") from error
    raise AssertionError("not reached")


def current_folder(path: Path) -> Path | None:
    """The folder of the generation in use; None where there is no index. Raises DamagedFileError."""
    try:
        name = (path / CURRENT).read_bytes().decode("utf-8", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        if is_index(path):
            raise damaged(path, f"'{path / CURRENT}' is missing") from None
        return None
    except OSError as error:
        raise damaged(path, f"'{path / CURRENT}' cannot be read: {error.strerror}") from error
    if not re.fullmatch(r"gen-[0-9]{1,18}", name):
        raise damaged(path, f"'{path / CURRENT}' does not name a generation")
    return path / name


def damaged(path: Path, detail: str, roots: Iterable[str] = ()) -> DamagedFileError:
    """An error that names what is damaged, and the command that makes the index anew (from its roots where known)."""
    return DamagedFileError(
        f"the index '{index_name(path)}' is damaged: {detail}",
        hint=f"Make it anew with: {command_anew(index_name(path), roots)}",
    )


@contextmanager
def told_as_damage(path: Path, roots: Iterable[str]) -> Iterator[None]:
    """Whatever comes of damage to an index becomes one error that names the command. Raises DamagedFileError."""
    try:
        yield
    except UnsupportedError:
        raise
    except (DamagedFileError, MissingFileError) as error:
        raise damaged(path, error.what, roots) from error
    except _BROKEN as error:
        raise damaged(path, str(error) or type(error).__name__, roots) from error


def load_parts(inventory: Inventory, names: Iterable[str], before: Generation | None = None) -> dict[str, Part]:
    """Parts of a generation by name, their contents checked; those that an older one has are not read again.

    Raises whatever comes of damage.
    """
    known = {}
    if before is not None:
        same = {name for name, told in inventory.parts.items() if before.parts.get(name) == told}
        known = {part.name: part for part in before.loaded if part.name in same}
    parts = {}
    for name in names:
        told, folder = inventory.parts[name], inventory.folder / name
        if name not in known:
            for file in part_files(told["kind"]):
                check_file(folder / file, told["files"][file])
        parts[name] = known.get(name) or open_part(folder, told["kind"])
        if len(parts[name]) != told["rows"] or parts[name].dense.vectors.shape[1:] != (_dimension(inventory),):
            raise ValueError("its parts do not have the same number of chunks")
    return parts


def assembled(inventory: Inventory, parts: Mapping[str, Part], before: Generation | None = None) -> Generation:
    """A generation of its parts, of which an older one may have some. Raises whatever comes of damage."""
    places = inventory.places
    if inventory.format <= OLDER:
        whole, places = open_older(inventory, terms_of)
        parts = {OLDER_PART: whole}
    number = {name: n for n, name in enumerate(parts)}
    held = sorted((number[place.part], place.first, place.chunks, source) for source, place in places.items())
    counts = np.asarray([count for _, _, count, _ in held], dtype=np.int64)
    document_of = np.repeat(np.arange(len(held), dtype=np.int32), counts)
    part_of = np.repeat(np.asarray([part for part, *_ in held], dtype=np.int32), counts)
    steps = np.arange(len(document_of)) - np.repeat(np.cumsum(counts) - counts, counts)
    firsts = np.repeat(np.asarray([first for _, first, *_ in held], dtype=np.int64), counts)
    local_of = (firsts + steps).astype(np.int32)
    rows_of = []
    for n, part in enumerate(parts.values()):
        rows = np.full(len(part), -1, dtype=np.int32)
        own = np.flatnonzero(part_of == n)
        rows[local_of[own]] = own
        rows_of.append(rows)
    loaded = tuple(parts.values())
    sources = [source for *_, source in held]
    terms = kept_wording(inventory.words).terms(index_name(inventory.folder.parent))
    words = open_bm25([(part.words, rows) for part, rows in zip(loaded, rows_of, strict=True)], len(document_of), terms)
    facets = Facets([inventory.documents[source] for source in sources], document_of)
    sums = _language_sums(loaded, rows_of, facets, before)
    return Generation(
        inventory.folder, inventory.manifest, inventory.documents, places, loaded, tuple(rows_of), sums,
        Chunks(loaded, sources, part_of, local_of, document_of), words, facets,
    )  # fmt: skip


def _language_sums(
    loaded: Sequence[Part], rows_of: Sequence[Rows], facets: Facets, before: Generation | None
) -> tuple[LanguageSums, ...]:
    """The sums of each part; those of a part that the older generation has as well are only brought up to date."""
    known = {id(part): sums for part, sums in zip(before.loaded, before.sums, strict=True)} if before else {}
    found = []
    for part, rows in zip(loaded, rows_of, strict=True):
        there = rows >= 0
        language_of = np.full(len(rows), -1, dtype=np.int16)
        language_of[there] = facets.language_of[rows[there]]
        found.append(summed(part.dense.vectors, facets.every_language, language_of, known.get(id(part))))
    return tuple(found)


def _dimension(inventory: Inventory) -> int:
    return int(inventory.manifest["embedder"]["dimension"])


def read_places(path: Path, inventory: Inventory, sources: Iterable[str]) -> tuple[dict[str, Part], dict[str, Place]]:
    """The parts that hold the chunks of these documents, and where those are. Raises DamagedFileError."""
    with told_as_damage(path, inventory.sources):
        if inventory.format <= OLDER:
            part, places = open_older(inventory, terms_of)
            return {OLDER_PART: part}, places
        names = {inventory.places[source].part for source in sources if source in inventory.places}
        return load_parts(inventory, sorted(names)), inventory.places


def size_of(folder: Path) -> int:
    """The bytes of a generation on disk."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
