"""An index in PostgreSQL: the same answers as from files, a transaction a document, and clear errors. A real server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import psycopg
import pytest
from click.testing import CliRunner

from rag.answer.retriever import open_retriever
from rag.document import Document, Meta, Section
from rag.index.change.planned import Told
from rag.index.retrieve import LEGS, search
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.questions import read_questions
from rag.sources.files import read_files
from rag.stores.files import FileStore
from rag.stores.postgres import connection, graph, words
from rag.stores.postgres.database import Database
from rag.stores.postgres.schema import STEPS
from rag.stores.postgres.spelling import stored, unstored
from slm.errors import InputError, MismatchError, ResourceError, SlmError, UnknownNameError, UnsupportedError
from slm.joints import EVERYTHING, Filters
from slm_cli import cli
from tests.own_postgres import as_user, database, in_database, postgres, with_index
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
    return sorted(
        ((index.chunks[hit.row].source, index.chunks[hit.row].text, round(hit.score, 4)) for hit in hits),
        key=lambda row: (-row[2], row[0]),
    )


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
                    assert found(index, query, leg, filters) == found(generation, query, leg, filters), (filters, leg)
            assert index.facets.languages_of(filters) == generation.facets.languages_of(filters)
        near = {
            lang: pytest.approx(value, abs=1e-5) for lang, value in generation.centres.nearness(one_vector()).items()
        }
        assert index.centres.nearness(one_vector()) == near


def test_both_stores_answer_the_development_questions_alike(tmp_path: Path, database: str) -> None:
    organisation = ROOT / "data/reading/development/depot"
    documents = read_files([organisation / "en", organisation / "ja"]).documents
    generation, store = both(tmp_path, database, documents)
    questions = read_questions(organisation / "questions.jsonl")[::12]
    assert len(questions) >= 8
    with store.opening() as opened, opened.now() as index:
        for asked in questions:
            ours = [(source, text) for source, text, _ in found(index, asked.question)]
            assert ours == [(source, text) for source, text, _ in found(generation, asked.question)], asked.question


def one_vector() -> Any:
    return PairEmbedder(dimension=256).queries(["plan"])[0]


def test_what_no_page_has_is_named_and_only_what_may_be_seen(tmp_path: Path, database: str) -> None:
    generation, store = both(tmp_path, database, wiki())
    with store.opening() as opened, opened.now() as index:
        for filters in (Filters(spaces=("XX",), viewer=()), Filters(labels=("none",)), Filters(since="soon"),
                        Filters(since="2031-01-01")):  # fmt: skip
            with pytest.raises(SlmError) as ours, pytest.raises(type(said(generation, filters))):
                found(index, "plan", filters=filters)
            assert str(said(index, filters)) == str(said(generation, filters)), ours


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
            assert (
                found(index, "plan 7 計画", filters=filters) == same == found(returned, "plan 7 計画", filters=filters)
            )
    for target in (there, back):
        with FileStore(tmp_path / "files").contents() as contents, pytest.raises(InputError, match="already"):
            target.fill(contents)


def test_texts_that_the_database_cannot_hold_come_back_as_they_were(database: str) -> None:
    odd = "a\x00b \udc80 C:\\dir \\u0041 \\"
    assert unstored(stored(odd)) == odd and "\x00" not in stored(odd)
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
    assert [words.group_of(sizes) for sizes in ([], [5], [8, 1], [1, 1], [9, 4, 2, 1, 1])] == [0, 1, 1, 2, 4]


@pytest.mark.parametrize("steps", [1])
def test_tables_of_the_first_version_are_brought_to_this_one(
    database: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Database(with_index(database, "i"))
    with monkeypatch.context() as patched:
        patched.setattr("rag.stores.postgres.schema.STEPS", STEPS[:steps])
        store.add([page("a.md", "apples are red")], PairEmbedder())
    with psycopg.connect(database) as direct:
        assert direct.execute("SELECT max(version) FROM slm.migrations").fetchone() == (steps,)
    with store.opening() as opened, opened.now() as index:  # a reader needs no right to change tables
        assert [chunk.text for chunk in index.chunks] == ["apples are red"]
    store.add([page("b.md", "plums are blue")], PairEmbedder())
    with psycopg.connect(database) as direct:
        assert direct.execute("SELECT max(version) FROM slm.migrations").fetchone() == (len(STEPS),)
        assert direct.execute("SELECT to_regclass('slm.documents_version') IS NOT NULL").fetchone() == (True,)
        direct.execute("INSERT INTO slm.migrations (version) VALUES (99)")
    assert len(STEPS) > steps
    for act in (store.held, lambda: store.add([page("c.md", "c")], PairEmbedder())):
        with pytest.raises(UnsupportedError, match="newer version"):
            act()


def test_an_index_of_another_embedder_is_refused_and_nothing_written(database: str) -> None:
    store = Database(with_index(database, "i"))
    store.add([page("a.md", "apples")], PairEmbedder())
    with pytest.raises(MismatchError, match="another embedder"):
        store.add([page("b.md", "plums")], PairEmbedder("other"))
    assert list(store.held().documents) == ["a.md"]


def test_what_is_wrong_with_the_database_is_said(postgres: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(url: str) -> SlmError:
        with pytest.raises(SlmError) as raised:
            Database(url).add([page("a.md", "apples")], PairEmbedder())
        return raised.value

    gone = fails("postgresql://slm:s3cret@127.0.0.1:9/none?connect_timeout=2")
    assert isinstance(gone, ResourceError) and "cannot be reached" in gone.what
    assert "no such database" in fails(in_database(postgres, "not_there")).what
    with monkeypatch.context() as patched:
        patched.setattr(connection, "EXTENSION", "vector_that_is_not_there")
        without = fails(database)
    assert isinstance(without, UnsupportedError) and "has no pgvector" in without.what
    with pytest.raises(InputError, match="no name for an index"):
        Database(with_index(database, "a%20b"))
    unread = fails("postgresql://slm:s3cret@host/db?nonsense=1")
    assert isinstance(unread, InputError) and "cannot be read" in unread.what
    for error in (gone, without, unread):
        assert "s3cret" not in str(error)
    with pytest.raises(UnknownNameError, match="unknown index 'i'; known: none"):
        Database(with_index(database, "i")).held()
    with psycopg.connect(database) as direct:
        assert direct.execute("SELECT to_regclass('slm.indexes')").fetchone() == (None,)
        assert direct.execute("SELECT count(*) FROM pg_extension WHERE extname = 'vector'").fetchone() == (0,)


def test_who_may_only_read_reads_and_who_may_not_is_told(database: str) -> None:
    url = with_index(database, "i")
    user = "slm_reader_" + database.split("slm_test_")[1].split("?")[0]
    with psycopg.connect(database, autocommit=True) as direct:
        direct.execute(f"CREATE ROLE {user} LOGIN")
        try:
            with pytest.raises(InputError, match=r"may not create it|may not do that"):
                Database(as_user(url, user)).add([page("a.md", "apples")], PairEmbedder())
            assert direct.execute("SELECT to_regnamespace('slm')").fetchone() == (None,)
            Database(url).add([page("a.md", "apples are red")], PairEmbedder())
            with pytest.raises(InputError, match="may not do that"):
                Database(as_user(url, user)).held()
            direct.execute(f"GRANT USAGE ON SCHEMA slm TO {user}")
            direct.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA slm TO {user}")
            with Database(as_user(url, user)).opening() as opened, opened.now() as index:
                assert [chunk.text for chunk in index.chunks] == ["apples are red"]
            with pytest.raises(InputError, match="may not do that"):
                Database(as_user(url, user)).add([page("b.md", "plums")], PairEmbedder())
            assert list(Database(url).held().documents) == ["a.md"]
        finally:
            direct.execute(f"DROP OWNED BY {user}")
            direct.execute(f"DROP ROLE {user}")


def test_a_reader_goes_on_after_the_server_has_closed_its_connections(database: str) -> None:
    store = Database(with_index(database, "i"))
    store.add([page("a.md", "apples are red")], PairEmbedder())
    with store.opening() as opened:
        with psycopg.connect(database, autocommit=True) as direct:
            direct.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with opened.now() as index:
            assert [chunk.text for chunk in index.chunks] == ["apples are red"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=True)


def test_the_commands_take_an_address_and_never_show_its_password(
    database: str, handbook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.index.embed.open_embedder", lambda name="pairs": PairEmbedder())
    monkeypatch.setattr("rag.answer.retriever.open_embedder", lambda name="pairs": PairEmbedder())
    parts = urlsplit(database)
    secret = unquote(parts.password or "") or "s3cret/pass"  # a server that trusts everybody takes any
    url = as_user(with_index(database, "handbook"), parts.username or "postgres", secret)
    shown = []
    for arguments in (
        ("rag", "add", url, str(handbook)), ("rag", "add", url, str(handbook), "--json"), ("rag", "status", url),
        ("rag", "status", url, "--json"), ("rag", "search", url, "twenty days"), ("rag", "sync", url),
        ("rag", "sync", url, "--json"), ("rag", "questions", url), ("rag", "remove", url, "en/visitors.md", "--json"),
        ("rag", "copy", url, "there", "--json"), ("rag", "copy", "there", url + "2"), ("rag", "remove", url, "none.md"),
    ):  # fmt: skip
        result = run(*arguments)
        shown.append(result.output + str(result.exception or ""))
        expected = UnknownNameError if arguments[-1] == "none.md" else None
        assert result.exit_code == 0 or isinstance(result.exception, expected or ()), (arguments[:2], result.output)
    assert (
        json.loads(run("rag", "status", url, "--json").stdout)["chunks"]
        == json.loads(run("rag", "status", "there", "--json").stdout)["chunks"]
    )
    assert secret not in "".join(shown) and "s3cret" not in "".join(shown) and "index=handbook" in shown[0]
    assert "5 unchanged" in run("rag", "add", url + "2", str(handbook)).output


def test_a_chat_and_a_server_open_an_index_by_its_address(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = with_index(database, "i")
    store = Database(url)
    store.add([page("leave.md", "twenty days of leave", "Paid leave")], PairEmbedder())
    monkeypatch.setattr("rag.answer.retriever.open_embedder", lambda name: PairEmbedder())
    with open_retriever(url) as retriever:
        assert retriever.search("leave")[0].text == "twenty days of leave"
        store.add([page("leave.md", "thirty days of leave", "Paid leave")], PairEmbedder())
        assert [one.text for one in retriever.grounded("leave").passages] == ["thirty days of leave"]


def test_without_the_driver_the_extra_is_named_and_nothing_else_needs_it(slm: Callable[..., Any]) -> None:
    code = (
        "import sys\nsys.modules['psycopg'] = None\nfrom slm_cli import main\n"
        "sys.argv = ['slm', 'rag', 'search', sys.argv[1], 'x']\nmain()"
    )
    for index, expected in (("postgresql://u:s3cret@h/d", "'.[postgres]'"), ("none", "unknown index 'none'")):
        result = subprocess.run([sys.executable, "-c", code, index], capture_output=True, text=True)
        assert result.returncode == 1 and expected in result.stderr and "s3cret" not in result.stderr
