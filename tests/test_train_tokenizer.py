"""The tokenizer we train splits as SentencePiece, transformers and llama.cpp do, loses nothing, and is balanced."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.vocabulary.base.proof import MIXED_LINES, differences, special_lines
from slm.artifacts import read_manifest
from slm.chat.prompt import named_template
from slm.errors import DamagedFileError, InputError
from tests import tiny_tokenizers
from tests.path_joints import PathJoints
from train.base import load_tokenizer
from train.cli.scratch import compared
from train.tokenizer.balance import copies, search_parity, sentences, temperature_shares
from train.tokenizer.corpus import CorpusPassage, is_held_out, passages
from train.tokenizer.learn import (
    MARKERS,
    TokenizerOptions,
    load_pieces,
    merges_of,
    read_parallel,
    train_pieces,
    write_tokenizer,
)
from train.tokenizer.report import byte_table, parallel_tokens, partial_ids, text_figures

DATA = Path(__file__).parent.parent / "data"
TEXTS = {lang: [DATA / f"{lang}.txt"] for lang in ("en", "ja")}
# Spaces in a row, repeated syllables and half-made characters are where two merge orders would part.
HARD = st.text(st.sampled_from("  aabのここカcd12\n\té漢😀"), max_size=40)


@pytest.fixture(scope="module")
def model() -> bytes:
    lines = sentences(passages(TEXTS), {"en": 1.0, "ja": 1.0}, seed=0)
    return train_pieces([*lines, *["    indented   text  aabb aabab ababa ここここ"] * 40], 1500)


@pytest.fixture(scope="module")
def folder(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(model, path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load_tokenizer(folder)


def test_the_saved_folder_splits_as_sentencepiece_does(model: bytes, loaded: Any) -> None:
    pieces = load_pieces(model)
    lines = [p.text for p in passages(TEXTS)] + list(MIXED_LINES)
    assert not differences(lines, pieces.encode, lambda text: loaded(text).input_ids)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HARD)
def test_any_text_splits_as_sentencepiece_does_and_comes_back(model: bytes, loaded: Any, text: str) -> None:
    ids = loaded(text).input_ids
    assert ids == load_pieces(model).encode(text)
    assert loaded.decode(ids) == text


def test_llama_cpp_splits_as_the_saved_folder_does(folder: Path, loaded: Any) -> None:
    with tiny_tokenizers.both(folder) as (source, encode, _):
        lines = [*source.all_lines(), *(p.text for p in passages(TEXTS)), "ababa aabab", "     five", "ここここ"]
        lines += special_lines(source.vocabulary.tokens, [loaded.convert_tokens_to_ids(name) for name in MARKERS])
        assert not differences(lines, lambda text: loaded(text).input_ids, encode)
        assert source.vocabulary.chat_template == named_template("chatml")
        assert not source.vocabulary.add_bos


def test_markers_are_one_token_and_digits_stand_alone(loaded: Any) -> None:
    assert [len(loaded(name).input_ids) for name in (*MARKERS, loaded.eos_token)] == [1, 1, 1]
    assert loaded.tokenize("1234") == ["1", "2", "3", "4"]
    assert not [token for token in loaded.get_vocab() if sum(c.isdigit() for c in token) > 1 and token[0] != "<"]


def test_every_split_of_a_piece_is_a_rule_and_better_pieces_come_first() -> None:
    rules = merges_of(["ab", "abc", "bc", "a", "b", "c"])
    assert rules == [("a", "b"), ("ab", "c"), ("a", "bc"), ("b", "c")]


@given(
    st.dictionaries(st.sampled_from(["en", "ja", "de"]), st.integers(1, 10**9), min_size=1),
    st.floats(1.0, 100.0),
)
def test_temperature_gives_shares_of_bytes_to_the_power_of_its_inverse(sizes: dict[str, int], t: float) -> None:
    shares = temperature_shares(sizes, t)
    assert math.isclose(sum(shares.values()), 1.0)
    for one in sizes:
        for other in sizes:
            ratio = (sizes[one] / sizes[other]) ** (1 / t)
            assert math.isclose(shares[one] / shares[other], ratio, rel_tol=1e-9)


def test_sampled_sentences_stand_in_the_shares_asked_for() -> None:
    texts = [CorpusPassage("en", "a" * 99 + "\n", True)] * 3000 + [CorpusPassage("ja", "b" * 99 + "\n", True)] * 1000
    sizes = {"en": 300_000, "ja": 100_000}
    times = copies(sizes, {"en": 0.3, "ja": 0.7}, budget=10**9)
    lines = list(sentences(texts, times, seed=1))
    share = sum(line[0] == "b" for line in lines) / len(lines)
    assert abs(share - 0.7) < 0.02 and abs(len(lines) - 4000) < 120
    assert lines == list(sentences(texts, times, seed=1))


def test_sentences_are_cut_where_sentencepiece_would_drop_them() -> None:
    long = "漢" * 2500 + "\t" + "x" * 10
    lines = list(sentences([CorpusPassage("ja", long, True)], {"ja": 1.0}, seed=0))
    assert "".join(lines) == long.replace("\t", "") and max(len(line.encode()) for line in lines) <= 4192


@given(st.floats(0.5, 2.0), st.floats(0.3, 1.5))
def test_the_search_finds_shares_of_equal_tokens(unfair: float, slope: float) -> None:
    def measure(shares: dict[str, float]) -> dict[str, int]:
        return {lang: int(1e6 * w * shares[lang] ** -slope) for lang, w in (("en", 1.0), ("ja", unfair))}

    found = search_parity(measure, {"en": 0.5, "ja": 0.5}, tolerance=0.02, attempts=12)
    tokens = measure(found)
    assert abs(math.log(tokens["en"] / tokens["ja"])) < 0.021


def test_figures_count_what_a_tokenizer_makes_of_each_language(loaded: Any) -> None:
    text = "The desk.\n机𠮷\n"
    ids = [loaded(line).input_ids for line in text.splitlines()]
    figures = text_figures(loaded, "en", [text])
    assert figures.tokens == sum(map(len, ids)) and figures.unknown_rate == 0.0
    assert math.isclose(figures.bytes_per_token * figures.tokens, len("The desk.机𠮷".encode()))
    assert math.isclose(figures.fertility * 3, figures.tokens) and figures.fertility_unit == "word"
    japanese = text_figures(loaded, "ja", ["𠮷"])
    assert japanese.fertility_unit == "character" and japanese.partial_rate == 1.0 and japanese.tokens == 4


def test_partial_tokens_of_a_byte_level_vocabulary_are_those_that_cut_a_character(tmp_path: Path) -> None:
    from tests.tiny_training import byte_level_tokenizer

    assert sorted(byte_table().values()) == list(range(256))
    tokenizer = byte_level_tokenizer()
    whole = set(tokenizer.get_vocab().values()) - partial_ids(tokenizer)
    for number in sorted(whole):
        assert "�" not in tokenizer.decode([number])
    for number in sorted(partial_ids(tokenizer)):
        assert "�" in tokenizer.decode([number])


def test_the_command_reports_each_language_beside_others(folder: Path, tmp_path: Path, slm: Any) -> None:
    pairs = {"en": "The desk is here.\nThank you.\n", "ja": "机はここです。\nありがとう。\n"}
    for lang, text in pairs.items():
        (tmp_path / f"{lang}.txt").write_text(text, encoding="utf-8")
    parallel = [part for lang in pairs for part in ("--parallel", f"{lang}={tmp_path / lang}.txt")]
    texts = [part for lang in pairs for part in ("--text", f"{lang}={DATA / lang}.txt")]
    out = tmp_path / "new"
    result = slm(
        "train", "tokenizer", *texts, "--vocab-size", "1200", "-o", str(out), "--eval-fraction", "0.1",
        *parallel, "--balance", "--beside", str(folder), "--json",
    )  # fmt: skip
    report = json.loads(result.stdout)
    assert list(report["tokenizers"]) == ["new", folder.name]
    made = load_tokenizer(out)
    assert len(made) == report["tokenizers"]["new"]["vocabulary"] == 1200
    lines = read_parallel({lang: [tmp_path / f"{lang}.txt"] for lang in pairs})
    assert report["tokenizers"]["new"]["tokens_per_parallel_sentence"] == parallel_tokens(made, lines)
    for lang in pairs:
        held = [p.text for p in passages({lang: TEXTS[lang]}) if is_held_out(p.text, 0.1, 0)]
        assert report["tokenizers"]["new"]["by_language"][lang] == text_figures(made, lang, held).as_json()
    assert read_manifest(out)["shares"] == report["shares"]


def test_without_a_choice_the_known_tokenizers_that_are_here_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    joints = PathJoints()
    monkeypatch.setattr("slm.models.catalog.find_pulled", lambda name: name if name.startswith("gemma") else None)
    assert list(compared(joints, ())) == ["gemma-3-270m"]
    assert "slm pull smollm2-135m-instruct" in capsys.readouterr().err
    assert compared(joints, ("some/folder",)) == {"folder": Path("some/folder")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 200}, "--vocab-size must be above"),
        ({"temperature": 0.0}, "--temperature"),
        ({"parallel": {"en": [DATA / "en.txt"]}}, "--parallel"),
    ],
)
def test_options_that_cannot_work_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TokenizerOptions(**{"text": TEXTS, "vocab_size": 1000, "output": Path("x"), **change})


def test_too_little_text_and_broken_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SentencePiece cannot make"):
        train_pieces(["too little"], 5000)
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b'{"text": "good"}\n{"text": 3}\n')
    with pytest.raises(DamagedFileError, match="line 2"):
        list(passages({"en": [broken]}))
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9\n")
    assert [passage.text for passage in passages({"fr": [latin]})] == ["caf\xe9\n"]
    (tmp_path / "one.txt").write_text("a\n")
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="equally many lines"):
        read_parallel({"en": [tmp_path / "one.txt"], "ja": [tmp_path / "two.txt"]})


@given(st.lists(st.text(st.sampled_from("ab \n漢"), max_size=400), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_passages_keep_every_line_of_a_file_and_end_once(tmp_path: Path, parts: list[str]) -> None:
    path = tmp_path / "text.txt"
    text = "\n\n".join(part + "x" * 300 for part in parts)
    path.write_text(text, encoding="utf-8")
    read = list(passages({"en": [path]}))
    lines = [line for passage in read for line in passage.text.splitlines() if line.strip()]
    assert lines == [line for line in text.split("\n") if line.strip()]
    assert [passage.ends for passage in read] == [False] * (len(read) - 1) + [True]
