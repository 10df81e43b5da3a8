"""The bench of retrieval, on small sizes: it measures what it says, and its parts can be chosen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rag.bench.run import PARTS, BenchOptions, bench_rag, measure_edit, measure_embedding, measure_queries
from rag.bench.synthetic import STAFF, SyntheticEmbedder, made_up_pages, made_up_queries
from rag.cli import bench as command
from rag.index.chunk import chunk_document
from rag.index.lexical.pairs import terms_of
from rag.index.store import open_generation
from rag.index.update import CHUNK_TOKENS, add_documents
from slm.errors import UnsupportedError
from tests.tiny_rag import own_home

__all__ = ["own_home"]  # a fixture

ROOT = Path(__file__).parent.parent


@pytest.fixture
def index(tmp_path: Path) -> Path:
    add_documents(tmp_path / "i", list(made_up_pages(20, 65)), SyntheticEmbedder())
    return tmp_path / "i"


def test_made_up_pages_have_as_many_chunks_as_asked_for_in_both_languages_and_are_the_same_each_time() -> None:
    pages = list(made_up_pages(20, 65))
    embedder = SyntheticEmbedder()
    chunks = [chunk for page in pages for chunk in chunk_document(page, CHUNK_TOKENS, embedder.count_tokens)]
    assert (len(pages), len(chunks)) == (20, 65) and Counter(page.lang for page in pages) == {"en": 10, "ja": 10}
    assert pages == list(made_up_pages(20, 65))
    assert {page.meta.space for page in pages} == {f"S{n}" for n in range(10)}
    assert [page.meta.restrictions for page in pages].count(((STAFF,),)) == 2


def test_their_words_are_as_frequent_as_in_real_text() -> None:
    counts = Counter(term for page in made_up_pages(60, 300) if page.lang == "en" for s in page.sections
                     for term in terms_of(s.text))  # fmt: skip
    shares = [count / counts.total() for _, count in counts.most_common(1000)]
    # Zipf's law: the tenth word a tenth as often as the first, the hundredth a hundredth; up to chance.
    assert 0.05 < shares[0] < 0.2 and 4 < shares[0] / shares[9] < 25 and 40 < shares[0] / shares[99] < 250


def test_vectors_are_of_length_1_depend_on_the_text_alone_and_lie_in_clusters() -> None:
    embedder = SyntheticEmbedder()
    texts = [f"text {n}" for n in range(600)]
    vectors = embedder.passages(texts)
    assert vectors.shape == (600, 384) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(embedder.queries(texts[5:7]), vectors[5:7]) and embedder.passages([]).shape == (0, 384)
    likeness = (vectors @ vectors.T)[np.triu_indices(600, 1)]
    assert (likeness > 0.5).sum() > 300 and abs(np.median(likeness)) < 0.1


def test_a_query_is_timed_with_and_without_filters(index: Path) -> None:
    figures = measure_queries(index, 6)
    assert list(figures) == ["none", "space, language and date", "who asks"]
    for one in figures.values():
        assert one["n"] == 6 and 0 < one["p50_ms"] <= one["p95_ms"] <= one["max_ms"] and one["cpu_p95_ms"] > 0
    assert len(set(made_up_queries(40))) == 40


def test_an_edited_page_is_in_the_index_afterwards_and_only_its_changed_chunk_was_embedded(index: Path) -> None:
    pages = list(made_up_pages(20, 65))
    result = measure_edit(index, pages, 3)
    assert result["pages"] == 20 and len(result["rounds_s"]) == 3 and result["embedded_chunks_a_round"] == 1
    assert 0 < result["followed_s"] < 60
    generation = open_generation(index)
    texts = [generation.chunks[row].text for row in range(len(generation.chunks))]
    assert len(texts) == 65 and sum("Edited" in text for text in texts) == 3


@pytest.mark.parametrize("parts", [("queries",), ("memory", "edit"), ("embedding",)])
def test_only_the_chosen_parts_are_measured(parts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Leave\n\nTwenty days.\n\n# Hours\n\nFrom nine to five.\n")
    options = BenchOptions("multilingual-e5-small", parts, 40, 10, 3, 1)
    result = bench_rag([tmp_path], options)
    assert set(result) - {"index"} == set(parts)
    if "index" in result:
        assert (result["index"]["pages"], result["index"]["chunks"]) == (10, 40) and result["index"]["disk_mb"] > 0
    if "memory" in parts:
        assert result["memory"]["process_mb"] >= result["memory"]["opened_mb"] and result["memory"]["opened_s"] > 0
    if "embedding" in parts:
        one = result["embedding"]
        assert one["chunks"] == 2 and all(one[way]["chunks_per_s"] > 0 for way in ("ours", "package", "peer"))
        assert one["ratio"] > 0 and one["times_package"] > 0 and not one["no_peer"]
        # The peer has the same weights and tokens, or its speed would say nothing.
        assert one["cosine"] > 0.995


def test_without_a_peer_the_figures_say_so(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Leave\n\nTwenty days.\n")
    one = measure_embedding([tmp_path], BenchOptions("multilingual-e5-small", rounds=1, with_peer=False))
    assert (one["peer"], one["ratio"], one["cosine"]) == (None, None, None) and one["no_peer"] == "it was left out"
    assert one["package"]["seconds"] > 0


def test_a_peer_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no sentence-transformers folder.*config\.json"):
        bench_rag(
            [ROOT / "data" / "handbook" / "en" / "01-welcome.md"],
            BenchOptions("multilingual-e5-small", ("embedding",), peer=tmp_path),
        )


def test_the_command_prints_lines_or_json_and_refuses_fewer_chunks_than_pages() -> None:
    small = [
        "--only",
        "queries",
        "--only",
        "edit",
        "--chunks",
        "30",
        "--pages",
        "10",
        "--queries",
        "2",
        "--rounds",
        "1",
    ]
    lines = CliRunner().invoke(command.bench_rag, small).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["index", "query", "query", "query", "edit"]
    assert "10 pages, 30 chunks" in lines[0] and "one page of 10:" in lines[-1] and "follows in 0." in lines[-1]
    result = json.loads(CliRunner().invoke(command.bench_rag, [*small, "--json"]).stdout)
    assert set(result) == {"index", "queries", "edit"} and set(PARTS) == set(command._PARTS)
    both = CliRunner().invoke(command.bench_rag, ["--peer", "x", "--no-peer"])
    assert both.exit_code == 2 and "--no-peer leaves out" in both.output
    refused = CliRunner().invoke(command.bench_rag, ["--chunks", "15", "--pages", "16"])
    assert refused.exit_code == 2 and "less than one for each" in refused.output


def test_lines_for_people_name_the_peer_or_say_why_there_is_none() -> None:
    one = {"embedder": "e5 [1]", "chunks": 10, "ours": {"chunks_per_s": 20.0}, "package": {"chunks_per_s": 5.0},
           "times_package": 4.0, "peer": {"chunks_per_s": 8.0}, "ratio": 2.5, "cosine": 0.9991,
           "no_peer": ""}  # fmt: skip
    lines = command.shown({"embedding": one})
    assert "own engine 5.0 a second: 4.00 times" in lines[1]
    assert "8.0 a second: 2.50 times, mean cosine 0.9991" in lines[2]
    none = {**one, "package": None, "peer": None, "no_peer": "not pulled"}
    assert [line.strip() for line in command.shown({"embedding": none})[1:]] == ["no peer: not pulled"]
