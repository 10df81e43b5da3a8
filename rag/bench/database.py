"""The figures of an index in PostgreSQL: queries with filters, recall beside exact search, writers and readers at once.

The index is made for the measurement and removed after it. It knows nothing of how figures are shown.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rag.bench.searches import FILTERS, RESULTS, WARM_UP, KnownQueries, search_times, shown_times
from rag.bench.synthetic import SyntheticEmbedder, made_up_pages, made_up_queries
from rag.index.retrieve import nearest, search
from rag.index.variants import comparable
from rag.stores.postgres.database import Database, FollowedDatabase
from rag.stores.postgres.graph import FEW
from slm.errors import EngineError, InputError
from slm.joints import Filters
from slm.native.process import child_environment

STORE_PARTS = ("queries", "recall", "writers")
_K = 10
_FILTERS = {**FILTERS, "half of the spaces": Filters(spaces=("S0", "S2", "S4", "S6", "S8"))}
_URL = "SLM_BENCH_STORE"
# Each process takes the address from its environment: an argument is seen by everybody on the machine.
_WRITER = "import sys; from rag.bench.database import write_for; write_for(int(sys.argv[1]), float(sys.argv[2]))"
_READER = "import sys; from rag.bench.database import read_for; read_for(int(sys.argv[1]), float(sys.argv[2]))"


@dataclass(frozen=True)
class StoreOptions:
    """What is measured, and where. url: of an index that is not there yet; seconds: of writers and readers at once."""

    url: str
    parts: tuple[str, ...] = STORE_PARTS
    chunks: int = 100_000
    pages: int = 10_000
    queries: int = 200
    seconds: float = 60.0
    writers: int = 2
    readers: int = 4


def bench_store(options: StoreOptions, on_step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The figures of the chosen parts: {index, queries, recall, writers}, each as its function here says.

    Raises InputError where the index is there already, and what the database complains of.
    """
    store = Database(options.url)
    if store.exists():
        raise InputError(f"there is an index at {store.name} already", hint="Name one that is not there: ?index=NAME.")
    result: dict[str, Any] = {}
    on_step(f"writing {options.pages} pages in {options.chunks} chunks")
    begun = time.perf_counter()
    try:
        change = store.add(list(made_up_pages(options.pages, options.chunks)), SyntheticEmbedder())
        status = store.status()
        result["index"] = {
            "pages": options.pages, "chunks": change.chunks, "made_in_s": round(time.perf_counter() - begun, 1),
            "disk_mb": round(status["size_bytes"] / 1e6, 1), "search": status["parts"][0]["search"],
        }  # fmt: skip
        with store.opening() as opened:
            if "queries" in options.parts:
                on_step("queries")
                result["queries"] = measure_filtered(opened, options.queries)
            if "recall" in options.parts:
                on_step("recall beside exact search")
                result["recall"] = measure_recall(opened, options.queries)
        if "writers" in options.parts:
            on_step(f"{options.writers} writers and {options.readers} readers for {options.seconds:.0f} s")
            result["writers"] = measure_writers(store, options)
    finally:
        if store.exists():
            store.drop()
    return result


def measure_filtered(opened: FollowedDatabase, count: int) -> dict[str, Any]:
    """Milliseconds of a search besides the embedding of its query: {filters: {n, p50_ms, p95_ms, max_ms, first_ms}}.

    first_ms: of the first query with these filters, when what they let through is not known yet.
    """
    queries = made_up_queries(count + WARM_UP)
    embedder = KnownQueries(queries)
    shown = {}
    for name, filters in _FILTERS.items():

        def ask(query: str, filters: Filters = filters) -> None:
            with opened.now() as index:
                search(index, embedder, query, RESULTS, filters=filters)

        waited, _ = search_times(ask, queries)
        shown[name] = shown_times(waited) | {"first_ms": round(waited[0], 2)}
    return shown


def measure_recall(opened: FollowedDatabase, count: int) -> dict[str, Any]:
    """The share of the ten nearest chunks by exact search (all vectors compared, by numpy) that the search by vectors
    finds, by filters: {filters: {n, recall_at_10, compared}}; compared: how many chunks the filters let through."""
    queries = made_up_queries(count)
    embedder = SyntheticEmbedder()
    vectors = embedder.queries([comparable(query) for query in queries])
    shown = {}
    with opened.now() as index:
        texts = [comparable(chunk.indexed_text) for chunk in index.chunks]
        every = embedder.passages(texts)
        for name, filters in _FILTERS.items():
            allowed = index.facets.allowed(filters)
            mask = np.ones(len(every), dtype=np.bool_) if allowed is None else allowed
            languages, rows_all = index.facets.every_language, np.arange(len(every))
            owns = [index.facets.in_language(rows_all, language) for language in languages]
            masks = [own & mask for own in owns]
            found = wanted = 0
            for vector in vectors:
                near = index.centres.nearness(vector)
                scores = every @ vector
                for own, one in zip(owns, near, strict=True):
                    scores[own] += max(near) - one
                exact = np.argsort(-np.where(mask, scores, -np.inf), kind="stable")[:_K]
                rows = {row for row, _ in nearest(index, vector, 50, allowed)[:_K]}
                found += len(rows & set(exact.tolist()))
                wanted += len(exact)
            shown[name] = {
                "n": len(vectors), "recall_at_10": round(found / wanted, 4), "compared": int(mask.sum()),
                "by_graph": any(int(own.sum()) > FEW for own in masks),
            }  # fmt: skip
    return shown


def measure_writers(store: Database, options: StoreOptions) -> dict[str, Any]:
    """Writers and readers in processes of their own at once, and whether anything was lost or doubled afterwards.

    Returns {seconds, written, removed, searches, p95_ms, lost, doubled, torn, errors}; torn: answers in which a text
    was not that of its document.
    """
    environment = child_environment() | {_URL: options.url}
    commands = [(_WRITER, number) for number in range(options.writers)]
    commands += [(_READER, number) for number in range(options.readers)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number), str(options.seconds)], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for code, number in commands
    ]  # fmt: skip
    told = []
    for child in children:
        out, err = child.communicate()
        if child.returncode:
            raise EngineError("a writer or reader failed", found=err.strip()[-400:])
        told.append(json.loads(out))
    writers, readers = told[: options.writers], told[options.writers :]
    wanted = {source: text for one in writers for source, text in one["last"].items()}
    with store.opening() as opened, opened.now() as index:
        held: dict[str, list[str]] = {}
        for chunk in index.chunks:
            if chunk.source.startswith("writer-"):
                held.setdefault(chunk.source, []).append(chunk.text)
    lost = [source for source, text in wanted.items() if text and text not in held.get(source, [])]
    doubled = [source for source, texts in held.items() if len(texts) != 1 or not wanted.get(source)]
    times = [value for one in readers for value in one["times_ms"]]
    return {
        "seconds": options.seconds, "written": sum(one["written"] for one in writers),
        "removed": sum(one["removed"] for one in writers), "searches": len(times),
        "p95_ms": round(float(np.percentile(times, 95)), 1), "lost": len(lost), "doubled": len(doubled),
        "torn": sum(one["torn"] for one in readers),
    }  # fmt: skip


def write_for(number: int, seconds: float) -> None:
    """A writer: adds, changes and removes pages of its own so long; prints what they have to be as JSON."""
    from rag.document import Document, Section

    store, embedder = Database(os.environ[_URL]), SyntheticEmbedder()
    last: dict[str, str] = {}
    written = removed = turn = 0
    until = time.time() + seconds
    while not turn or time.time() < until:
        source = f"writer-{number}-{turn % 50}.md"
        text = f"page {source} in turn {turn} of writer {number}."
        store.add([Document("Written", source, "en", (Section(("Now",), text),))], embedder)
        last[source], written = text, written + 1
        if turn % 7 == 6 and last.get(gone := f"writer-{number}-{(turn - 3) % 50}.md"):
            store.remove([gone])
            last[gone], removed = "", removed + 1
        turn += 1
    print(json.dumps({"last": last, "written": written, "removed": removed}))


def read_for(number: int, seconds: float) -> None:
    """A reader: searches so long; prints its times, and how many answers did not fit together, as JSON."""
    queries = made_up_queries(100)
    mixed = [
        text for pair in zip(queries, [f"page writer-{n % 2} turn" for n in range(100)], strict=True) for text in pair
    ]
    embedder = KnownQueries(mixed)
    times: list[float] = []
    torn, turn = 0, number
    with Database(os.environ[_URL]).opening() as opened:
        until = time.time() + seconds
        while not times or time.time() < until:
            begun = time.perf_counter()
            with opened.now() as index:
                hits = search(index, embedder, mixed[turn % len(mixed)], RESULTS)
                chunks = [index.chunks[hit.row] for hit in hits]
            times.append(1000 * (time.perf_counter() - begun))
            torn += sum(c.source.startswith("writer-") and f"page {c.source} in" not in c.text for c in chunks)
            turn += 1
    print(json.dumps({"times_ms": times, "torn": torn}))
