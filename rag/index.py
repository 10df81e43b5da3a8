"""An index on disk: chunks, their vectors (FAISS) and their words (BM25), in generations.

INDEX/CURRENT names the generation folder in use. A change writes a new generation beside it and then replaces
CURRENT in one step, so that a crash leaves the old generation in use. It knows nothing of ranking or prompts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rag.chunk import Chunk, chunk_document, context_line, indexed_text
from rag.document import Document
from rag.embed import Embedder, Vectors
from rag.lexical import Bm25, build_bm25, load_bm25
from slm.artifacts import new_file, new_folder, read_manifest
from slm.errors import DamagedFileError, InputError, MismatchError, MissingFileError, ResourceError, UnknownNameError
from slm.paths import home

CURRENT, CHUNKS, VECTORS = "CURRENT", "chunks.jsonl", "vectors.faiss"
KIND = "index generation"
# Chunks are short so that three of them fit into a small model's prompt beside the question.
CHUNK_TOKENS = 240
_BATCH, _LOCK = 16, ".lock"
_EXACT = "IDMap2,Flat"


@dataclass(frozen=True)
class Generation:
    """One generation in memory. Row r of the chunks has the FAISS id ids[r] and the row r in the lexical index."""

    folder: Path
    manifest: dict[str, Any]
    chunks: tuple[Chunk, ...]
    ids: tuple[int, ...]
    vectors: Any
    lexical: Bm25

    @property
    def documents(self) -> dict[str, dict[str, Any]]:
        """By source: title, lang, sha256 of the content, number of chunks."""
        documents: dict[str, dict[str, Any]] = self.manifest["documents"]
        return documents

    def dense_top(self, vector: Vectors, count: int) -> list[tuple[int, float]]:
        """The nearest (row, inner product) pairs of one query vector (dimension,), nearest first."""
        if not self.chunks:
            return []
        scores, found = self.vectors.search(vector.reshape(1, -1), min(count, len(self.chunks)))
        row_of = {id_: row for row, id_ in enumerate(self.ids)}
        return [(row_of[int(i)], float(s)) for i, s in zip(found[0], scores[0], strict=True) if int(i) in row_of]


@dataclass(frozen=True)
class Change:
    """What an update did, in numbers of documents, and the chunks now in the index."""

    added: int
    replaced: int
    unchanged: int
    chunks: int


def index_path(index: str) -> Path:
    """The folder of an index: a path when it has a separator or exists, else a name under the data folder."""
    path = Path(index)
    if os.sep in index or "/" in index or path.exists():
        return path
    if not re.fullmatch(r"[\w][\w.-]*", index):
        raise InputError(f"'{index}' is no name for an index", hint="Use letters, digits, '-', '_' and '.'.")
    return home() / "indexes" / index


def known_indexes() -> list[str]:
    """The names of the indexes under the data folder."""
    folder = home() / "indexes"
    return sorted(path.parent.name for path in folder.glob(f"*/{CURRENT}")) if folder.is_dir() else []


def open_generation(path: Path) -> Generation:
    """Load the current generation. Raises UnknownNameError (no such index) or DamagedFileError."""
    for attempt in range(3):
        folder = _current_folder(path)
        if folder is None:
            raise UnknownNameError("index", path.name, known_indexes(), hint="Make one with: slm rag add INDEX PATH...")
        try:
            return _load(folder)
        except MissingFileError:
            # A writer may have replaced the generation between the two reads.
            if attempt == 2 or _current_folder(path) == folder:
                raise
    raise AssertionError("not reached")


def _current_folder(path: Path) -> Path | None:
    try:
        name = (path / CURRENT).read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not re.fullmatch(r"gen-\d+", name):
        raise DamagedFileError(f"'{path / CURRENT}' does not name a generation", found=name[:40])
    return path / name


def _load(folder: Path) -> Generation:
    import faiss

    manifest = read_manifest(folder)
    damaged = f"the index generation '{folder}' is damaged"
    hint = "Make the index again with: slm rag add INDEX PATH..."
    try:
        chunks, ids = [], []
        with (folder / CHUNKS).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                ids.append(int(row.pop("id")))
                chunks.append(Chunk(**{**row, "headings": tuple(row["headings"])}))
        vectors = faiss.read_index(str(folder / VECTORS))
        lexical = load_bm25(folder)
        counts = (len(chunks), int(vectors.ntotal), lexical.size, int(manifest["chunks"]))
        dimension = int(manifest["embedder"]["dimension"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise DamagedFileError(f"{damaged}: {error}", hint=hint) from error
    if len(set(counts)) != 1 or vectors.d != dimension:
        raise DamagedFileError(f"{damaged}: its parts do not have the same number of chunks", hint=hint)
    return Generation(folder, manifest, tuple(chunks), tuple(ids), vectors, lexical)


def check_embedder(generation: Generation, embedder: Embedder) -> None:
    """Raise MismatchError unless the embedder is the one the index was made with."""
    made_with, given = generation.manifest["embedder"], embedder.identity.as_dict()
    if made_with != given:
        differs = [key for key in given if made_with.get(key) != given[key]]
        raise MismatchError(
            f"the index was made with another embedder ({', '.join(differs)})",
            found=f"{made_with.get('name')} [{made_with.get('revision')}], not {given['name']} [{given['revision']}]",
            hint="Make a new index, or use the embedder it was made with.",
        )


def _digest(document: Document) -> str:
    return hashlib.sha256(json.dumps(asdict(document), ensure_ascii=False).encode()).hexdigest()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the right to change the index; the system gives it back when a process dies. Raises ResourceError."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / _LOCK).open("a+b") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(
                f"another process is changing the index '{path}'", hint="Wait until it is done and run this again."
            ) from error
        yield


def add_documents(
    path: Path,
    documents: Sequence[Document],
    embedder: Embedder,
    on_chunks: Callable[[int, int], None] = lambda done, total: None,
) -> Change:
    """Put documents into an index, making it when it is not there; one with a known source replaces the old one.

    on_chunks is told (chunks embedded, chunks to embed). Raises InputError (no documents), MismatchError (another
    embedder) or ResourceError (another process is changing the index).
    """
    if not documents:
        raise InputError("there are no documents to add")
    if not (path / CURRENT).exists():
        _check_new(path)
    with _exclusive(path):
        return _add(path, documents, embedder, on_chunks)


def _add(
    path: Path, documents: Sequence[Document], embedder: Embedder, on_chunks: Callable[[int, int], None]
) -> Change:
    base = open_generation(path) if (path / CURRENT).exists() else None
    if base is not None:
        check_embedder(base, embedder)
    known = base.documents if base else {}
    incoming = {document.source: document for document in documents}
    digests = {source: _digest(document) for source, document in incoming.items()}
    changed = {s: d for s, d in incoming.items() if s not in known or known[s]["sha256"] != digests[s]}
    replaced = sum(source in known for source in changed)
    if not changed and base is not None:
        return Change(0, 0, len(incoming), len(base.chunks))
    limit = min(CHUNK_TOKENS, embedder.identity.max_tokens)
    fresh = [chunk for d in changed.values() for chunk in chunk_document(d, limit, embedder.count_tokens)]
    texts = [indexed_text(chunk, limit, embedder.count_tokens) for chunk in fresh]
    vectors = np.empty((len(fresh), embedder.identity.dimension), dtype=np.float32)
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        vectors[start : start + len(batch)] = embedder.passages(batch)
        on_chunks(start + len(batch), len(texts))
    table = {source: dict(entry) for source, entry in known.items()}
    for source, document in changed.items():
        table[source] = {"title": document.title, "lang": document.lang, "sha256": digests[source]}
    identity = embedder.identity.as_dict()
    chunks = _write(path, base, drop=set(changed), fresh=fresh, vectors=vectors, table=table, embedder=identity)
    return Change(len(changed) - replaced, replaced, len(incoming) - len(changed), chunks)


def remove_documents(path: Path, names: Sequence[str]) -> list[str]:
    """Remove documents by source or by the end of it (`ja/03-leave.md`); the removed sources.

    Raises UnknownNameError when a name fits nothing, in which case nothing is removed.
    """
    open_generation(path)
    with _exclusive(path):
        return _remove(path, names)


def _remove(path: Path, names: Sequence[str]) -> list[str]:
    base = open_generation(path)
    gone: set[str] = set()
    for name in names:
        fitting = [source for source in base.documents if source_matches(source, name)]
        if not fitting:
            raise UnknownNameError("document", name, sorted(base.documents)[:10], hint="See: slm rag status INDEX")
        gone.update(fitting)
    table = {source: entry for source, entry in base.documents.items() if source not in gone}
    empty = np.empty((0, int(base.manifest["embedder"]["dimension"])), dtype=np.float32)
    _write(path, base, drop=gone, fresh=[], vectors=empty, table=table, embedder=base.manifest["embedder"])
    return sorted(gone)


def source_matches(source: str, name: str) -> bool:
    """Whether a document's source is `name` or ends with it at a path boundary."""
    name = name.removeprefix("./")
    return source == name or source.endswith("/" + name.lstrip("/"))


def _check_new(path: Path) -> None:
    if path.is_file():
        raise InputError(f"'{path}' is a file; an index is a folder")
    if path.is_dir() and any(not p.name.startswith((".", "gen-")) for p in path.iterdir()):
        raise InputError(f"'{path}' already holds something that is not an index", hint="Choose another name.")


def _write(
    path: Path,
    base: Generation | None,
    *,
    drop: set[str],
    fresh: Sequence[Chunk],
    vectors: Vectors,
    table: dict[str, dict[str, Any]],
    embedder: dict[str, Any],
) -> int:
    """Write the next generation (the old one without the dropped sources, and the fresh chunks) and make it current.

    Returns its number of chunks.
    """
    import faiss

    kept = [(i, c) for i, c in zip(base.ids, base.chunks, strict=True) if c.source not in drop] if base else []
    first = int(base.manifest["next_id"]) if base else 0
    rows = [*kept, *enumerate(fresh, start=first)]
    store = faiss.index_factory(int(embedder["dimension"]), _EXACT, faiss.METRIC_INNER_PRODUCT)
    if base is not None:
        old: npt.NDArray[np.int64] = np.asarray([i for i, _ in kept], dtype=np.int64)
        if len(old):
            store.add_with_ids(np.stack([base.vectors.reconstruct(int(i)) for i in old]), old)
    if len(fresh):
        store.add_with_ids(vectors, np.arange(first, first + len(fresh), dtype=np.int64))
    for entry in table.values():
        entry["chunks"] = 0
    for _, chunk in rows:
        table[chunk.source]["chunks"] += 1
    number = int(base.folder.name.removeprefix("gen-")) + 1 if base else 1
    folder = path / f"gen-{number}"
    limit = min(CHUNK_TOKENS, int(embedder["max_tokens"]))
    with new_folder(folder, KIND) as (temporary, manifest):
        with (temporary / CHUNKS).open("w", encoding="utf-8") as file:
            for id_, chunk in rows:
                file.write(json.dumps({"id": id_, **asdict(chunk)}, ensure_ascii=False) + "\n")
        faiss.write_index(store, str(temporary / VECTORS))
        build_bm25([f"{context_line(c.title, c.headings)}\n{c.text}" for _, c in rows]).save(temporary)
        manifest.update(
            embedder=embedder, chunk_tokens=limit, chunks=len(rows), next_id=first + len(fresh), documents=table
        )
    with new_file(path / CURRENT) as pointer:
        pointer.write_text(folder.name + "\n", encoding="utf-8")
    for other in path.glob("gen-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return len(rows)
