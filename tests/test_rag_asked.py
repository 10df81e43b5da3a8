"""A question is ranked by what it asks for, not by its being a question; a foreign page is not held to its words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.index.embed import open_embedder
from rag.index.embedders.asked import asked
from rag.index.embedders.remembered import RememberedQuery
from rag.index.retrieve import fuse, search
from rag.index.store import open_generation
from rag.index.update import add_documents
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["own_home"]  # fixtures
SUBJECTS = ("parking", "lunch", "leave", "keys")


class QuestioningEmbedder(PairEmbedder):
    """Vectors that say louder that a text is a question than what it asks for, a word of SUBJECTS."""

    def __init__(self) -> None:
        super().__init__("questioning", len(SUBJECTS) + 1)
        self.calls = 0

    def queries(self, texts: Sequence[str]) -> Any:
        self.calls += 1
        vectors = np.zeros((len(texts), len(SUBJECTS) + 1), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row, 0] = 1.5 if "?" in text or len(texts) > 9 else 0.1
            vectors[row, 1:] = [subject in text for subject in SUBJECTS]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_page_full_of_questions_is_not_near_to_every_one(tmp_path: Path) -> None:
    pages = [page(f"{one}.md", f"All about {one}.") for one in SUBJECTS]
    embedder = QuestioningEmbedder()
    add_documents(tmp_path / "i", [*pages, page("quiz.md", "Who? What? Where?")], embedder)
    generation = open_generation(tmp_path / "i")
    for one in SUBJECTS:
        question = f"What about {one}?"
        plain = generation.dense_top(embedder.queries([question])[0], 1)[0][0]
        assert generation.chunks[plain].source == "quiz.md"  # what the embedder says
        found = search(generation, embedder, question, 1, "dense")[0]
        assert generation.chunks[found.row].source == f"{one}.md"


def test_what_questions_share_is_computed_once_for_each_language_and_embedder() -> None:
    embedder = QuestioningEmbedder()
    first = asked(RememberedQuery(embedder), "What about the keys of the house?")
    again, calls = asked(embedder, "What about the keys of the house?"), embedder.calls
    assert np.array_equal(first, again) and first.dtype == np.float32
    asked(embedder, "Where is the keys' board that we use?")
    assert embedder.calls == calls + 1
    asked(embedder, "鍵はどこにありますか。")
    assert embedder.calls == calls + 3
    asked(embedder, "鍵をなくしました。どうすればいいですか。")
    assert embedder.calls == calls + 4


def test_rows_in_another_language_count_as_if_some_words_were_theirs() -> None:
    dense, lexical = [(1, 0.9), (2, 0.9), (3, 0.8)], [(1, 4.0)]
    assert {hit.row: hit.score for hit in fuse(dense, lexical, 0.4, foreign={2, 3})} == pytest.approx(
        {1: 1.4, 2: 1.0 + 0.4 * 0.8, 3: 0.0}
    )
    # Words that it has count where they say more: names and numbers.
    assert fuse(dense, [(2, 4.0)], 0.4, foreign={2, 3})[0].score == pytest.approx(1.4)


@pytest.mark.parametrize(
    "question", ["電源が入らないときはどこに電話すればいいですか。", "Whom do I call when there is no power?"]
)
def test_a_question_finds_the_page_beside_lists_and_pages_of_two_languages(tmp_path: Path, question: str) -> None:
    """With the packaged embedder, which puts a table of two languages near to every question."""
    pages = [
        page("power.md", "In a power cut call the caretaker on 4411. The lifts stop at the next one.", title="Outage"),
        page("mixed.md", "| 項目 | Item |\n| --- | --- |\n| 警告 | Warning |\n| 電話 | Phone |", title="用語 Terms"),
        page("list.md", "- Who?\n- Where?\n- いつ?\n- どこで?", title="質問 Questions"),
        page("menu.md", "The canteen serves soup from noon until two.", title="Canteen"),
    ]
    embedder = open_embedder()
    add_documents(tmp_path / "i", pages, embedder)
    generation = open_generation(tmp_path / "i")
    assert generation.chunks[search(generation, embedder, question, 1)[0].row].source == "power.md"
