"""BM25 over words of alphabetic scripts and character bigrams of Japanese and Chinese. It knows nothing of chunks.

Bigrams find two-character words without a dictionary. Scoring: Robertson & Zaragoza, "The Probabilistic
Relevance Framework" (2009), with the idf of Lucene, which is never negative.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rag.index.same.codes import codes_of
from rag.index.same.days import days_of
from rag.index.variants import comparable, searchable, years_of
from slm.errors import DamagedFileError

_K1, _B = 1.2, 0.75
_CJK = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u9fff\uf900-\ufaff々〆\U00020000-\U0003134f"
_RUNS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+(?:['’][^\W_{_CJK}]+)*")
# A character of the scripts that are indexed by pairs.
HAS_PAIRS = re.compile(rf"[{_CJK}]")
ARRAYS, TERMS = "lexical.npz", "terms.json"


def terms_of(text: str) -> list[str]:
    """The index terms of a text in one form of its characters (`rag.index.variants`) and in lower case, in order.

    A run of Japanese gives its overlapping character pairs, or its single character; "don't" is one word, and
    a possessive 's is dropped. A year or a day is a term of its own in Western reckoning, however it is written, and
    so is a code as a whole (`rag.index.same`).
    """
    western, plain = comparable(text), searchable(text)
    terms = [*(f"{year}年" for year in years_of(western)), *days_of(western), *codes_of(plain)]
    for run in _RUNS.findall(plain.lower()):
        if not HAS_PAIRS.match(run):
            terms.append(re.sub(r"['’]s$", "", run))
        elif len(run) == 1:
            terms.append(run)
        else:
            terms += [run[i : i + 2] for i in range(len(run) - 1)]
    return terms


@dataclass(frozen=True)
class Bm25:
    """An inverted index. Postings of term t are rows[starts[t]:starts[t+1]] with their weights.

    starts: (terms + 1,) int64; rows: (postings,) int32, the text's number; weights: (postings,) float32, the
    term's whole BM25 contribution to that text.
    """

    vocabulary: dict[str, int]
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    size: int

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """BM25 of every text for the query, (size,) float32; 0 where no term is shared."""
        scores = np.zeros(self.size, dtype=np.float32)
        for term in dict.fromkeys(self._expand(terms_of(query))):
            number = self.vocabulary.get(term)
            if number is not None:
                span = slice(self.starts[number], self.starts[number + 1])
                # A term has at most one posting a text, so that plain indexed addition is right.
                scores[self.rows[span]] += self.weights[span]
        return scores

    def _expand(self, terms: Iterable[str]) -> Iterable[str]:
        """A single Japanese character also stands for the pairs that hold it."""
        for term in terms:
            yield term
            if len(term) == 1 and HAS_PAIRS.match(term):
                yield from (known for known in self.vocabulary if len(known) == 2 and term in known)

    def top(self, query: str, count: int) -> list[tuple[int, float]]:
        """The best (text number, score) pairs with a score above 0, best first; ties in order of the texts."""
        scores = self.scores(query)
        order = np.argsort(-scores, kind="stable")[:count]
        return [(int(row), float(scores[row])) for row in order if scores[row] > 0]

    def save(self, folder: Path) -> None:
        np.savez(folder / ARRAYS, starts=self.starts, rows=self.rows, weights=self.weights, size=np.int64(self.size))
        (folder / TERMS).write_text(json.dumps(list(self.vocabulary), ensure_ascii=False), encoding="utf-8")


def build_bm25(texts: Sequence[str]) -> Bm25:
    """Index these texts, in their order."""
    vocabulary: dict[str, int] = {}
    numbers: list[int] = []
    rows: list[int] = []
    counts: list[int] = []
    lengths = np.zeros(len(texts), dtype=np.float64)
    for row, text in enumerate(texts):
        terms = terms_of(text)
        lengths[row] = len(terms)
        for term, count in Counter(terms).items():
            numbers.append(vocabulary.setdefault(term, len(vocabulary)))
            rows.append(row)
            counts.append(count)
    term_array = np.asarray(numbers, dtype=np.int64)
    order = np.argsort(term_array, kind="stable")
    frequency = np.bincount(term_array, minlength=len(vocabulary)) if numbers else np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(frequency)]).astype(np.int64)
    row_array = np.asarray(rows, dtype=np.int32)[order]
    count_array = np.asarray(counts, dtype=np.float64)[order]
    idf = np.log1p((len(texts) - frequency + 0.5) / (frequency + 0.5))
    average = lengths.mean() if len(texts) and lengths.any() else 1.0
    saturation = count_array + _K1 * (1 - _B + _B * lengths[row_array] / average)
    weights = (idf[term_array[order]] * count_array * (_K1 + 1) / saturation).astype(np.float32)
    return Bm25(vocabulary, starts, row_array, weights, len(texts))


def load_bm25(folder: Path) -> Bm25:
    """Read what `Bm25.save` wrote. Raises DamagedFileError."""
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            starts, rows, weights, size = arrays["starts"], arrays["rows"], arrays["weights"], int(arrays["size"])
        terms = json.loads((folder / TERMS).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DamagedFileError(f"the lexical index in '{folder}' is damaged: {error}") from error
    sound = (
        len(starts) == len(terms) + 1
        and len(rows) == len(weights) == int(starts[-1])
        and (len(rows) == 0 or 0 <= int(rows.min()) <= int(rows.max()) < size)
    )
    if not sound:
        raise DamagedFileError(f"the lexical index in '{folder}' does not fit together")
    return Bm25({term: number for number, term in enumerate(terms)}, starts, rows, weights, size)
