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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rag.bench.synthetic import SyntheticEmbedder, made_up_pages, made_up_queries
from rag.document import Document, Section
from rag.index.chunk import chunk_document
from rag.index.embed import Embedder, Vectors, open_embedder
from rag.index.retrieve import search
from rag.index.store import open_generation
from rag.index.update import CHUNK_TOKENS, add_documents
from rag.index.variants import comparable
from rag.sources.files import read_files
from slm.errors import EngineError, MissingExtraError, UnsupportedError
from slm.joints import EVERYTHING, Filters
from slm.models.catalog import find_pulled
from slm.native.process import child_environment

PARTS = ("embedding", "queries", "memory", "edit")
_WARM_UP, _RESULTS = 20, 5
_FILTERS = {
    "none": EVERYTHING,
    "space, language and date": Filters(spaces=("S3",), languages=("en", "ja"), since="2024-03-01"),
    "who asks": Filters(viewer=("user:guest",)),
}
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

    peer: a sentence-transformers folder of the same model; None: that of the embedder's own name, where it is pulled.
    """

    embedder: str
    parts: tuple[str, ...] = PARTS
    chunks: int = 100_000
    pages: int = 10_000
    queries: int = 200
    rounds: int = 3
    peer: Path | None = None


def bench_rag(paths: Sequence[Path], options: BenchOptions, on_step: Callable[[str], None] = lambda _: None) -> Any:
    """The figures of the chosen parts: {embedding, queries, memory, edit}, each as its function here says."""
    result: dict[str, Any] = {}
    if "embedding" in options.parts:
        on_step("embedding")
        result["embedding"] = measure_embedding(paths, options)
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
    """Chunks a second of our embedder and of sentence-transformers' default loop, in turns, medians over the rounds.

    Returns {embedder, chunks, ours: {seconds, chunks_per_s}, peer: the same, ratio, cosine}; peer, ratio and cosine
    (the mean between both vectors of a chunk) are None where the peer is not there, and `no_peer` says why.
    """
    embedder = open_embedder(options.embedder)
    limit = min(CHUNK_TOKENS, embedder.identity.max_tokens)
    documents = read_files(paths).documents
    chunks = [chunk for document in documents for chunk in chunk_document(document, limit, embedder.count_tokens)]
    texts = [comparable(chunk.indexed_text) for chunk in chunks]
    peer, why = _open_peer(options, embedder)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    vectors: dict[str, Vectors] = {}
    embedder.passages(texts[:1])
    for _ in range(options.rounds):
        for name, embed in (("ours", embedder.passages), ("peer", peer)):
            if embed is not None:
                begun = time.perf_counter()
                vectors[name] = embed(texts)
                times[name].append(time.perf_counter() - begun)
    shown = {name: _rate(len(texts), taken) for name, taken in times.items() if taken}
    both = "peer" in shown
    return {
        "embedder": f"{embedder.identity.name} [{embedder.identity.revision}]", "chunks": len(texts),
        "ours": shown["ours"], "peer": shown.get("peer"), "no_peer": why,
        "ratio": round(shown["peer"]["seconds"] / shown["ours"]["seconds"], 2) if both else None,
        "cosine": round(float(np.mean(np.sum(vectors["ours"] * vectors["peer"], axis=1))), 4) if both else None,
    }  # fmt: skip


def _open_peer(options: BenchOptions, embedder: Embedder) -> tuple[Callable[[list[str]], Vectors] | None, str]:
    """sentence-transformers as it comes, with the same prefix; or None, and why."""
    pulled = find_pulled(options.embedder) if options.peer is None else None
    folder = options.peer or (pulled.folder if pulled else None)
    if folder is None or not (folder / "config.json").is_file():
        if options.peer is not None:
            raise UnsupportedError(f"'{options.peer}' is no sentence-transformers folder", found="no config.json")
        return None, f"no checkpoint of {options.embedder} is pulled: name one with --peer FOLDER"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "rag") from error
    model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    prefix = embedder.identity.passage_prefix

    def encode(texts: list[str]) -> Vectors:
        vectors = np.asarray(model.encode([prefix + text for text in texts], show_progress_bar=False), np.float32)
        made: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return made

    return encode, ""


class _Known:
    """An embedder that has embedded its queries beforehand: what is timed is the search alone."""

    def __init__(self, queries: Sequence[str]) -> None:
        model = SyntheticEmbedder()
        self.identity, self.passages, self.count_tokens = model.identity, model.passages, model.count_tokens
        self._vectors = dict(zip(map(comparable, queries), model.queries(queries), strict=True))

    def queries(self, texts: Sequence[str]) -> Vectors:
        return np.stack([self._vectors[text] for text in texts])


def measure_queries(index: Path, count: int) -> dict[str, Any]:
    """Milliseconds of a search besides the embedding of its query: {filters: {n, p50_ms, p95_ms, max_ms}}."""
    generation, queries = open_generation(index), made_up_queries(count + _WARM_UP)
    embedder = _Known(queries)
    shown = {}
    for name, filters in _FILTERS.items():
        times = []
        for number, query in enumerate(queries):
            begun = time.perf_counter()
            search(generation, embedder, query, _RESULTS, filters=filters)
            if number >= _WARM_UP:
                times.append(1000 * (time.perf_counter() - begun))
        p50, p95, most = (round(float(value), 2) for value in np.percentile(times, [50, 95, 100]))
        shown[name] = {"n": len(times), "p50_ms": p50, "p95_ms": p95, "max_ms": most}
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


def _rate(chunks: int, times: Sequence[float]) -> dict[str, float]:
    seconds = statistics.median(times)
    return {"seconds": round(seconds, 3), "chunks_per_s": round(chunks / seconds, 2)}


def _disk_mb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)
