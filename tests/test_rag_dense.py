"""Vectors of a part: flat and through inverted lists, with and without a filter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rag.index.generation import dense as dense_module
from rag.index.generation import part as part_module
from rag.index.generation.dense import Dense, Lead, learn_lists
from rag.index.store import open_generation
from rag.index.update import add_documents
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["own_home"]  # a fixture

COUNT, WIDTH, QUERIES = 20_000, 64, 100


@pytest.fixture(scope="module")
def clustered() -> tuple[np.ndarray, np.ndarray]:
    """Vectors in 200 clusters, as pages of a few subjects are, and queries near some of them; all of length 1."""
    chance = np.random.default_rng(5)
    centres = chance.standard_normal((200, WIDTH))
    vectors = centres[chance.integers(0, 200, COUNT)] + 0.5 * chance.standard_normal((COUNT, WIDTH))
    queries = vectors[chance.integers(0, COUNT, QUERIES)] + 0.3 * chance.standard_normal((QUERIES, WIDTH))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, queries)]
    return unit[0].astype(np.float32), unit[1].astype(np.float32)


def exact(vectors: np.ndarray, query: np.ndarray, count: int, allowed: np.ndarray | None = None) -> list[int]:
    scores = vectors @ query
    if allowed is not None:
        scores[~allowed] = -np.inf
    return list(np.argsort(-scores, kind="stable")[:count])


def test_a_flat_part_finds_exactly_the_nearest_and_only_allowed_ones(
    clustered: tuple[np.ndarray, np.ndarray],
) -> None:
    vectors, queries = clustered
    dense = Dense(vectors, learn_lists(vectors))
    assert dense.kind == "flat"
    allowed = np.random.default_rng(1).random(COUNT) < 0.01
    for query in queries[:20]:
        rows, scores = dense.search(query, 10, None)
        assert list(rows) == exact(vectors, query, 10) and np.allclose(scores, vectors[rows] @ query, atol=1e-5)
        assert list(dense.search(query, 10, allowed)[0]) == exact(vectors, query, 10, allowed)
    few = np.zeros(COUNT, dtype=bool)
    few[[3, 77]] = True
    assert sorted(dense.search(queries[0], 10, few)[0]) == [3, 77]
    assert not len(dense.search(queries[0], 10, np.zeros(COUNT, dtype=bool))[0])


@pytest.mark.parametrize(("most_flat", "least"), [(COUNT, 1.0), (COUNT - 1, 0.95)])
def test_what_a_group_has_ahead_counts_before_the_best_are_chosen(
    clustered: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, most_flat: int, least: float
) -> None:
    monkeypatch.setattr(dense_module, "_FEW", 10)
    vectors, queries = clustered
    dense = Dense(vectors, learn_lists(vectors, most_flat=most_flat))
    chance = np.random.default_rng(6)
    lead = Lead(chance.integers(0, 3, COUNT).astype(np.int16), np.asarray([0.0, 0.05, 0.2], dtype=np.float32))
    few, most = chance.random(COUNT) < 0.05, chance.random(COUNT) < 0.9
    hits = 0
    for query in queries[:30]:
        for allowed in (None, few, most):
            right = vectors @ query + lead.table[lead.group_of]
            right[~allowed if allowed is not None else []] = -np.inf
            rows, scores = dense.search(query, 10, allowed, lead)
            assert np.allclose(scores, right[rows], atol=1e-5) and (np.diff(scores) <= 0).all()
            hits += len(set(rows) & set(np.argsort(-right)[:10]))
    assert hits >= least * 30 * 3 * 10


def test_a_flat_part_is_searched_where_it_lies_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_module, "_faiss", lambda: pytest.fail("a copy of the vectors was made"))
    path, embedder = tmp_path / "i", PairEmbedder()
    add_documents(path, [page(f"{n}.md", f"subject {n} of the handbook") for n in range(30)], embedder)
    generation = open_generation(path)
    vectors = generation.loaded[0].dense.vectors
    assert isinstance(vectors.base, np.memmap) or isinstance(vectors, np.memmap)
    assert generation.dense_top(generation.vector(7), 1)[0][0] == 7


def test_inverted_lists_find_nearly_what_a_flat_search_finds(clustered: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, queries = clustered
    dense = Dense(vectors, learn_lists(vectors, most_flat=COUNT - 1))
    assert dense.kind == f"ivf {int(4 * COUNT**0.5)}"
    found = [len(set(dense.search(query, 10, None)[0]) & set(exact(vectors, query, 10))) for query in queries]
    assert sum(found) / (10 * QUERIES) >= 0.95
    assert min(found) >= 5


def test_inverted_lists_leave_nothing_out_of_what_a_filter_lets_through(
    clustered: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = clustered
    dense = Dense(vectors, learn_lists(vectors, most_flat=COUNT - 1))
    few = np.random.default_rng(2).random(COUNT) < 0.002
    for query in queries[:20]:
        assert list(dense.search(query, 10, few)[0]) == exact(vectors, query, 10, few)
    monkeypatch.setattr(dense_module, "_FEW", 10)  # now through the lists
    half = np.random.default_rng(3).random(COUNT) < 0.5
    found = [set(dense.search(query, 10, half)[0]) for query in queries]
    assert all(half[list(rows)].all() for rows in found)
    hits = sum(len(rows & set(exact(vectors, q, 10, half))) for rows, q in zip(found, queries, strict=True))
    assert hits / (10 * QUERIES) >= 0.9


def test_a_large_part_gets_lists_by_itself_survives_the_disk_and_an_edit_does_not_touch_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_module, "learn_lists", lambda vectors: learn_lists(vectors, most_flat=50))
    path, embedder = tmp_path / "i", PairEmbedder()
    add_documents(path, [page(f"{n}.md", f"subject {n} of the handbook") for n in range(80)], embedder)
    add_documents(path, [page("7.md", "会議室の予約")], embedder)
    generation = open_generation(path)
    assert [part.dense.kind for part in generation.loaded] == ["ivf 35", "flat"]
    rows = [row for row, _ in generation.dense_top(embedder.queries(["会議室の予約"])[0], 3)]
    assert generation.chunks[rows[0]].source == "7.md"
    vector = generation.vector(40)
    assert generation.dense_top(vector, 1)[0][0] == 40
    assert all(
        generation.chunks[row].text != "subject 7 of the handbook" for row, _ in generation.dense_top(vector, 80)
    )
