"""What a name means: an index here or in the data folder, a document or a folder in an index."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from rag.index.names import documents_named, index_path, known_indexes, source_matches
from rag.index.store import open_generation
from rag.index.update import add_documents, remove_documents
from slm.errors import InputError, UnknownNameError
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["own_home"]  # a fixture

GUIDE = "ガイドブック.txt"
NFD = unicodedata.normalize("NFD", GUIDE)


def test_a_folder_with_the_name_of_an_index_does_not_shadow_it(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "a.md").write_text("apples")
    (tmp_path / "notes").write_text("a file")
    assert index_path("handbook") == own_home / "indexes" / "handbook"
    assert index_path("notes") == own_home / "indexes" / "notes"
    assert index_path("./handbook") == Path("handbook")
    add_documents(index_path("handbook"), [page("a.md", "apples")], PairEmbedder())
    assert len(open_generation(index_path("handbook")).chunks) == 1


def test_a_folder_that_is_an_index_is_meant_by_its_bare_name_unless_the_data_folder_has_one(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_documents(tmp_path / "mine", [page("a.md", "apples")], PairEmbedder())
    assert index_path("mine") == Path("mine")
    add_documents(own_home / "indexes" / "mine", [page("b.md", "pears")], PairEmbedder())
    assert index_path("mine") == own_home / "indexes" / "mine"


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a b", "a*"])
def test_what_is_neither_a_name_nor_a_path_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is no name for an index"):
        index_path(name)


def test_an_index_may_have_a_japanese_name_in_either_spelling(own_home: Path) -> None:
    add_documents(index_path("ガイド"), [page("a.md", "apples")], PairEmbedder())
    assert known_indexes() == ["ガイド"]
    assert index_path(unicodedata.normalize("NFD", "ガイド")) == index_path("ガイド")


def test_an_unknown_index_says_what_is_known_and_where_it_looked(own_home: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown index 'other'; known: none.*indexes/other.*slm rag add"):
        open_generation(index_path("other"))


def test_a_path_without_an_index_says_how_the_index_of_that_name_is_meant(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    add_documents(index_path("handbook"), [page("a.md", "apples")], PairEmbedder())
    with pytest.raises(UnknownNameError, match=r"'handbook' is a path.*by its name alone: handbook\."):
        open_generation(index_path("handbook/"))


SOURCES = ["/d/README.md", "/d/docs/README.md", "/d/docs/en/a.md", "/d/docs/en/b.md", "/d/ja/a.md", f"/d/{NFD}"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("/d/README.md", ["/d/README.md"]),
        ("docs/README.md", ["/d/docs/README.md"]),
        ("docs", ["/d/docs/README.md", "/d/docs/en/a.md", "/d/docs/en/b.md"]),
        ("docs/", ["/d/docs/README.md", "/d/docs/en/a.md", "/d/docs/en/b.md"]),
        ("docs/en", ["/d/docs/en/a.md", "/d/docs/en/b.md"]),
        ("/d/ja/", ["/d/ja/a.md"]),
        (GUIDE, [f"/d/{NFD}"]),
    ],
)
def test_a_name_is_a_whole_source_its_end_or_a_folder(name: str, meant: list[str]) -> None:
    assert documents_named(SOURCES, name) == meant


@pytest.mark.parametrize("name", ["README.md", "a.md"])
def test_a_name_of_several_documents_is_refused_and_they_are_listed(name: str) -> None:
    fitting = [source for source in SOURCES if source.endswith("/" + name)]
    with pytest.raises(InputError) as refusal:
        documents_named(SOURCES, name)
    assert all(source in str(refusal.value) for source in fitting) and "--all" in refusal.value.hint
    assert documents_named(SOURCES, name, every=True) == fitting


def test_a_name_of_several_folders_is_refused_with_the_number_of_documents_in_each() -> None:
    sources = ["/a/en/x.md", "/b/en/y.md", "/b/en/z.md"]
    with pytest.raises(InputError, match=r"/a/en \(1 documents\), /b/en \(2 documents\)"):
        documents_named(sources, "en")
    assert documents_named(sources, "en", every=True) == sources
    assert documents_named(sources, "b/en") == ["/b/en/y.md", "/b/en/z.md"]


@pytest.mark.parametrize("name", ["nothing.md", "DME.md", "do", "", " ", "e"])
def test_a_part_of_a_name_is_no_name_nor_is_an_empty_one_the_working_folder(name: str) -> None:
    with pytest.raises(UnknownNameError):
        documents_named([*SOURCES, f"{Path.cwd().as_posix()}/x.md"], name)


def test_a_path_from_the_working_folder_means_that_document_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = (tmp_path / "README.md").resolve().as_posix()
    assert documents_named([here, "/d/README.md"], "./README.md") == [here]


def test_a_document_is_found_and_removed_by_either_spelling_of_its_name(tmp_path: Path) -> None:
    assert source_matches(f"/d/{NFD}", GUIDE) and source_matches(f"/d/{GUIDE}", NFD)
    add_documents(tmp_path / "i", [page(f"/d/{NFD}", "apples"), page("/d/b.md", "pears")], PairEmbedder())
    assert remove_documents(tmp_path / "i", [GUIDE]) == [f"/d/{NFD}"]


def test_a_document_whose_name_is_written_otherwise_is_the_same_one_and_not_embedded_again(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    add_documents(tmp_path / "i", [page(f"/d/{NFD}", "apples")], embedder)
    embedder.embedded.clear()
    change = add_documents(tmp_path / "i", [page(f"/d/{GUIDE}", "apples")], embedder)
    assert (change.added, change.replaced, change.chunks, embedder.embedded) == (0, 1, 1, [])
    assert list(open_generation(tmp_path / "i").documents) == [f"/d/{GUIDE}"]
