"""An index in PostgreSQL: the same answers as from files, and a transaction a document. A real server."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from rag.document import Document, Meta, Section
from rag.index.change.planned import Told
from rag.index.retrieve import LEGS, search
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.questions import read_questions
from rag.sources.files import read_files
from rag.stores.files import FileStore
from rag.stores.postgres import graph, words
from rag.stores.postgres.database import Database
from rag.stores.postgres.spelling import stored, unstored
from slm.errors import InputError, SlmError, UnknownNameError
from slm.joints import EVERYTHING, Filters
from tests.own_postgres import database, postgres, with_index
from tests.tiny_rag import PairEmbedder, handbook, own_home, page

ROOT = Path(__file__).parent.parent
__all__ = ["database", "handbook", "own_home", "postgres"]


def wiki() -> list[Document]:
    """Pages in two languages and of none, with spaces, labels, dates and restrictions."""
    pages = []
    for number in range(24):
        lang = ("en", "ja", "und")[number % 3] if number % 6 == 2 else ("en", "ja")[number % 2]
        text = (
            f"The plan number {number} is open until May {number + 1}."
            if lang != "ja"
            else f"計画{number}は5月に終わる。"
        )
        meta = Meta(
            id=f"w:{number}", space=("HR", "IT", "Straße")[number % 3], labels=("draft",) if number % 4 == 0 else (),
            modified=f"2024-0{1 + number % 9}-11T00:00:00Z" if number % 5 else "",
            restrictions=(("user:aoi", "group:staff"), ("user:aoi",)) if number % 7 == 3 else (),
        )  # fmt: skip
        pages.append(Document(f"Page {number}", f"w/{number}.md", lang, (Section(("Plan",), text),), meta))
    return pages


def both(tmp_path: Path, database: str, pages: list[Document]) -> tuple[Any, Database]:
    embedder = PairEmbedder(dimension=256)
    add_documents(tmp_path / "files", pages, embedder)
    store = Database(with_index(database, "same"))
    store.add(pages, embedder)
    return open_generation(tmp_path / "files"), store


def found(index: Any, query: str, leg: Any = "fused", filters: Filters = EVERYTHING) -> list[tuple[str, str, float]]:
    hits = search(index, PairEmbedder(dimension=256), query, 8, leg, filters=filters)
    return [(index.chunks[hit.row].source, index.chunks[hit.row].text, float(hit.score)) for hit in hits]


def assert_same(left: list[tuple[str, str, float]], right: list[tuple[str, str, float]], why: object) -> None:
    """The same hits but for those about as good as the last one, whose equals might stand there as well.

    A fused score is a place between the farthest and the nearest vector, which widens what rounding does to a cosine.
    """
    assert [score for *_, score in left] == pytest.approx([score for *_, score in right], abs=0.02), why
    last = min((score for *_, score in left), default=0.0) + 0.02 if len(left) == 8 else -1.0
    sure = [{row[:2] for row in rows if row[2] > last} for rows in (left, right)]
    assert sure[0] <= {row[:2] for row in right} and sure[1] <= {row[:2] for row in left}, why


FILTERS = [
    EVERYTHING, Filters(spaces=("hr",)), Filters(labels=("draft",), languages=("en",)), Filters(viewer=()),
    Filters(viewer=("aoi",)), Filters(viewer=("group:staff",)), Filters(since="2024-03-11", until="2024-05-11"),
    Filters(spaces=("STRASSE", "IT"), viewer=("user:bo",)), Filters(languages=("und",)),
]  # fmt: skip


@pytest.mark.parametrize("walked", [False, True], ids=["compared", "graph"])
def test_both_stores_find_the_same_with_every_filter_and_leg(
    tmp_path: Path, database: str, walked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if walked:
        monkeypatch.setattr(graph, "MOST_FLAT", 5)
        monkeypatch.setattr(graph, "FEW", 2)
    generation, store = both(tmp_path, database, wiki())
    assert store.status()["parts"] == [{"chunks": 24, "search": "hnsw" if walked else "flat"}]
    with store.opening() as opened, opened.now() as index:
        for filters in FILTERS:
            for leg in LEGS:
                for query in ("plan number 7 open", "計画は5月", "May 3"):
                    ours, theirs = found(index, query, leg, filters), found(generation, query, leg, filters)
                    assert_same(ours, theirs, (filters, leg, query))
            assert index.facets.languages_of(filters) == generation.facets.languages_of(filters)
        assert index.facets.every_language == generation.facets.every_language
        assert index.centres.nearness(one_vector()) == pytest.approx(
            generation.centres.nearness(one_vector()), abs=1e-5
        )
        rows, place = [5, 0, 17, 3], {(one.source, one.ordinal): row for row, one in enumerate(generation.chunks)}
        same = [place[one.source, one.ordinal] for one in (index.chunks[row] for row in rows)]
        assert index.vectors(rows) == pytest.approx(generation.vectors(same), abs=1e-6)


def test_both_stores_answer_the_development_questions_alike(tmp_path: Path, database: str) -> None:
    """Of every organisation of the development set, all in one index."""
    organisations = sorted((ROOT / "data/reading/development").iterdir())
    documents = read_files([one / lang for one in organisations for lang in ("en", "ja")]).documents
    generation, store = both(tmp_path, database, documents)
    questions = [asked for one in organisations for asked in read_questions(one / "questions.jsonl")[::12]]
    assert len(organisations) == 10 and len(questions) > 100
    with store.opening() as opened, opened.now() as index:
        for asked in questions:
            assert_same(found(index, asked.question), found(generation, asked.question), asked.question)


def one_vector() -> Any:
    return PairEmbedder(dimension=256).queries(["plan"])[0]


def test_what_no_page_has_is_named_and_only_what_may_be_seen(tmp_path: Path, database: str) -> None:
    generation, store = both(tmp_path, database, wiki())
    with store.opening() as opened, opened.now() as index:
        for filters in (Filters(spaces=("XX",), viewer=()), Filters(labels=("none",)), Filters(since="soon"),
                        Filters(since="2031-01-01")):  # fmt: skip
            ours, theirs = said(index, filters), said(generation, filters)
            assert (type(ours), str(ours)) == (type(theirs), str(theirs))


def said(index: Any, filters: Filters) -> SlmError:
    with pytest.raises(SlmError) as raised:
        search(index, PairEmbedder(dimension=256), "plan", filters=filters)
    return raised.value


def test_added_changed_moved_and_removed_documents_answer_as_they_are_now(database: str) -> None:
    store, embedder = Database(with_index(database, "i")), PairEmbedder()
    pages = [page("a.md", "apples are red"), page("b.md", "plums are blue"), page("c.md", "figs are green")]
    assert store.add(pages, embedder).added == 3
    with store.opening() as opened:
        change = store.add([page("a.md", "apples are yellow"), pages[1]], embedder)
        assert (change.added, change.replaced, change.unchanged, change.chunks) == (0, 1, 1, 3)
        with opened.now() as index:
            texts = {chunk.source: chunk.text for chunk in index.chunks}
        assert texts == {"a.md": "apples are yellow", "b.md": "plums are blue", "c.md": "figs are green"}
        assert store.remove(["b.md"]) == ["b.md"]
        embedded = len(embedder.embedded)
        told = Told("r", {"kind": "files"}, gone={"c.md": "it moved"})
        assert store.add([page("d.md", "figs are green")], embedder, seen=told).moved == 1
        assert len(embedder.embedded) == embedded  # its vectors went with it
        with opened.now() as index:
            assert {c.source: c.text for c in index.chunks} == {"a.md": "apples are yellow", "d.md": "figs are green"}
            hits = search(index, embedder, "plums blue", 5)
            assert "b.md" not in {index.chunks[hit.row].source for hit in hits}
            sums = index.centres
        assert store.held().sources == {"r": {"kind": "files"}}
    again = Database(with_index(database, "anew"))
    again.add([page("a.md", "apples are yellow"), page("d.md", "figs are green")], PairEmbedder())
    with again.opening() as opened, opened.now() as index:
        np.testing.assert_allclose(index.centres.means, sums.means, atol=1e-6)
    with pytest.raises(UnknownNameError, match=r"unknown document 'b\.md'"):
        store.remove(["b.md"])


def test_only_changed_chunks_of_a_page_are_embedded_again(database: str) -> None:
    store, embedder = Database(with_index(database, "i")), PairEmbedder()
    sections = tuple(Section((f"Part {n}",), f"text number {n} " * 12) for n in range(5))
    store.add([Document("T", "a.md", "en", sections)], embedder)
    before = len(embedder.embedded)
    store.add([Document("T", "a.md", "en", (*sections[:4], Section(("Part 4",), "other words")))], embedder)
    assert embedder.embedded[before:] == ["T > Part 4\nother words"]


def test_a_fresh_index_takes_the_place_of_the_old_one_in_one_step(database: str) -> None:
    store = Database(with_index(database, "i"))
    store.add([page("a.md", "old"), page("b.md", "old too")], PairEmbedder())

    class Looking(PairEmbedder):
        def passages(self, texts: Any) -> Any:
            seen.append(sorted(store.held().documents))
            return super().passages(texts)

    seen: list[list[str]] = []
    store.add([page("c.md", "new")], Looking("other", 32), fresh=True)
    assert seen == [["a.md", "b.md"]]
    assert sorted(store.held().documents) == ["c.md"] and store.held().made_with["dimension"] == 32

    class Dying(PairEmbedder):
        def passages(self, texts: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add([page("d.md", "newer")], Dying(), fresh=True)
    assert sorted(store.held().documents) == ["c.md"]
    with psycopg.connect(database, autocommit=True) as direct:  # until the server has seen that it is gone
        while direct.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() != (0,):
            time.sleep(0.01)
    store.add([page("e.md", "newest")], PairEmbedder(), fresh=True)
    with psycopg.connect(database) as direct:  # what was broken off is swept away
        assert direct.execute("SELECT count(*) FROM slm.indexes").fetchone() == (1,)


def test_a_run_that_is_broken_off_keeps_whole_documents_and_the_next_goes_on(database: str) -> None:
    store = Database(with_index(database, "i"))
    pages = [page(f"{n}.md", f"text {n} " * 40) for n in range(200)]

    class Dying(PairEmbedder):
        def passages(self, texts: Any) -> Any:
            if len(self.embedded) > 100:
                raise KeyboardInterrupt
            return super().passages(texts)

    with pytest.raises(KeyboardInterrupt):
        store.add(pages, Dying())
    with store.opening() as opened, opened.now() as index:
        kept = set(index.documents)
        assert 0 < len(kept) < 200 and {chunk.source for chunk in index.chunks} == kept
    embedder = PairEmbedder()
    change = store.add(pages, embedder)
    assert (change.added, change.unchanged) == (200 - len(kept), len(kept))
    assert not any(f"text {n.removesuffix('.md')} " in text for n in kept for text in embedder.embedded)


def test_an_index_goes_to_the_other_store_and_back_without_embedding(tmp_path: Path, database: str) -> None:
    generation, _ = both(tmp_path, database, wiki())
    there = Database(with_index(database, "copied"))
    with FileStore(tmp_path / "files").contents() as contents:
        assert there.fill(contents) == 24
    back = FileStore(tmp_path / "back")
    with there.contents() as contents:
        assert back.fill(contents) == 24
    returned = open_generation(tmp_path / "back")
    assert returned.documents == generation.documents and returned.made_with == generation.made_with
    ours = {(c.source, c.text): generation.vector(row).tobytes() for row, c in enumerate(generation.chunks)}
    assert {(c.source, c.text): returned.vector(row).tobytes() for row, c in enumerate(returned.chunks)} == ours
    with there.opening() as opened, opened.now() as index:
        for filters in FILTERS:
            same = found(generation, "plan 7 計画", filters=filters)
            assert found(returned, "plan 7 計画", filters=filters) == same
            assert_same(found(index, "plan 7 計画", filters=filters), same, filters)
    for target in (there, back):
        with FileStore(tmp_path / "files").contents() as contents, pytest.raises(InputError, match="already"):
            target.fill(contents)


def test_texts_that_the_database_cannot_hold_come_back_as_they_were(database: str) -> None:
    odd = "a\x00b C:\\dir \\u0041 \\"
    assert unstored(stored(odd + "\udc80")) == odd + "\udc80" and "\x00" not in stored(odd)
    store = Database(with_index(database, "i"))
    meta = Meta(id="1", space="S\x00\\", labels=("l\udc80",), restrictions=(("user:\x00",),))
    store.add([Document("T" + odd, "f\udcff\\.md", "en", (Section((odd,), f"text {odd} end"),), meta)], PairEmbedder())
    with store.opening() as opened, opened.now() as index:
        (chunk,) = index.chunks
        assert (chunk.source, chunk.text, chunk.headings) == ("f\udcff\\.md", f"text {odd} end", (odd,))
        filters = Filters(spaces=("s\x00\\",), labels=("l\udc80",), viewer=("user:\x00",))
        assert len(search(index, PairEmbedder(), "text", filters=filters)) == 1
    assert store.held().documents["f\udcff\\.md"]["meta"]["restrictions"] == [["user:\x00"]]


def test_writers_and_readers_together_lose_and_double_nothing(database: str) -> None:
    url, faults = with_index(database, "i"), list[object]()
    Database(url).add([page("start.md", "a start")], PairEmbedder())
    done = threading.Event()
    last: dict[str, str] = {}

    def write(number: int) -> None:
        try:
            store = Database(url)
            for turn in range(24):
                source = f"{number}-{turn % 6}.md"
                text = f"page {source} in turn {turn}"
                store.add(
                    [page(source, text), page("shared.md", f"page shared.md by {number} in turn {turn}")],
                    PairEmbedder(),
                )
                last[source] = text
                if turn % 5 == 4:
                    store.remove([source])
                    last[source] = ""
        except BaseException as error:
            faults.append(error)

    def read() -> None:
        try:
            with Database(url).opening() as opened:
                while not done.is_set():
                    with opened.now() as index:
                        hits = search(index, PairEmbedder(), "page in turn 3", 5)
                        sources = [index.chunks[hit.row].source for hit in hits]
                        texts = [index.chunks[hit.row].text for hit in hits]
                        every = list(index.documents)
                    if any(s != "start.md" and f"page {s}" not in t for s, t in zip(sources, texts, strict=True)):
                        faults.append((sources, texts))
                    if len(set(every)) != len(every):
                        faults.append(every)
        except BaseException as error:
            faults.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert faults == []
    with Database(url).opening() as opened, opened.now() as index:
        held = [(chunk.source, chunk.text) for chunk in index.chunks]
    assert len(held) == len({source for source, _ in held})
    wanted = {source: text for source, text in last.items() if text}
    assert {s: t for s, t in held if s not in ("start.md", "shared.md")} == wanted
    assert "shared.md" in dict(held)


def test_words_are_merged_as_they_become_many_and_say_the_same(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.stores.postgres.database.PIECES", 4)
    _, store = both(tmp_path, database, wiki())
    with psycopg.connect(database) as direct:
        row = direct.execute("SELECT count(*), sum(texts) FROM slm.words").fetchone()
        assert row is not None and row[0] <= 6 and row[1] == 24
    for source in [f"w/{n}.md" for n in range(0, 24, 2)]:
        store.remove([source])
    store.add(wiki()[:1], PairEmbedder(dimension=256))
    add_documents(tmp_path / "rest", [p for n, p in enumerate(wiki()) if n % 2 or not n], PairEmbedder(dimension=256))
    with store.opening() as opened, opened.now() as index:
        query = "plan number 7 計画"
        assert found(index, query, "lexical") == found(open_generation(tmp_path / "rest"), query, "lexical")
    assert [words.group_of(sizes) for sizes in ([], [5], [8, 1], [1, 1], [20, 4, 2, 1, 1])] == [0, 1, 1, 2, 4]
