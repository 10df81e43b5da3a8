"""`slm bench rag --store`: the figures are taken from a real database, which is left as it was."""

from __future__ import annotations

import psycopg
import pytest

from rag.bench.database import StoreOptions, bench_store
from rag.stores.postgres import graph
from rag.stores.postgres.database import Database
from slm.errors import InputError
from tests.own_postgres import database, postgres, with_index
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["database", "own_home", "postgres"]


def test_the_figures_of_a_database_are_taken_and_nothing_is_left(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "MOST_FLAT", 100)
    monkeypatch.setattr("rag.bench.database.FEW", 20)
    monkeypatch.setattr(graph, "FEW", 20)
    options = StoreOptions(
        with_index(database, "bench"), chunks=200, pages=40, queries=5, seconds=1, writers=1, readers=1
    )
    result = bench_store(options)
    assert result["index"]["chunks"] == 200 and result["index"]["search"] == "hnsw"
    assert all(row["n"] == 5 and row["recall_at_10"] == 1 for row in result["recall"].values())
    assert result["recall"]["none"]["compared"] == 200 and result["recall"]["none"]["by_graph"]
    assert result["recall"]["space, language and date"]["compared"] < 20
    together = result["writers"]
    assert together["written"] >= 1 and together["searches"] >= 1
    assert (together["lost"], together["doubled"], together["torn"]) == (0, 0, 0)
    with psycopg.connect(database) as direct:
        assert direct.execute("SELECT count(*) FROM slm.indexes").fetchone() == (0,)


def test_an_index_that_is_there_is_not_measured_away(database: str) -> None:
    store = Database(with_index(database, "mine"))
    store.add([page("a.md", "apples")], PairEmbedder())
    with pytest.raises(InputError, match="already"):
        bench_store(StoreOptions(store.address.shown, chunks=10, pages=5))
    assert list(store.held().documents) == ["a.md"]
