"""Of a text and its translation the one in the reader's language comes first, and nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.evaluate.retrieval import evaluate
from rag.index import retrieve
from rag.index.embed import DEFAULT_EMBEDDER, open_embedder
from rag.index.same.translated import translations
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.questions import read_questions
from rag.sources.files import read_files
from tests.tiny_rag import own_home

__all__ = ["own_home"]  # fixtures
HANDBOOK = Path(__file__).parent.parent / "data/handbook"


def test_pairs_are_each_others_nearest_whatever_their_languages_share() -> None:
    about, language = np.eye(6, dtype=np.float32)[:4], 3 * np.eye(6, dtype=np.float32)[4:]
    # Two subjects in both languages, one in each alone; what a language shares is louder than any subject.
    vectors = np.stack([*(about[:3] + language[0]), *(about[[1, 0, 3]] + language[1])])
    means, own = np.repeat(language, 3, axis=0), np.array([True] * 3 + [False] * 3)
    assert translations(vectors, means, own) == [(0, 4), (1, 3)]
    assert translations(vectors, vectors, own) == []  # nothing is left to compare
    assert translations(vectors[:3], means[:3], own[:3]) == []


@pytest.mark.real
def test_the_page_in_the_questions_language_is_shown_first(
    tmp_path: Path, pulled_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the handbook, whose pages are there in both: what is found stays the same."""
    pulled_model(DEFAULT_EMBEDDER)
    embedder = open_embedder()
    add_documents(tmp_path / "i", read_files([HANDBOOK / "en", HANDBOOK / "ja"]).documents, embedder)
    generation = open_generation(tmp_path / "i")
    asked = [one for one in read_questions(HANDBOOK / "questions.jsonl") if one.answerable]

    def found() -> Any:
        return evaluate(generation, embedder, asked, "fused")["legs"]["fused"]["overall"]

    with_it = found()
    monkeypatch.setattr(retrieve, "translations", lambda *_: [])
    without = found()
    assert with_it["first_in_language"] >= 0.9 > without["first_in_language"], (with_it, without)
    assert with_it["recall_at_5"] >= without["recall_at_5"]
