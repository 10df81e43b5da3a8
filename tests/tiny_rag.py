"""A weak real embedder, pages and passages made by hand, and a small handbook in two languages."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.document import Document, Section
from rag.index.embed import Identity
from rag.index.generation.postings import build_postings
from rag.index.lexical.bm25 import Bm25, open_bm25
from rag.index.lexical.pairs import terms_of
from rag.index.lexical.terms import Terms
from rag.sources.files import read_each
from rag.sources.reader import Read
from slm.errors import DamagedFileError
from slm.joints import Passage


class PairEmbedder:
    """A real, weak embedder: counts of hashed character pairs, of length 1. It needs no model."""

    def __init__(self, name: str = "pairs", dimension: int = 64) -> None:
        self.identity = Identity(name, "1", "", "", dimension, 512)
        self.embedded: list[str] = []

    def queries(self, texts: Sequence[str]) -> Any:
        vectors = np.full((len(texts), self.identity.dimension), 1e-6, dtype=np.float32)
        for row, text in enumerate(texts):
            for i in range(len(text) - 1):
                vectors[row, zlib.crc32(text[i : i + 2].lower().encode()) % self.identity.dimension] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def passages(self, texts: Sequence[str]) -> Any:
        self.embedded += texts
        return self.queries(texts)

    def count_tokens(self, text: str) -> int:
        return len(text)


def read_noted(path: Path) -> Read:
    """The first document of a file, with what is not certain about it. Raises as `read_each`, and for no text."""
    for read in read_each(path):
        if isinstance(read, Read):
            return read
    raise DamagedFileError("it holds no visible text")


def build_bm25(texts: Sequence[str], terms: Terms = terms_of) -> Bm25:
    """The lexical leg over these texts, in their order."""
    postings = build_postings(terms(text) for text in texts)
    return open_bm25([(postings, np.arange(len(texts), dtype=np.int32))], len(texts), terms)


def page(source: str, text: str, title: str = "Page", lang: str = "en") -> Document:
    return Document(title, source, lang, (Section(("Heading",), text),))


def passage(text: str, title: str = "Leave", heading: str = "Length", source: str = "en/leave.md") -> Passage:
    return Passage(title, heading, text, source, 1.0)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    """A small parallel handbook in two languages, as files."""
    pages = {
        "en/leave.md": "# Paid leave\n\nEmployees get twenty days off each year.\n\n## Carrying over\n\nUp to five "
        "unused days are carried over to the next year.\n",
        "en/visitors.md": "# Visitors\n\nGuests sign in at the reception and wear a badge.\n",
        "en/laptops.md": "# Lost laptops\n\nReport a lost or stolen computer to the IT desk at once.\n",
        "ja/leave.md": "# 有給休暇\n\n社員は毎年20日の休暇を取れます。\n\n## 繰り越し\n\n使わなかった休暇は5日まで"
        "翌年に繰り越せます。\n",
        "ja/visitors.md": "# 来客対応\n\nお客様は受付で記名し、入館証を着けてください。\n",
        "ja/laptops.md": "# パソコンの紛失\n\nパソコンをなくしたり盗まれたりしたときは、"
        "すぐにIT窓口へ連絡してください。\n",
    }
    for name, text in pages.items():
        path = tmp_path / "handbook" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "handbook"
