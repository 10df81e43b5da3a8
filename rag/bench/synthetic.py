"""Pages of made-up words in two languages, and vectors in clusters: an index of any size without a model.

Words are as frequent as in real text (Zipf's law), because that is what a lexical index takes its time for.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rag.document import Document, Meta, Section
from rag.index.embed import Identity, Vectors

_DIMENSION, _CLUSTERS, _SPREAD = 384, 256, 0.6
_KNOWN_WORDS, _WORDS_A_SECTION = 20_000, 60
_CHARACTERS_A_TOKEN = 4
_SYLLABLES = tuple(first + vowel for first in "kstnhmyrwgzdbp" for vowel in "aiueo")
_KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろ"
_KANJI = "休暇申請会議室予約経費精算出張旅費勤務時間受付入館証契約書類保管期限社員研修制度設備点検"
SPACES, LABELS, STAFF = 10, 5, "user:staff"
"""So many spaces and labels there are; every tenth page may be seen by STAFF alone."""


class SyntheticEmbedder:
    """Vectors that depend on the text alone, of length 1: around one of some centres, as those of a model lie."""

    def __init__(self) -> None:
        self.identity = Identity("synthetic", "1", "", "", _DIMENSION, 512)
        self._centres = np.random.default_rng(0).standard_normal((_CLUSTERS, _DIMENSION)).astype(np.float32)

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self.passages(texts)

    def passages(self, texts: Sequence[str]) -> Vectors:
        seeds = [zlib.crc32(text.encode("utf-8")) for text in texts]
        noise = [np.random.default_rng(seed).standard_normal(_DIMENSION, dtype=np.float32) for seed in seeds]
        if not noise:
            return np.empty((0, _DIMENSION), dtype=np.float32)
        rows = self._centres[[seed % _CLUSTERS for seed in seeds]] + _SPREAD * np.stack(noise)
        made: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return made

    def count_tokens(self, text: str) -> int:
        return len(text) // _CHARACTERS_A_TOKEN


def made_up_pages(pages: int, chunks: int) -> Iterator[Document]:
    """So many pages with so many sections in all, each short enough to be one chunk; the same ones every time.

    They stand in spaces S0 to S9, with labels, dates and restrictions; every other one is in Japanese.
    """
    rng = np.random.default_rng(1)
    words = {"en": _words(rng, _SYLLABLES, (3, 5)), "ja": _words(rng, [*_KANJI, *_KANA], (2, 5))}
    for number in range(pages):
        lang = ("en", "ja")[number % 2]
        size = chunks * (number + 1) // pages - chunks * number // pages
        meta = Meta(
            id=f"synthetic:{number}", space=f"S{number % SPACES}", labels=(f"L{number % LABELS}",),
            modified=f"2024-{1 + number % 12:02}-{1 + number % 28:02}T00:00:00Z",
            restrictions=((STAFF,),) if number % 10 == 9 else (),
        )  # fmt: skip
        sections = tuple(Section((f"Section {part}",), _prose(rng, words[lang], lang)) for part in range(size))
        yield Document(f"Page {number}", f"page-{number}.md", lang, sections, meta)


def made_up_queries(count: int) -> list[str]:
    """Queries of a few of the pages' words, in both languages in turns."""
    rng = np.random.default_rng(1)
    words = {"en": _words(rng, _SYLLABLES, (3, 5)), "ja": _words(rng, [*_KANJI, *_KANA], (2, 5))}
    ask = np.random.default_rng(2)
    return [_prose(ask, words[lang], lang, 6) for lang in ("en", "ja") * ((count + 1) // 2)][:count]


def _words(rng: np.random.Generator, parts: Sequence[str], lengths: tuple[int, int]) -> npt.NDArray[np.str_]:
    sizes = rng.integers(lengths[0], lengths[1], _KNOWN_WORDS)
    return np.asarray(["".join(rng.choice(parts, size)) for size in sizes])


def _prose(rng: np.random.Generator, words: npt.NDArray[np.str_], lang: str, count: int = _WORDS_A_SECTION) -> str:
    # P(rank) ~ 1/rank, by the inverse of its distribution.
    ranks = np.exp(rng.random(count) * np.log(len(words))).astype(np.int64) - 1
    chosen = words[ranks]
    return (" ".join(chosen) + ".") if lang == "en" else ("".join(chosen) + "。")
