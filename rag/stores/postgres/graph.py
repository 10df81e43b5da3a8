"""The graph over an index's vectors (HNSW): from how many on there is one, how it is made, and how it is searched.

HNSW: Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
World graphs" (TPAMI 2020), as pgvector has it. Fewer vectors are compared one by one, which is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag.stores.postgres.connection import driver

if TYPE_CHECKING:
    from rag.stores.postgres.connection import Connection

MOST_FLAT = 10_000
"""So many chunks are compared one by one; from more on there is a graph."""
FEW = 5_000
"""What filters leave is compared one by one up to so many chunks: a graph would be walked far for few of its points."""
MOST_DIMENSIONS = 2_000  # of a vector that pgvector's HNSW takes
_EDGES, _CANDIDATES = 16, 100
_SEARCHED = 200
_MOST_WALKED = 40_000
_MEMORY = ("1GB", "64MB")

BEGIN = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL enable_sort = off; SET LOCAL jit = off; "
    f"SET LOCAL hnsw.ef_search = {_SEARCHED}; SET LOCAL hnsw.iterative_scan = relaxed_order; "
    f"SET LOCAL hnsw.max_scan_tuples = {_MOST_WALKED}"
)
"""How a search begins: it sees one moment, walks on until a filter has let enough through, and where a graph can order
the vectors it is not sorted instead."""


def name_of(index: int) -> str:
    """The name of an index's graph."""
    return f"chunks_{index:d}_graph"


def has_graph(connection: Connection, index: int) -> bool:
    """Whether the graph is there and whole."""
    row = connection.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [f"slm.{name_of(index)}"]
    ).fetchone()
    return bool(row and row[0])


def make_graph(connection: Connection, index: int, chunks: int, dimension: int) -> bool:
    """Make the graph where there is none and there are chunks enough; whether it was made.

    Others read and write meanwhile. One that was broken off is made anew.
    """
    if chunks <= MOST_FLAT or dimension > MOST_DIMENSIONS or has_graph(connection, index):
        return False
    errors = driver().errors
    key = [f"slm graph {index}"]
    if not _true(connection, "SELECT pg_try_advisory_lock(hashtext(%s))", key):
        return False  # somebody else is at it
    try:
        if has_graph(connection, index):
            return False
        connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS slm.{name_of(index)}")
        for memory in _MEMORY:
            try:
                connection.execute("SELECT set_config('maintenance_work_mem', %s, false)", [memory])
                connection.execute(
                    f"CREATE INDEX CONCURRENTLY {name_of(index)} ON slm.chunks_{index:d} "
                    f"USING hnsw (vector vector_ip_ops) WITH (m = {_EDGES}, ef_construction = {_CANDIDATES})"
                )
                break
            except (errors.DiskFull, errors.OutOfMemory):  # shared memory of a container is often small
                connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS slm.{name_of(index)}")
                if memory == _MEMORY[-1]:
                    raise
                connection.execute("SET max_parallel_maintenance_workers = 0")
        connection.execute("UPDATE slm.indexes SET version = version + 1 WHERE id = %s", [index])
        return True
    finally:
        connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", key)


def _true(connection: Connection, query: str, values: list[str]) -> bool:
    row = connection.execute(query, values).fetchone()
    return bool(row and row[0])
