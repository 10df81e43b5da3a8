"""Compares the lexical leg with tantivy and bm25s on the same terms: build, edit of a page, queries, the best ten.

    python -m pip install tantivy bm25s        # in an environment of its own, beside this program
    OMP_NUM_THREADS=1 python scripts/bench_lexical.py --chunks 100000

Texts are windows of data/en.txt and data/ja.txt, so that their words are as frequent as in real ones. Each engine gets
the same lists of terms (`rag.index.lexical.pairs.terms_of`). A peer that is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from rag.index.generation.postings import Postings, build_postings  # noqa: E402
from rag.index.lexical.bm25 import open_bm25  # noqa: E402
from rag.index.lexical.pairs import terms_of  # noqa: E402

_QUERIES, _PAGE, _BEST = 60, 8, 10
Terms = Sequence[str]
_T = TypeVar("_T")


class Leg(Protocol):
    """A lexical index of texts given as terms."""

    def build(self, texts: Sequence[Terms]) -> None: ...

    def edit(self, first: int, texts: Sequence[Terms]) -> None:
        """Replace the texts from `first` on; found anew by the next query."""
        ...

    def best(self, query: Terms, count: int) -> list[int]: ...


class Ours:
    """Parts of counts, weighed at query time."""

    def build(self, texts: Sequence[Terms]) -> None:
        self._first = build_postings(texts)
        self._bm25 = open_bm25([(self._first, np.arange(len(texts), dtype=np.int32))], len(texts), terms_of)

    def edit(self, first: int, texts: Sequence[Terms]) -> None:
        size = self._first.texts
        rows = np.arange(size, dtype=np.int32)
        rows[first : first + len(texts)] = -1
        added: Postings = build_postings(texts)
        own = np.arange(first, first + len(texts), dtype=np.int32)
        self._bm25 = open_bm25([(self._first, rows), (added, own)], size, terms_of)

    def best(self, query: Terms, count: int) -> list[int]:
        return [row for row, _ in self._bm25.top(" ".join(query), count)]

    def scores(self, query: Terms) -> Any:
        """BM25 of every text."""
        return self._bm25.scores(" ".join(query))


class Tantivy:
    """tantivy, a segment on disk for each commit."""

    def build(self, texts: Sequence[Terms]) -> None:
        import tantivy  # type: ignore[import-not-found,unused-ignore]

        self._folder = tempfile.TemporaryDirectory()
        fields = tantivy.SchemaBuilder()
        fields.add_integer_field("id", stored=True, indexed=True)
        fields.add_text_field("terms", stored=False, tokenizer_name="whitespace", index_option="freq")
        self._tantivy, self._schema = tantivy, fields.build()
        self._index = tantivy.Index(self._schema, path=self._folder.name)
        self._write(enumerate(texts))

    def _write(self, rows: Any, gone: Sequence[int] = ()) -> None:
        writer = self._index.writer(num_threads=1)
        for row in gone:
            writer.delete_documents("id", row)
        for row, terms in rows:
            writer.add_document(self._tantivy.Document(id=row, terms=" ".join(terms)))
        writer.commit()
        self._index.reload()

    def edit(self, first: int, texts: Sequence[Terms]) -> None:
        self._write(enumerate(texts, start=first), range(first, first + len(texts)))

    def best(self, query: Terms, count: int) -> list[int]:
        kinds = self._tantivy
        parts = [
            (kinds.Occur.Should, kinds.Query.term_query(self._schema, "terms", term)) for term in dict.fromkeys(query)
        ]
        searcher = self._index.searcher()
        hits = searcher.search(kinds.Query.boolean_query(parts), count).hits
        return [int(searcher.doc(address)["id"][0]) for _, address in hits]


class Bm25s:
    """bm25s, whose stored weights make every edit a build."""

    def build(self, texts: Sequence[Terms]) -> None:
        import bm25s  # type: ignore[import-not-found,unused-ignore]

        self._texts = list(texts)
        self._model = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
        self._model.index(self._texts, show_progress=False)

    def edit(self, first: int, texts: Sequence[Terms]) -> None:
        self._texts[first : first + len(texts)] = texts
        self.build(self._texts)

    def best(self, query: Terms, count: int) -> list[int]:
        known = [term for term in dict.fromkeys(query) if term in self._model.vocab_dict]
        rows, scores = self._model.retrieve([known], k=count, show_progress=False, n_threads=1)
        return [int(row) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]


def windows(count: int, chance: random.Random) -> list[str]:
    """So many texts of about a chunk's length, by turns English and Japanese."""
    words = (ROOT / "data" / "en.txt").read_text(encoding="utf-8").split()
    japanese = (ROOT / "data" / "ja.txt").read_text(encoding="utf-8")
    texts = []
    for number in range(count):
        if number % 2:
            at = chance.randrange(len(words) - 130)
            texts.append(" ".join(words[at : at + 130]) + f" part{chance.randrange(count)}")
        else:
            at = chance.randrange(len(japanese) - 260)
            texts.append(japanese[at : at + 260] + f" part{chance.randrange(count)}")
    return texts


def timed(run: Callable[[], _T]) -> tuple[float, _T]:
    """The seconds that it takes, and what it gives."""
    start = time.perf_counter()
    given = run()
    return time.perf_counter() - start, given


@click.command()
@click.option("--chunks", default=20_000, show_default=True, type=click.IntRange(100))
@click.argument("out", required=False, type=click.Path(path_type=Path))
def main(chunks: int, out: Path | None) -> None:
    """Print a table; write the figures to OUT as JSON as well."""
    chance = random.Random(3)
    texts = [terms_of(text) for text in windows(chunks, chance)]
    page = [terms_of(text) for text in windows(_PAGE, chance)]
    queries = []
    for terms in chance.sample(texts, _QUERIES):
        at = chance.randrange(max(1, len(terms) - 12))
        queries.append(list(terms[at : at + 12]))
    ours = Ours()
    peers: dict[str, Leg] = {"tantivy": Tantivy(), "bm25s": Bm25s()}
    legs: dict[str, Leg] = {"ours": ours}
    legs.update({name: leg for name, leg in peers.items() if importlib.util.find_spec(name) is not None})
    rows: dict[str, dict[str, float]] = {}
    for name, leg in legs.items():
        built, _ = timed(partial(leg.build, texts))
        edited, _ = timed(partial(leg.edit, chunks // 2, page))
        answers = [timed(partial(leg.best, query, _BEST)) for query in queries]
        times, found = [clock for clock, _ in answers], [best for _, best in answers]
        # Texts that are alike tie: not which ones are found is compared, but how good they are by our scores.
        scores = [ours.scores(query) for query in queries]
        pairs = zip(scores, found, strict=True)
        worth = [float(score[rows].sum() / np.sort(score)[-_BEST:].sum()) for score, rows in pairs]
        rows[name] = {
            "build_s": built, "edit_s": edited, "query_p50_ms": 1e3 * statistics.median(times),
            "query_p95_ms": 1e3 * sorted(times)[int(0.95 * len(times))], "best_10": statistics.mean(worth),
        }  # fmt: skip
    click.echo(f"{chunks} chunks, {len(queries)} queries of up to 12 terms, one thread")
    click.echo(f"{'':10}{'build s':>10}{'edit s':>10}{'p50 ms':>10}{'p95 ms':>10}{'best 10':>10}")
    for name, row in rows.items():
        click.echo(f"{name:10}" + "".join(f"{value:>10.3f}" for value in row.values()))
    if out is not None:
        out.write_text(json.dumps({"chunks": chunks, "engines": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
