"""What is learned about questions brings them nearer to what answers them, for one embedder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.evaluate.retrieval import evaluate
from rag.index.chunk import Chunk
from rag.index.embed import DEFAULT_EMBEDDER, open_embedder
from rag.index.embedders import asked as module
from rag.index.embedders.asked import asked, centred
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.questions import read_questions
from rag.sources.files import read_files
from scripts.query_adapter import Group, Recipe, found_first, learn, slope, twins
from tests.tiny_rag import PairEmbedder, own_home

__all__ = ["own_home"]  # fixtures
DEVELOPMENT = Path(__file__).parent.parent / "data/reading/development"


def group(seed: int, turn: Any, questions: int = 40, chunks: int = 30) -> Group:
    """Questions that are turned away from their passages, each the same way."""
    draw = np.random.default_rng(seed)
    passages = draw.standard_normal((chunks, 8), dtype=np.float32)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    answer = draw.integers(chunks, size=questions)
    asked = (passages[answer] @ turn + 0.1 * draw.standard_normal((questions, 8))).astype(np.float32)
    return Group(asked, passages, np.eye(chunks, dtype=np.bool_)[answer], np.arange(chunks) % 2 == 0)


def test_the_slope_is_that_of_the_loss() -> None:
    draw = np.random.default_rng(0)
    one = group(1, np.eye(8), questions=5, chunks=7)
    one.right[0, :3] = True  # several passages may answer
    matrix: Any = draw.standard_normal((8, 8)) * 0.1
    sharp = 1.3

    def loss(matrix: Any, sharp: float) -> float:
        scores = (one.asked + one.asked @ matrix) @ one.passages.T * np.exp(sharp)
        every = np.log(np.exp(scores).sum(axis=1))
        return float(np.mean(every - np.log((np.exp(scores) * one.right).sum(axis=1))))

    by_matrix, by_sharpness = slope(one.asked, one.right, one.passages, matrix, float(np.exp(sharp)))
    step = 1e-5
    for place in ((0, 0), (3, 5), (7, 2)):
        moved = np.zeros((8, 8))
        moved[place] = step
        higher, lower = loss(matrix + moved, sharp), loss(matrix - moved, sharp)
        assert by_matrix[place] == pytest.approx((higher - lower) / (2 * step), rel=1e-2, abs=1e-5)
    higher, lower = loss(matrix, sharp + step), loss(matrix, sharp - step)
    assert by_sharpness == pytest.approx((higher - lower) / (2 * step), rel=1e-2)


def test_how_questions_are_turned_is_learned_and_holds_for_others() -> None:
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((8, 8)))[0]
    taught, headings, others = [group(seed, turn) for seed in range(6)], [group(9, turn)], [group(20, turn)]
    recipe = Recipe(epochs=60, rate=2e-2, temperature=0.1, decay=0.0, noise=0.0)
    matrix = learn(taught, headings, recipe, seed=0)
    before, after = found_first(others, np.zeros((8, 8), np.float32)), found_first(others, matrix)
    assert before[0] < 0.5 < 0.9 < after[0] and after[1] == 1
    assert np.array_equal(matrix, learn(taught, headings, recipe, seed=0))


def test_a_heading_has_the_place_of_its_translation() -> None:
    pages = {
        "a/en/x.md": ("Rooms", "Small ones", "Large ones"),
        "a/ja/x.md": ("部屋", "小さい部屋", "大きい部屋"),
        "a/en/y.md": ("Alone", "One"),
    }
    found = twins([
        Chunk(title, (below,), "text", source, source[2:4], n, "")
        for source, (title, *headings) in pages.items()
        for n, below in enumerate(headings)
    ])  # fmt: skip
    english = {"Rooms": "", "Small ones": "小さい部屋", "Large ones": "大きい部屋"}
    japanese = {"部屋": "", "小さい部屋": "Small ones", "大きい部屋": "Large ones"}
    assert found == {
        **{name: ("a/ja/x.md", other) for name, other in english.items()},
        **{name: ("a/en/x.md", other) for name, other in japanese.items()},
    }


class Plain(PairEmbedder):
    """Of the default embedder's name, or of another."""

    def queries(self, texts: Sequence[str]) -> Any:
        return np.ones((len(texts), 4), dtype=np.float32)


def test_only_the_embedder_it_was_learned_for_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "mine.npy", np.diag([0, 1, 2, 3]).astype(np.float16))
    monkeypatch.setattr(module, "LEARNED", tmp_path)
    mine, other = Plain("mine", 4), Plain("another", 4)
    plain = centred(other, ["Where?"], other.queries(["Where?"]))[0]
    assert np.array_equal(asked(other, "Where?"), plain)
    assert np.allclose(asked(mine, "Where?"), plain * [1, 2, 3, 4]) and asked(mine, "Where?").dtype == np.float32


@pytest.mark.real
def test_questions_find_more_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pulled_model: Any) -> None:
    """Of organisations that it never saw, asked in the page's language and in the other."""
    pulled_model(DEFAULT_EMBEDDER)
    embedder, first = open_embedder(), {"with": [0, 0], "without": [0, 0]}
    for name in ("museum", "zoo"):
        folder = DEVELOPMENT / name
        add_documents(tmp_path / name, read_files([folder / "en", folder / "ja"]).documents, embedder)
        generation = open_generation(tmp_path / name)
        questions = [one for one in read_questions(folder / "questions.jsonl") if one.answerable]
        for which, learned in (("with", module.LEARNED), ("without", tmp_path)):
            monkeypatch.setattr(module, "LEARNED", learned)
            for place, of in enumerate((True, False)):
                some = [one for one in questions if (one.kind == "other") == of]
                found = evaluate(generation, embedder, some, "fused")["legs"]["fused"]["overall"]["recall_at_1"]
                first[which][place] += round(found * len(some))
    assert first["with"][0] >= first["without"][0] and sum(first["with"]) >= sum(first["without"]) + 6, first
