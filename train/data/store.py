"""Encoded sequences on disk, so that the memory of a run does not grow with its data.

It knows nothing of files of text, of tokenizers or of training. The tokens lie in a file without a name, which the
system removes when the process ends, however it ends; 38 bytes a sequence stay in memory.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt

from slm.artifacts import is_disk_full
from slm.errors import ResourceError
from train.data.examples import Example
from train.data.masks import IGNORE, Encoded

# One sequence: where its tokens begin in the file (in tokens), how many, how many of them are learned, the numbers of
# its language and file, its line, and the hash of its content.
_ROW = np.dtype([(n, t) for n, t in zip(
    ("start", "length", "supervised", "lang", "file", "line", "key"), ("<i8", "<i4", "<i4", "<i2", "<i4", "<i8", "<u8"),
    strict=True,
)])  # fmt: skip
_PACK = struct.Struct("<qiihiqQ")
_Indices = Sequence[int] | npt.NDArray[Any]


class StoreWriter:
    """Takes sequences one by one; `store()` gives them back as a whole."""

    def __init__(self, near: Path) -> None:
        """near: a path on the file system that is to hold the tokens, whether it exists or not."""
        self._file = _nameless_file(near)
        self._rows = bytearray()
        self._tokens = 0
        self._langs: dict[str, int] = {}
        self._files: dict[Path, int] = {}

    def append(self, item: Encoded, key: int = 0) -> None:
        """Add a sequence; `key` is a 64-bit hash of its content. Raises ResourceError when the disk is full."""
        ids, labels = np.asarray(item.ids, dtype="<i4"), np.asarray(item.labels, dtype="<i4")
        try:
            # A token that is not learned is stored as its complement, which is negative.
            self._file.write(np.where(labels == IGNORE, ~ids, ids).tobytes())
        except OSError as error:
            raise _disk_full(error) from error
        lang = self._langs.setdefault(item.example.lang, len(self._langs))
        file = self._files.setdefault(item.example.file, len(self._files))
        self._rows += _PACK.pack(self._tokens, len(ids), item.supervised, lang, file, item.example.line, key)
        self._tokens += len(ids)

    def __len__(self) -> int:
        return len(self._rows) // _PACK.size

    def store(self) -> TokenStore:
        """All sequences, in the order in which they came."""
        try:
            self._file.flush()
        except OSError as error:
            raise _disk_full(error) from error
        rows = np.frombuffer(bytes(self._rows), dtype=_ROW)
        return TokenStore(self._file, rows, list(self._langs), list(self._files))


class TokenStore(Sequence[Encoded]):
    """A sequence of Encoded, read from disk one at a time; the text of their examples is not kept."""

    def __init__(self, file: IO[bytes], rows: npt.NDArray[Any], langs: list[str], files: list[Path]) -> None:
        self._file, self._rows, self._langs, self._files = file, rows, langs, files

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> TokenStore: ...
    def __getitem__(self, index: int | slice) -> Encoded | TokenStore:
        if isinstance(index, slice):
            return self.subset(np.arange(len(self))[index])
        row = self._rows[index]
        raw = os.pread(self._file.fileno(), 4 * int(row["length"]), 4 * int(row["start"]))
        stored = np.frombuffer(raw, dtype="<i4")
        ids = np.where(stored < 0, ~stored, stored)
        labels = np.where(stored < 0, IGNORE, stored)
        return Encoded(tuple(ids.tolist()), tuple(labels.tolist()), self.example(index))

    def example(self, index: int) -> Example:
        """Where a sequence comes from and its language, without its text."""
        row = self._rows[index]
        return Example(self._files[int(row["file"])], int(row["line"]), self._langs[int(row["lang"])])

    def examples(self) -> Iterator[Example]:
        """Where the sequences come from, without reading their tokens."""
        return map(self.example, range(len(self)))

    def subset(self, chosen: _Indices) -> TokenStore:
        """The sequences with these indices (or where a mask is true), over the same tokens on disk."""
        return TokenStore(self._file, self._rows[np.asarray(chosen)], self._langs, self._files)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each sequence."""
        return np.asarray(self._rows["length"])

    @property
    def supervised(self) -> npt.NDArray[np.int32]:
        """Learned tokens of each sequence."""
        return np.asarray(self._rows["supervised"])

    @property
    def supervised_total(self) -> int:
        """Learned tokens of all sequences."""
        return int(self._rows["supervised"].sum(dtype=np.int64))

    @property
    def languages(self) -> npt.NDArray[np.str_]:
        """The language code of each sequence."""
        return np.asarray(np.asarray(self._langs or [""])[self._rows["lang"]], dtype=np.str_)

    @property
    def keys(self) -> npt.NDArray[np.uint64]:
        """The content's hash of each sequence."""
        return np.asarray(self._rows["key"])

    def language_counts(self) -> dict[str, int]:
        """How many sequences each language has."""
        counts = np.bincount(self._rows["lang"], minlength=len(self._langs)).tolist()
        return {lang: count for lang, count in zip(self._langs, counts, strict=True) if count}

    def weights(self, by_file: dict[Path, float]) -> npt.NDArray[np.float64]:
        """The weight of each sequence, which is that of its file (1 for a file that is not named)."""
        table = np.asarray([by_file.get(file, 1.0) for file in self._files] or [1.0])
        return np.asarray(table[self._rows["file"]], dtype=np.float64)


def _nameless_file(near: Path) -> IO[bytes]:
    """A temporary file beside `near` where that folder can be written, since /tmp is memory on many systems."""
    folder = near.absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    return tempfile.TemporaryFile(dir=folder if os.access(folder, os.W_OK) else None)


def _disk_full(error: OSError) -> Exception:
    if is_disk_full(error):
        return ResourceError(
            "no disk space left for the encoded data (4 bytes a token)",
            hint="Free some space or choose another output with -o.",
        )
    return error
