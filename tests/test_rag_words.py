"""Words of Sudachi's dictionary beside character pairs: what they find, and that an index has one kind for good."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from rag.cli.rag import rag
from rag.document import Document
from rag.health import index_states
from rag.index.change.planned import AddOptions
from rag.index.lexical import terms
from rag.index.lexical.pairs import HAS_PAIRS, terms_of
from rag.index.lexical.sudachi import SudachiTerms
from rag.index.lexical.terms import PAIRS, Wording, installed, kept_wording
from rag.index.retrieve import search
from rag.index.store import Generation, open_generation, open_inventory
from rag.index.update import add_documents, remove_documents
from rag.stores.files import FileStore
from rag.stores.named import open_store
from rag.stores.postgres.database import Database
from slm.errors import InputError, MismatchError, MissingExtraError, UnknownNameError, UnsupportedError
from tests.own_postgres import database, postgres, with_index
from tests.tiny_rag import PairEmbedder, build_bm25, own_home, page

__all__ = ["database", "own_home", "postgres"]
WORDS = AddOptions(words="sudachi")
# 打合せ and 打ち合わせ share no pair of characters; the other page shares one with the question.
MEETING, OTHER = "打合せは来客用の打合せ室で", "打ち上げの会場は三階の広間"
QUESTION = "打ち合わせ"


@pytest.fixture(scope="module")
def words() -> SudachiTerms:
    return SudachiTerms()


def ja(source: str, text: str) -> Document:
    return page(source, text, "資料", "ja")


def of_words(found: list[str]) -> list[str]:
    return [term.removeprefix("\x1fw") for term in found if term.startswith("\x1fw")]


def test_words_stand_behind_the_pairs_in_one_form_and_without_particles(words: SudachiTerms) -> None:
    text = "就業規則で定められた有給休暇を、Wi-Fiの打合せで見積る。"
    assert words(text)[: len(terms_of(text))] == terms_of(text)
    assert of_words(words(text)) == ["就業", "規則", "定める", "有給", "休暇", "打ち合わせ", "見積もる"]
    assert words("The IT-desk, 2024-04-01") == terms_of("The IT-desk, 2024-04-01")
    # Nothing that pairs are made of looks like a word, and no word like a pair or a single character.
    assert all(len(term) > 2 for term in words("人は木") if not HAS_PAIRS.match(term))


def test_a_word_written_otherwise_is_found_where_pairs_prefer_another_page(words: SudachiTerms) -> None:
    texts = [OTHER, MEETING, "会議室の予約"]
    assert build_bm25(texts).top(QUESTION, 1)[0][0] == 0
    assert build_bm25(texts, words).top(QUESTION, 1)[0][0] == 1
    # An inflected form, whose stem alone is no pair.
    texts = ["休みを取らずに残業する", "早く着いたら鍵を借りる", "着物の着方"]
    assert build_bm25(texts).top("会社に着く", 3) == []
    assert [row for row, _ in build_bm25(texts, words).top("会社に着く", 3)] == [1]


def test_a_text_of_any_length_is_read_in_time_in_proportion(words: SudachiTerms) -> None:
    """SudachiPy itself refuses more than 49,149 bytes at a time."""
    for unit in ("有給休暇を申請する", "ア", "人", "ー", "𠮷"):
        taken = []
        for length in (5_000, 20_000):
            begun = time.process_time()
            found = words(unit * (length // len(unit)))
            taken.append(time.process_time() - begun)
            assert found
        assert taken[1] < 9 * taken[0] + 0.05, (unit, taken)
    assert of_words(words("休暇" * 9_000)).count("休暇") > 8_900


def test_threads_take_turns(words: SudachiTerms) -> None:
    expected, found = words(MEETING * 50), []
    threads = [threading.Thread(target=lambda: found.append(words(MEETING * 50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def best(index: Path | Generation, question: str = QUESTION) -> str:
    generation = open_generation(index) if isinstance(index, Path) else index
    return generation.chunks.source(search(generation, PairEmbedder(), question, 1, "lexical")[0].row)


def pages() -> list[Document]:
    return [ja("other.md", OTHER), ja("meeting.md", MEETING), ja("room.md", "会議室の予約")]


def test_an_index_keeps_its_words_through_changes(tmp_path: Path) -> None:
    path = tmp_path / "i"
    add_documents(path, pages(), PairEmbedder(), options=WORDS)
    assert kept_wording(open_inventory(path).words) == installed("sudachi") != PAIRS
    assert "20261015" in installed("sudachi").made_by and best(path) == "meeting.md"
    held = FileStore(path)
    with held.opening() as opened:
        # Nobody says it again.
        add_documents(path, [ja("late.md", "打合わせ、打合わせ、打合わせ")], PairEmbedder())
        with opened.now() as now:
            assert best(now) == "late.md"
        add_documents(path, [ja("late.md", "駐車場")], PairEmbedder())
        with opened.now() as now:
            assert best(now) == "meeting.md"
        remove_documents(path, ["meeting.md"])
        with opened.now() as now:
            assert best(now) == "other.md"
    assert kept_wording(open_inventory(path).words) == installed("sudachi")
    # Parts of both ages are one whole: the same scores as if all had been made at once.
    add_documents(tmp_path / "j", [ja("other.md", OTHER), ja("room.md", "会議室の予約"),
                                   ja("late.md", "駐車場")], PairEmbedder(), options=WORDS)  # fmt: skip
    scores = [sorted(open_generation(p).lexical.scores("打ち合わせの予約").tolist()) for p in (path, tmp_path / "j")]
    assert scores[0] == pytest.approx(scores[1])


def test_a_copy_has_the_words_of_its_index_or_those_asked_for(tmp_path: Path) -> None:
    add_documents(tmp_path / "i", pages(), PairEmbedder(), options=WORDS)
    for name, asked, kind in (("same", None, "sudachi"), ("pairs", "pairs", "pairs")):
        with FileStore(tmp_path / "i").contents() as contents:
            FileStore(tmp_path / name, asked).fill(contents)
        assert kept_wording(open_inventory(tmp_path / name).words).kind == kind
    assert [best(tmp_path / name) for name in ("same", "pairs")] == ["meeting.md", "other.md"]


def test_another_kind_for_an_index_that_is_there_is_refused_with_the_command(own_home: Path) -> None:
    path = own_home / "indexes" / "handbook"
    add_documents(path, pages(), PairEmbedder())
    with pytest.raises(
        MismatchError, match=r"'handbook' was made with --words pairs, not sudachi.*--words sudachi --f"
    ):
        add_documents(path, pages(), PairEmbedder(), options=WORDS)
    add_documents(path, pages(), PairEmbedder(), fresh=True, options=WORDS)
    assert best(path) == "meeting.md"
    with pytest.raises(MismatchError, match=r"--words sudachi, not pairs.*--words pairs --fresh"):
        add_documents(path, pages(), PairEmbedder(), options=AddOptions(words="pairs"))
    with pytest.raises(UnknownNameError, match="pairs, sudachi"):
        open_store("handbook", "mecab")
    with pytest.raises(UnsupportedError, match="newer"):
        kept_wording({"kind": "mecab", "made_by": ""})


def test_another_dictionary_answers_with_a_note_and_adds_nothing(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_home / "indexes" / "handbook"
    add_documents(path, pages(), PairEmbedder(), options=WORDS)
    version = importlib.metadata.version
    newer = {"sudachidict_core": "20271015"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: newer.get(name) or version(name))
    assert best(path) == best(path) == "meeting.md"
    assert capsys.readouterr().err.count("20271015") == 1
    with pytest.raises(MismatchError, match=r"other versions.*20261015.*20271015.*--words sudachi --fresh"):
        add_documents(path, [ja("new.md", "新しい")], PairEmbedder())
    assert remove_documents(path, ["room.md"]) == ["room.md"]
    monkeypatch.setattr("rag.health.embedder_revision", lambda name: "1")
    (state,) = index_states()
    assert "20271015" in state.problem and "--words sudachi --fresh" in state.mend
    # A copy finds its words anew.
    with FileStore(path).contents() as contents:
        FileStore(own_home / "indexes" / "copy").fill(contents)
    assert "20271015" in json.dumps(open_inventory(own_home / "indexes" / "copy").words)


def test_without_the_extra_the_package_and_the_command_are_named(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_home / "indexes" / "handbook"
    add_documents(path, pages(), PairEmbedder(), options=WORDS)
    add_documents(own_home / "indexes" / "plain", pages(), PairEmbedder())

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "sudachipy", None)
    terms._opened.cache_clear()
    said = r"the index 'handbook', made with --words sudachi, needs the package 'sudachi.*pip install.*\[sudachi\]"
    with pytest.raises(MissingExtraError, match=said):
        open_generation(path)
    with pytest.raises(MissingExtraError, match=said):
        add_documents(path, [ja("new.md", "新しい")], PairEmbedder())
    with pytest.raises(MissingExtraError, match=r"--words sudachi needs .*\[sudachi\]"):
        open_store("new", "sudachi")
    monkeypatch.setattr("rag.health.embedder_revision", lambda name: "1")
    assert [("sudachi" in state.mend, state.name) for state in index_states()] == [(True, "handbook"), (False, "plain")]
    assert best(own_home / "indexes" / "plain") == "other.md"
    assert remove_documents(path, ["room.md"]) == ["room.md"]


def test_a_command_says_it_once(own_home: Path, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    for number, text in enumerate((OTHER, MEETING, "会議室の予約"), start=1):
        (tmp_path / "pages" / f"{number}.md").write_text(f"# 資料\n\n{text}\n", encoding="utf-8")

    def run(*args: str) -> str:
        result = CliRunner().invoke(rag, list(args), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    run("add", "wiki", str(tmp_path / "pages"), "--words", "sudachi")
    (tmp_path / "pages" / "4.md").write_text("# 資料\n\n駐車場\n", encoding="utf-8")
    run("add", "wiki", str(tmp_path / "pages"))
    (tmp_path / "pages" / "4.md").unlink()
    assert "1 gone" in run("sync", "wiki")
    assert "words     sudachi [sudachidict_core" in run("status", "wiki")
    run("copy", "wiki", "plain", "--words", "pairs")
    assert "words" not in run("status", "plain")
    with pytest.raises(MismatchError, match=rf"rag add wiki {tmp_path / 'pages'} --words pairs --fresh"):
        run("add", "wiki", str(tmp_path / "pages"), "--words", "pairs")
    assert "2.md" in run("search", "wiki", QUESTION, "-k", "1")


def test_a_manifest_of_another_kind_of_words_is_damage_or_news(tmp_path: Path) -> None:
    path = tmp_path / "i"
    add_documents(path, pages(), PairEmbedder())
    file = path / "gen-1" / "manifest.json"
    told = json.loads(file.read_text())
    for words, error in (({"kind": 1, "made_by": ""}, InputError), ({"kind": "mecab", "made_by": ""}, InputError)):
        file.write_text(json.dumps({**told, "words": words}))
        with pytest.raises(error):
            open_generation(path)
    del told["words"]
    file.write_text(json.dumps(told))
    assert kept_wording(open_inventory(path).words) == PAIRS and best(path) == "other.md"


def test_a_database_keeps_the_words_and_copies_them(tmp_path: Path, database: str) -> None:
    url = with_index(database, "words")
    store = Database(url, "sudachi")
    store.add(pages(), PairEmbedder())
    assert store.held().words == installed("sudachi") and store.status()["words"] == installed("sudachi").as_dict()

    def found() -> str:
        with Database(url).opening() as opened, opened.now() as now:
            return now.chunks.source(search(now, PairEmbedder(), QUESTION, 1, "lexical")[0].row)

    assert found() == "meeting.md"
    again = Database(url)
    again.add([ja("late.md", "打合わせ、打合わせ、打合わせ")], PairEmbedder())
    assert found() == "late.md"
    again.remove(["late.md"])
    assert found() == "meeting.md"
    with pytest.raises(MismatchError, match=r"--words sudachi, not pairs.*--words pairs --fresh"):
        Database(url, "pairs").add(pages(), PairEmbedder())
    with again.contents() as contents:
        FileStore(tmp_path / "copy").fill(contents)
    assert best(tmp_path / "copy") == "meeting.md"
    with FileStore(tmp_path / "copy").contents() as contents:
        Database(with_index(database, "back")).fill(contents)
    assert Database(with_index(database, "back")).held().words == installed("sudachi")
    Database(url, "pairs").add(pages(), PairEmbedder(), fresh=True)
    assert found() == "other.md" and Database(url).held().words == PAIRS


def test_tables_without_the_column_are_read_as_of_pairs(database: str) -> None:
    import psycopg

    url = with_index(database, "older")
    Database(url).add(pages(), PairEmbedder())
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE slm.indexes DROP COLUMN words")
        connection.execute("DELETE FROM slm.migrations WHERE version = 3")
    with Database(url).opening() as opened, opened.now() as now:
        assert now.chunks.source(search(now, PairEmbedder(), QUESTION, 1, "lexical")[0].row) == "other.md"
    assert Database(url).held().words == PAIRS
    Database(url).add([ja("late.md", "打ち合わせ")], PairEmbedder())
    assert Database(url).held().words == PAIRS and Wording().as_dict() == {"kind": "pairs", "made_by": ""}
