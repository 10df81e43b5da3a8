"""Embedders: the packaged one by two engines, prefixes, GGUF files, and vectors that a broken-off run leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.model import convert_checkpoint
from rag.index.embed import embedder_name, open_embedder
from rag.index.embedders import nano
from rag.index.embedders.cache import VectorCache
from rag.index.embedders.packed import read_packed
from rag.index.embedders.sentence import prefixes_of
from rag.index.store import open_generation
from rag.index.update import add_documents
from slm.errors import DamagedFileError, MismatchError, MissingFileError, UnknownNameError, UnsupportedError
from tests.test_convert_encoders import e5 as tiny_e5
from tests.tiny_gguf import write_model
from tests.tiny_rag import PairEmbedder, own_home, page

__all__ = ["own_home"]  # a fixture

TEXTS = [
    "Employees get twenty days of paid leave each year, of which five may be carried over.",
    "社員は毎年20日の有給休暇を取れます。使わなかった休暇は5日まで翌年に繰り越せます。",
    "Guests  sign in at the reception;\tthey wear a badge (ID-4711/B).",
    "ｶﾀｶﾅとＷｉＦｉ、①②③、㈱髙橋商店、令和６年度",
    "| 項目 | 金額 |\n|---|---|\n| 出張 | 13,000円 |",
    "Zażółć gęślą jaźń. Привет! 你好，世界。 😀👍🏽 \u200b",
    " leading and trailing spaces ",
    "a",
    "",
    "長い文章 " * 60,
    "word " * 200,
]


# The packaged embedder


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedder with its second engine opened, in a data folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_HOME", str(tmp_path_factory.mktemp("home")))
        embedder: Any = open_embedder()
        _ = embedder._fast
        return embedder


def test_the_tokens_for_llama_cpp_are_as_many_as_the_package_counts(packaged: Any) -> None:
    tokenizer, _ = packaged._fast
    texts = [text for text in TEXTS if "😀" not in text]  # characters it does not know are one token in a row here
    ids = tokenizer.encode([nano.E5_PASSAGE + text for text in texts])
    assert [len(row) for row in ids] == [packaged.count_tokens(text) for text in texts]


def test_many_passages_have_the_vectors_that_the_package_gives_them_one_by_one(packaged: Any) -> None:
    texts = [*TEXTS, *(f"{text} {number}" for number in range(3) for text in TEXTS), "比較 " * 900]
    fast = packaged.passages(texts)
    slow = np.concatenate([packaged.passages([text]) for text in texts])
    assert len(texts) >= nano._MANY and np.allclose(np.linalg.norm(fast, axis=1), 1, atol=1e-5)
    cosines = (fast * slow).sum(axis=1)
    assert cosines.min() >= 0.999, dict(zip(texts, cosines, strict=True))
    # The same nearest texts: what differs is less than what tells texts apart.
    assert np.array_equal(np.argmax(fast @ slow.T, axis=1)[: len(TEXTS)], np.arange(len(TEXTS)))


def test_passages_keep_their_order_whatever_their_lengths(packaged: Any) -> None:
    texts = [f"number {n} " + "word " * (n * 7 % 60) for n in range(40)]
    whole = packaged.passages(texts)
    for number in (0, 13, 39):
        assert (whole[number] * packaged.passages([texts[number]])[0]).sum() >= 0.999


def test_a_file_of_another_format_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "e5-small-q4.bin"
    for raw in (b"", b"E5S2" + bytes(100), b"E5S1" + bytes(20), b"E5S1" + b"\xff" * 200):
        file.write_bytes(raw)
        with pytest.raises(DamagedFileError, match="no embedder of the package"):
            read_packed(file)


def test_a_package_of_another_format_embeds_by_its_own_engine_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedder: Any = open_embedder()
    embedder.weights = tmp_path / "e5-small-q4.bin"
    embedder.weights.write_bytes(b"E5S9")
    texts = [f"apples {n}" for n in range(nano._MANY)]
    vectors = embedder.passages(texts)
    assert (vectors[7] * embedder.passages([texts[7]])[0]).sum() >= 0.99999
    assert capsys.readouterr().err.count("by the package's own engine") == 1


# Each distinct text once, and kept


class Breaking(PairEmbedder):
    """Breaks off after so many texts."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def passages(self, texts: Sequence[str]) -> Any:
        if len(self.embedded) >= self.after:
            raise KeyboardInterrupt
        return super().passages(texts)


def test_ctrl_c_keeps_what_was_embedded_and_the_next_run_embeds_the_rest(tmp_path: Path) -> None:
    pages = [page(f"{n}.md", f"apples 休暇 {n}") for n in range(200)]
    first = Breaking(after=128)
    with pytest.raises(KeyboardInterrupt):
        add_documents(tmp_path / "i", pages, first)
    assert len(first.embedded) == 128 and not (tmp_path / "i" / "CURRENT").exists()
    told: list[tuple[int, int]] = []
    second = PairEmbedder()
    add_documents(tmp_path / "i", pages, second, lambda done, total: told.append((done, total)))
    assert len(second.embedded) == 72 and not set(first.embedded) & set(second.embedded)
    assert told == [(64, 72), (72, 72)]
    generation = open_generation(tmp_path / "i")
    for row in (0, 127, 128, 199):
        assert np.allclose(generation.vector(row), second.queries([generation.chunks[row].indexed_text])[0])
    assert not (tmp_path / "i" / ".embedded").exists()


def test_a_text_that_comes_again_is_embedded_once(tmp_path: Path) -> None:
    embedder = PairEmbedder()
    add_documents(tmp_path / "i", [page("a.md", "同じ"), page("b.md", "同じ"), page("c.md", "other")], embedder)
    assert embedder.embedded == ["Page > Heading\n同じ", "Page > Heading\nother"]
    generation = open_generation(tmp_path / "i")
    assert np.array_equal(generation.vector(0), generation.vector(1))


def test_kept_vectors_of_another_embedder_and_a_torn_record_are_left_out(tmp_path: Path) -> None:
    file, ours, other = tmp_path / "v", PairEmbedder(), PairEmbedder("others")
    texts = ["apples", "休暇", "pears"]
    with VectorCache(file, ours.identity) as cache:
        cache.add(texts, ours.queries(texts))
        assert cache.get("apples") is None, "a run knows what it embedded itself"
    file.write_bytes(file.read_bytes()[:-5])
    with VectorCache(file, ours.identity) as cache:
        assert len(cache) == 2 and cache.get("pears") is None
        assert np.allclose(np.asarray(cache.get("休暇")), ours.queries(["休暇"])[0])
        cache.add(["pears"], ours.queries(["pears"]))
    with VectorCache(file, ours.identity) as cache:
        assert np.allclose(np.asarray(cache.get("pears")), ours.queries(["pears"])[0]) and len(cache) == 3
    with VectorCache(file, other.identity) as cache:
        assert len(cache) == 0
        cache.add(["figs"], other.queries(["figs"]))
    with VectorCache(file, ours.identity) as cache:
        assert len(cache) == 0
    with VectorCache(file, other.identity) as cache:
        assert cache.get("figs") is not None
        cache.discard()
    assert not file.exists()


# Other embedders


def test_a_folder_says_its_own_prefixes_and_e5_has_those_it_was_trained_with(tmp_path: Path) -> None:
    settings = tmp_path / "config_sentence_transformers.json"
    assert prefixes_of("intfloat/multilingual-e5-base", tmp_path) == ("query: ", "passage: ")
    assert prefixes_of("all-minilm", tmp_path) == ("", "")
    settings.write_text(json.dumps({"prompts": {"query": "検索クエリ: ", "document": "検索文書: "}}))
    assert prefixes_of("cl-nagoya/ruri-v3-30m", tmp_path) == ("検索クエリ: ", "検索文書: ")
    settings.write_text(json.dumps({"prompts": {"search_query": "q: ", "document": ""}, "default_prompt_name": "x"}))
    assert prefixes_of("nomic-e5", tmp_path) == ("q: ", "")
    settings.write_text("{broken")
    with pytest.raises(DamagedFileError):
        prefixes_of("any", tmp_path)


def test_a_folder_here_does_not_take_the_place_of_an_embedder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    for name in ("ruri-v3-30m", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert embedder_name(name) == name
        assert embedder_name(f"./{name}") == (tmp_path / name).as_posix()
    with pytest.raises(UnknownNameError, match=r"unknown .*'mine'.*\./mine"):
        open_embedder("mine")


def test_an_embedder_is_named_by_its_file_wherever_a_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert embedder_name("multilingual-e5-small") == "multilingual-e5-small"
    assert embedder_name("x/e5.gguf") == (tmp_path / "x" / "e5.gguf").resolve().as_posix()
    with pytest.raises(MissingFileError, match=r"no file 'e5\.gguf'.*slm convert"):
        open_embedder("e5.gguf")
    write_model(tmp_path / "chat.gguf")
    with pytest.raises(UnsupportedError, match="no embedder"):
        open_embedder("chat.gguf")


def test_a_converted_encoder_fills_and_searches_an_index_by_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-e5"
    folder.mkdir()
    tiny_e5(folder)
    file = tmp_path / "tiny-e5.f16.gguf"
    convert_checkpoint(folder, file, "f16")
    embedder = open_embedder(str(file))
    assert (embedder.identity.name, embedder.identity.dimension) == (file.resolve().as_posix(), 64)
    assert (embedder.identity.query_prefix, embedder.identity.passage_prefix) == ("query: ", "passage: ")
    texts = ["apples and pears", "休暇の申請", "word " * 400, *(f"number {n}" for n in range(70))]
    vectors = embedder.passages(texts)
    assert vectors.shape == (73, 64) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for number in (0, 1, 2, 72):
        assert (embedder.passages([texts[number]])[0] * vectors[number]).sum() >= 0.999
    assert not np.allclose(embedder.queries(texts[:1])[0], vectors[0], atol=1e-3)
    assert embedder.count_tokens("one two three four") > embedder.count_tokens("one")
    assert embedder.passages([]).shape == (0, 64)
    add_documents(tmp_path / "i", [page("a.md", "apples"), page("b.md", "休暇の申請", lang="ja")], embedder)
    generation = open_generation(tmp_path / "i")
    again = open_embedder(str(generation.manifest["embedder"]["name"]))
    assert again.identity == embedder.identity
    convert_checkpoint(folder, file, "q8_0")
    with pytest.raises(MismatchError, match="revision"):
        add_documents(tmp_path / "i", [page("c.md", "figs")], open_embedder(str(file)))
