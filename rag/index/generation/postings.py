"""An inverted index of one part: which of its texts hold a term, and how often. It knows nothing of scoring.

Counts are kept, not weights: what a term weighs depends on all parts, and changes with every page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rag.index.generation.arrays import Array, files_of, load_arrays, save_arrays

_KINDS: dict[str, tuple[type[np.generic], int]] = {
    "terms": (np.uint8, 1), "term_starts": (np.int64, 1), "starts": (np.int64, 1), "rows": (np.int32, 1),
    "counts": (np.uint16, 1), "lengths": (np.int32, 1), "pairs": (np.uint32, 2), "pair_terms": (np.int32, 1),
}  # fmt: skip
_MOST = int(np.iinfo(np.uint16).max)
FILES = tuple(files_of(_KINDS))


@dataclass(frozen=True)
class Postings:
    """Terms in order of their UTF-8 bytes; term t stands in the texts rows[starts[t]:starts[t+1]], ascending.

    terms: (bytes,) uint8, all terms one after another, term t at term_starts[t]; starts: (terms + 1,) int64;
    rows: (postings,) int32; counts: (postings,) uint16; lengths: (texts,) int32, terms of each text, repeated ones
    too; pairs: (n, 2) uint32, the code points of the terms of two characters, and pair_terms: (n,) int32, which those
    are.
    """

    terms: npt.NDArray[np.uint8]
    term_starts: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]
    counts: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.int32]
    pairs: npt.NDArray[np.uint32]
    pair_terms: npt.NDArray[np.int32]

    @property
    def texts(self) -> int:
        return len(self.lengths)

    @cached_property
    def _bytes(self) -> memoryview:
        return memoryview(self.terms)  # type: ignore[arg-type]  # an array is a buffer

    def __len__(self) -> int:
        return len(self.term_starts) - 1

    def term(self, number: int) -> bytes:
        """The UTF-8 bytes of a term."""
        return bytes(self._bytes[int(self.term_starts[number]) : int(self.term_starts[number + 1])])

    def span(self, term: str) -> slice | None:
        """Where the postings of a term are; None for one that no text holds."""
        wanted, low, high = term.encode("utf-8", "replace"), 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.term(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        if low == len(self) or self.term(low) != wanted:
            return None
        return slice(int(self.starts[low]), int(self.starts[low + 1]))

    def pairs_with(self, character: str) -> list[str]:
        """The terms of two characters that hold this one."""
        found = np.flatnonzero((self.pairs == ord(character)).any(axis=1))
        return [self.term(number).decode() for number in self.pair_terms[found]]

    def all_terms(self) -> Iterator[bytes]:
        whole, starts = bytes(self._bytes), self.term_starts.tolist()
        return (whole[start:end] for start, end in pairwise(starts))

    def save(self, folder: Path) -> None:
        save_arrays(folder, {name: getattr(self, name) for name in _KINDS})


def load_postings(folder: Path) -> Postings:
    """Map what `Postings.save` wrote. Raises OSError and ValueError."""
    postings = Postings(**load_arrays(folder, _KINDS))
    ends = (postings.term_starts, len(postings.terms)), (postings.starts, len(postings.rows))
    sound = (
        len(postings.starts) == len(postings.term_starts) > 0
        and all(array[0] == 0 and array[-1] == end and np.all(np.diff(array) >= 0) for array, end in ends)
        and len(postings.counts) == len(postings.rows)
        and (not len(postings.rows) or 0 <= int(postings.rows.min()) <= int(postings.rows.max()) < postings.texts)
        and postings.pairs.shape == (len(postings.pair_terms), 2)
        and (not len(postings.pair_terms) or 0 <= int(postings.pair_terms.max()) < len(postings))
    )
    if not sound:
        raise ValueError(f"the lexical index in '{folder}' does not fit together")
    return postings


def build_postings(texts: Iterable[Sequence[str]]) -> Postings:
    """The postings of texts, each given as its terms in order."""
    vocabulary: dict[str, int] = {}
    numbers: list[int] = []
    rows: list[int] = []
    counts: list[int] = []
    lengths: list[int] = []
    for row, terms in enumerate(texts):
        lengths.append(len(terms))
        for term, count in Counter(terms).items():
            numbers.append(vocabulary.setdefault(term, len(vocabulary)))
            rows.append(row)
            counts.append(min(count, _MOST))
    encoded = [term.encode("utf-8", "replace") for term in vocabulary]
    return _ordered(encoded, _integers(numbers), _integers(rows), _integers(counts), _integers(lengths))


def merged_postings(parts: Sequence[tuple[Postings, npt.NDArray[np.int64]]]) -> Postings:
    """One index of several: of each the texts that it keeps, by the row of each text in the whole (-1: left out).

    The rows of a later part must be above those of an earlier one.
    """
    vocabulary: dict[bytes, int] = {}
    columns: list[tuple[Array, Array, Array]] = []
    size = sum(int((kept >= 0).sum()) for _, kept in parts)
    lengths = np.zeros(size, dtype=np.int64)
    for postings, kept in parts:
        lengths[kept[kept >= 0]] = postings.lengths[kept >= 0]
        renumbered = _integers([vocabulary.setdefault(term, len(vocabulary)) for term in postings.all_terms()])
        rows = kept[postings.rows]
        stays = rows >= 0
        numbers = np.repeat(renumbered, np.diff(postings.starts))
        columns.append((numbers[stays], rows[stays], postings.counts[stays]))
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    used, numbers = np.unique(joined[0], return_inverse=True)
    terms = list(vocabulary)
    return _ordered([terms[number] for number in used.tolist()], numbers, joined[1], joined[2], lengths)


def _integers(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)


def _ordered(encoded: Sequence[bytes], numbers: Array, rows: Array, counts: Array, lengths: Array) -> Postings:
    """Postings in any order of terms, each term's rows ascending, as Postings has them."""
    order = sorted(range(len(encoded)), key=encoded.__getitem__)
    place = np.empty(len(encoded), dtype=np.int64)
    place[order] = np.arange(len(encoded))
    numbers = place[numbers] if len(numbers) else numbers
    by_term = np.argsort(numbers, kind="stable")
    terms = [encoded[number] for number in order]
    pairs = [(number, text) for number, text in enumerate(terms) if 2 <= len(text) <= 8 and len(text.decode()) == 2]
    points = [[ord(character) for character in text.decode()] for _, text in pairs]
    return Postings(
        np.frombuffer(b"".join(terms), dtype=np.uint8),
        np.concatenate([[0], np.cumsum(_integers([len(term) for term in terms]))]).astype(np.int64),
        np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=len(terms)))]).astype(np.int64),
        rows[by_term].astype(np.int32),
        counts[by_term].astype(np.uint16),
        lengths.astype(np.int32),
        np.asarray(points, dtype=np.uint32).reshape(-1, 2),
        np.asarray([number for number, _ in pairs], dtype=np.int32),
    )
