"""One generation of an index on disk: chunks, their vectors (FAISS) and their words (BM25), and a manifest.

The manifest has the SHA-256 of every file, so that damage is found before anything is made of it; every error about
damage names the command that makes the index anew. It knows nothing of ranking or of where documents come from.
"""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from rag.index.chunk import Chunk, context_line
from rag.index.embed import Vectors
from rag.index.lexical import ARRAYS, TERMS, Bm25, build_bm25, load_bm25
from rag.index.names import CURRENT, index_name, is_index, known_indexes
from slm.artifacts import MANIFEST, new_folder, read_manifest, sha256_file
from slm.errors import DamagedFileError, MissingFileError, ResourceError, UnknownNameError, UnsupportedError

CHUNKS, VECTORS = "chunks.jsonl", "vectors.faiss"
KIND = "index generation"
# Format 1 had no checksums, and words in the lexical index as they were written: it is read, and its words made anew.
# Chunks of format 2 had no context line of their own: their words are those of the whole one. Words of format 3 knew
# neither days nor codes, and long vowels as they were written: they are made anew too.
FORMAT = 4
_FILES = (CHUNKS, VECTORS, ARRAYS, TERMS)
_EXACT = "IDMap2,Flat"
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, EOFError)


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
        """By source: title, lang, sha256 of document and of text alone, roots, number of chunks, any meta."""
        documents: dict[str, dict[str, Any]] = self.manifest["documents"]
        return documents

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Where documents come from, by their roots: {"kind": "files"}, or "confluence" with its url and space.

        An index that was written before they were kept has those of its documents.
        """
        kept: dict[str, dict[str, Any]] | None = self.manifest.get("sources")
        if kept is None:
            kept = {root: {"kind": "files"} for entry in self.documents.values() for root in entry.get("roots", ())}
        return kept

    def dense_top(self, vector: Vectors, count: int) -> list[tuple[int, float]]:
        """The nearest (row, inner product) pairs of one query vector (dimension,), nearest first."""
        if not self.chunks:
            return []
        scores, found = self.vectors.search(vector.reshape(1, -1), min(count, len(self.chunks)))
        row_of = {id_: row for row, id_ in enumerate(self.ids)}
        return [(row_of[int(i)], float(s)) for i, s in zip(found[0], scores[0], strict=True) if int(i) in row_of]


def open_generation(path: Path) -> Generation:
    """Load the current generation.

    Raises UnknownNameError (no such index), DamagedFileError, UnsupportedError (a newer format) or ResourceError.
    """
    for attempt in range(3):
        folder = current_folder(path)
        if folder is None:
            raise UnknownNameError(
                "index",
                path.name,
                known_indexes(),
                hint=f"Looked in '{path}'. Make one with: slm rag add INDEX PATH...",
            )
        try:
            return _load(path, folder)
        except (MissingFileError, DamagedFileError):
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
    files = sorted({root for root in roots if not root.startswith(("http://", "https://"))})
    paths = " ".join(shlex.quote(root) for root in files) or "PATH..."
    name = shlex.quote(index_name(path))
    command = f"slm rag add {name} {paths} --fresh"
    for root in sorted(set(roots) - set(files)):
        url, _, space = root.rpartition("#")
        command += f" && slm rag sync {name} --confluence-url {shlex.quote(url)} --space {shlex.quote(space)}"
    return DamagedFileError(
        f"the index '{index_name(path)}' is damaged: {detail}", hint=f"Make it anew with: {command}"
    )


def _load(path: Path, folder: Path) -> Generation:
    import faiss

    roots: set[str] = set()
    try:
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
        roots = {root for entry in manifest["documents"].values() for root in entry.get("roots", ())}
        for name in _FILES if version > 1 else ():
            if sha256_file(folder / name) != manifest["files"][name]:
                raise ValueError(f"'{folder / name}' is not what was written")
        chunks, ids = [], []
        with (folder / CHUNKS).open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                ids.append(int(row.pop("id")))
                chunks.append(_chunk(row))
        vectors = faiss.read_index(str(folder / VECTORS))
        lexical = load_bm25(folder) if version > 3 else build_bm25([chunk.indexed_text for chunk in chunks])
        counts = (len(chunks), int(vectors.ntotal), lexical.size, int(manifest["chunks"]))
        if len(set(counts)) != 1 or vectors.d != int(manifest["embedder"]["dimension"]):
            raise ValueError("its parts do not have the same number of chunks")
        _check_table(manifest, chunks)
    except UnsupportedError:
        raise
    except (DamagedFileError, MissingFileError) as error:
        raise damaged(path, error.what, roots) from error
    except _BROKEN as error:
        raise damaged(path, str(error) or type(error).__name__, roots) from error
    return Generation(folder, manifest, tuple(chunks), tuple(ids), vectors, lexical)


def _chunk(row: dict[str, Any]) -> Chunk:
    headings = tuple(row["headings"])
    row.setdefault("context", context_line(row["title"], headings))  # format 2 and before
    chunk = Chunk(**{**row, "headings": headings})
    texts = [getattr(chunk, field.name) for field in fields(Chunk) if field.name not in ("headings", "ordinal")]
    if not all(isinstance(text, str) for text in (*texts, *chunk.headings)):
        raise TypeError("a chunk holds something that is not text")
    return chunk


def _check_table(manifest: dict[str, Any], chunks: Sequence[Chunk]) -> None:
    """Raise ValueError, KeyError or TypeError unless the manifest has all that a reader or writer takes from it."""
    embedder, table = manifest["embedder"], manifest["documents"]
    if not all(isinstance(embedder[key], str) for key in ("name", "revision")) or int(embedder["max_tokens"]) < 1:
        raise ValueError("its manifest does not say which embedder made it")
    if int(manifest["next_id"]) < 0 or any(chunk.source not in table for chunk in chunks):
        raise ValueError("its manifest does not list all documents")
    for entry in table.values():
        if not all(isinstance(entry[key], str) for key in ("title", "lang", "sha256")) or entry["chunks"] < 0:
            raise ValueError("an entry of its manifest is no document")
    if not all(isinstance(source["kind"], str) for source in manifest.get("sources", {}).values()):
        raise ValueError("its manifest does not say where documents come from")


def write_generation(
    folder: Path,
    rows: Sequence[tuple[int, Chunk]],
    kept: tuple[Sequence[int], Vectors],
    added: tuple[Sequence[int], Vectors],
    manifest: dict[str, Any],
) -> None:
    """Write a generation, whole or not at all: rows of (id, chunk), and (ids, vectors) of the kept and the added ones.

    manifest: what the generation's own gets besides kind, format and checksums. Raises ResourceError (a full disk).
    """
    import faiss
    import numpy as np

    store = faiss.index_factory(int(manifest["embedder"]["dimension"]), _EXACT, faiss.METRIC_INNER_PRODUCT)
    for ids, vectors in (kept, added):
        if len(ids):
            store.add_with_ids(vectors, np.asarray(ids, dtype=np.int64))
    with new_folder(folder, KIND) as (temporary, own):
        with (temporary / CHUNKS).open("w", encoding="utf-8") as file:
            for id_, chunk in rows:
                file.write(json.dumps({"id": id_, **asdict(chunk)}, ensure_ascii=False) + "\n")
        with (temporary / VECTORS).open("wb") as binary:
            write_vectors(store, binary)
        build_bm25([chunk.indexed_text for _, chunk in rows]).save(temporary)
        own.update(format=FORMAT, files={name: sha256_file(temporary / name) for name in _FILES}, **manifest)


def write_vectors(store: Any, file: IO[bytes]) -> None:
    """Write a FAISS index. Python does the writing: FAISS itself closes a file on a full disk without a word."""
    import faiss

    writer: Any = faiss.PyCallbackIOWriter  # type: ignore[attr-defined]  # its stubs are short of it
    faiss.write_index(store, writer(file.write))
    file.flush()
