"""Vectors that were computed and are in no generation yet: a file of records that a broken-off run leaves behind.

The next run takes them from there instead of computing them again. A record is the SHA-256 of the text and its vector;
the last one may be torn and is then left out. It knows nothing of chunks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from rag.index.embedders.base import Identity, Vectors
from slm.artifacts import is_disk_full
from slm.errors import ResourceError

_KEY = 32


class VectorCache:
    """A file of vectors of one embedder; what another one left in it is dropped. Used in a `with` statement."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path, self._dimension = path, identity.dimension
        self._header = json.dumps(identity.as_dict(), ensure_ascii=False).encode() + b"\n"
        self._size = _KEY + 4 * identity.dimension
        self._known: dict[bytes, Vectors] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> VectorCache:
        try:
            held = self._path.read_bytes()
        except FileNotFoundError:
            held = b""
        if held.startswith(self._header):
            whole = (len(held) - len(self._header)) // self._size
            for number in range(whole):
                at = len(self._header) + number * self._size
                vector = np.frombuffer(held, dtype="<f4", count=self._dimension, offset=at + _KEY)
                self._known[held[at : at + _KEY]] = vector.astype(np.float32)
            self._file = self._path.open("r+b")
            self._file.truncate(len(self._header) + whole * self._size)
            self._file.seek(0, 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, text: str) -> Vectors | None:
        """The vector of a text, (dimension,), where it is known."""
        return self._known.get(_key(text))

    def add(self, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep the vectors of these texts, (texts, dimension). Raises ResourceError (a full disk)."""
        try:
            if self._file is None:
                self._file = self._path.open("wb")
                self._file.write(self._header)
            for text, vector in zip(texts, vectors, strict=True):
                self._file.write(_key(text) + vector.astype("<f4").tobytes())
            self._file.flush()
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise ResourceError(
                f"no disk space left while writing '{self._path}'",
                hint="Free some space and run it again: what was embedded is kept.",
            ) from error

    def discard(self) -> None:
        """Remove the file: its vectors are in a generation now."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._path.unlink(missing_ok=True)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
