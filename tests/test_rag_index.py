"""Lexical search, and the index on disk: replaced, removed from, broken off, damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.document import Document, Section
from rag.index.chunk import Chunk
from rag.index.generation import current as current_module
from rag.index.generation.postings import load_postings
from rag.index.lexical.bm25 import open_bm25
from rag.index.lexical.pairs import terms_of
from rag.index.names import index_path
from rag.index.retrieve import search
from rag.index.store import Generation, open_generation
from rag.index.update import add_documents, check_embedder, remove_documents
from rag.index.variants import comparable
from slm.errors import InputError, MismatchError, ResourceError, UnknownNameError
from tests.tiny_rag import PairEmbedder, build_bm25, own_home, page

__all__ = ["own_home"]  # a fixture


# Lexical search


def test_japanese_becomes_pairs_and_latin_words_stay_whole() -> None:
    assert terms_of("有給休暇のPDFをダウンロード") == [
        "有給", "給休", "休暇", "暇の", "pdf", "をダ", "ダウ", "ウン", "ンロ", "ロー", "ード",
    ]  # fmt: skip
    assert terms_of("The company's IT-desk doesn't work") == ["the", "company", "it", "desk", "doesn't", "work"]


def test_two_character_words_are_found_inside_longer_ones() -> None:
    index = build_bm25(["年次有給休暇の申請", "会議室の予約", "経費の精算"])
    assert [row for row, _ in index.top("休暇", 5)] == [0]
    assert [row for row, _ in index.top("会議", 5)] == [1]
    assert [row for row, _ in index.top("費", 5)] == [2]
    assert index.top("天気", 5) == []


def test_widths_and_case_do_not_matter() -> None:
    index = build_bm25(["ﾊﾟｿｺﾝとＷｉＦｉの設定", "other text"])
    assert [row for row, _ in index.top("パソコン", 5)] == [0]
    assert [row for row, _ in index.top("WIFI", 5)] == [0]


def test_bm25_is_the_formula() -> None:
    index = build_bm25(["apple apple pear", "pear plum", "plum plum plum plum"])
    lengths, average = [3, 2, 4], 3.0
    idf = np.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 * 2.2 / (2 + 1.2 * (1 - 0.75 + 0.75 * lengths[0] / average))
    assert index.scores("apple")[0] == pytest.approx(expected, rel=1e-6)
    assert index.scores("apple")[1:].tolist() == [0, 0]


def test_the_lexical_index_survives_the_disk_and_damage_is_found(tmp_path: Path) -> None:
    index = build_bm25(["apple pear", "休暇の申請", "plum"])
    ((postings, rows),) = index.parts
    postings.save(tmp_path)
    again = open_bm25([(load_postings(tmp_path), rows)], 3, terms_of)
    assert np.array_equal(again.scores("apple 休暇 暇"), index.scores("apple 休暇 暇")) and again.scores("暇")[1] > 0
    np.save(tmp_path / "starts.npy", postings.starts[:-1])
    with pytest.raises(ValueError, match="fit together"):
        load_postings(tmp_path)


# The index on disk


def vectors_by_source(generation: Generation) -> dict[str, Any]:
    return {chunk.source: generation.vector(row) for row, chunk in enumerate(generation.chunks)}


def test_an_index_round_trips_through_the_disk(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    documents = [page("a.md", "apples and pears"), page("b.md", "有給休暇の申請", lang="ja")]
    change = add_documents(tmp_path / "i", documents, embedder)
    generation = open_generation(tmp_path / "i")
    assert (change.added, change.replaced, change.unchanged, change.chunks) == (2, 0, 0, 2)
    assert generation.chunks[1] == Chunk("Page", ("Heading",), "有給休暇の申請", "b.md", "ja", 0, "Page > Heading")
    assert np.allclose(vectors_by_source(generation)["a.md"], embedder.queries(["Page > Heading\napples and pears"])[0])
    assert generation.documents["b.md"]["chunks"] == 1


def test_vectors_and_words_are_of_the_same_text_however_long_the_headings(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    long = tuple(f"heading {n} " + "word " * 30 for n in range(4))
    sections = (Section(long, "apples"), Section((*long, "pears"), "plums"), Section((), "figs"))
    documents = [Document("有給休暇" * 40, "a.md", "ja", sections), page("b.md", "令和6年の申請")]
    add_documents(tmp_path / "i", documents, embedder)
    generation = open_generation(tmp_path / "i")
    texts = [chunk.indexed_text for chunk in generation.chunks]
    assert embedder.embedded == [comparable(text) for text in texts]
    assert np.array_equal(
        generation.lexical.scores("word 休暇 apples 2024年"), build_bm25(texts).scores("word 休暇 apples 2024年")
    )
    for word in ("apples", "heading 3", "pears", "plums", "figs"):
        assert generation.lexical.top(word, 1), word


def test_a_document_with_a_known_source_is_replaced_and_an_unchanged_one_not_embedded_again(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    add_documents(tmp_path / "i", [page("a.md", "apples"), page("b.md", "pears")], embedder)
    embedder.embedded.clear()
    change = add_documents(
        tmp_path / "i", [page("a.md", "plums"), page("b.md", "pears"), page("c.md", "figs")], embedder
    )
    assert (change.added, change.replaced, change.unchanged, change.chunks) == (1, 1, 1, 3)
    assert embedder.embedded == ["Page > Heading\nplums", "Page > Heading\nfigs"]
    generation = open_generation(tmp_path / "i")
    assert sorted(chunk.text for chunk in generation.chunks) == ["figs", "pears", "plums"]
    for source, word in [("a.md", "plums"), ("b.md", "pears"), ("c.md", "figs")]:
        hit = search(generation, embedder, f"Page > Heading\n{word}", 1, "dense")[0]
        own = embedder.queries([f"Page > Heading\n{word}"])[0]
        assert generation.chunks[hit.row].source == source
        assert generation.vector(hit.row) @ own == pytest.approx(1, abs=1e-5)
    assert search(generation, embedder, "apples", 5, "lexical") == []
    assert [p.name for p in (tmp_path / "i").glob("gen-*")] == ["gen-2"]


def test_documents_are_removed_by_the_end_of_their_path_and_unknown_ones_refused(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    documents = [page("/d/en/a.md", "apples"), page("/d/ja/a.md", "pears"), page("/d/ja/ba.md", "figs")]
    add_documents(tmp_path / "i", documents, embedder)
    with pytest.raises(UnknownNameError, match="/d/en/a"):
        remove_documents(tmp_path / "i", ["ja/a.md", "nothing.md"])
    assert len(open_generation(tmp_path / "i").chunks) == 3
    with pytest.raises(InputError, match=r"names 2 .*nothing was removed.*/d/en/a.md, /d/ja/a.md.*--all"):
        remove_documents(tmp_path / "i", ["a.md"])
    assert len(open_generation(tmp_path / "i").chunks) == 3
    assert remove_documents(tmp_path / "i", ["a.md"], every=True) == ["/d/en/a.md", "/d/ja/a.md"]
    generation = open_generation(tmp_path / "i")
    assert list(generation.documents) == ["/d/ja/ba.md"]
    remove_documents(tmp_path / "i", ["ba.md"])
    with pytest.raises(InputError, match="holds no documents"):
        search(open_generation(tmp_path / "i"), embedder, "figs")


def test_a_crash_before_the_pointer_is_swapped_leaves_the_old_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = PairEmbedder()
    add_documents(tmp_path / "i", [page("a.md", "apples")], embedder)

    def crash(path: Path) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(current_module, "new_file", crash)
        with pytest.raises(KeyboardInterrupt):
            add_documents(tmp_path / "i", [page("b.md", "pears")], embedder)
    assert [chunk.text for chunk in open_generation(tmp_path / "i").chunks] == ["apples"]
    add_documents(tmp_path / "i", [page("c.md", "figs")], embedder)
    assert [chunk.text for chunk in open_generation(tmp_path / "i").chunks] == ["apples", "figs"]


def test_a_second_writer_is_turned_away(tmp_path: Path) -> None:
    class Nested(PairEmbedder):
        def passages(self, texts: Sequence[str]) -> Any:
            with pytest.raises(ResourceError, match="another process"):
                add_documents(tmp_path / "i", [page("b.md", "pears")], PairEmbedder())
            return super().passages(texts)

    add_documents(tmp_path / "i", [page("a.md", "apples")], Nested())
    assert list(open_generation(tmp_path / "i").documents) == ["a.md"]


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    add_documents(tmp_path / "i", [page("a.md", "apples")], PairEmbedder())
    other = PairEmbedder("others", 32)
    with pytest.raises(MismatchError, match="name, dimension"):
        add_documents(tmp_path / "i", [page("b.md", "pears")], other)
    with pytest.raises(MismatchError):
        check_embedder(open_generation(tmp_path / "i"), other)
    assert list(open_generation(tmp_path / "i").documents) == ["a.md"]


def test_index_names_live_in_the_data_folder_and_paths_where_they_say(tmp_path: Path, own_home: Path) -> None:
    assert index_path("handbook") == own_home / "indexes" / "handbook"
    assert index_path(str(tmp_path / "x")) == tmp_path / "x"
    with pytest.raises(InputError):
        index_path("a b")
    add_documents(index_path("known"), [page("a.md", "apples")], PairEmbedder())
    with pytest.raises(UnknownNameError, match=r"unknown index 'other'; known: known.*slm rag add"):
        open_generation(index_path("other"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file.txt").write_text("mine")
    with pytest.raises(InputError, match="not an index"):
        add_documents(tmp_path / "mine", [page("a.md", "apples")], PairEmbedder())
