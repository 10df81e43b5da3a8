"""Tokenizers of every kind: llama.cpp's ids equal to the source tokenizer's on any text, or the conversion stops."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from convert.vocabulary.base.pre_tokenizers import SPLITS, canonical, pre_name, pre_tokenizer_of
from convert.vocabulary.base.proof import MIXED_LINES, VocabularySource, conversation, differences, prove_equal
from convert.vocabulary.files.cut_down import cut_down
from convert.vocabulary.vocab_source import read_vocabulary
from slm.chat.prompt import TEMPLATES, render
from slm.errors import DamagedFileError, SlmError, UnsupportedError, VerificationError
from slm.joints import Message
from slm.native.llama import token_bytes
from slm.weights.gguf_reader import read_gguf
from tests import tiny_tokenizers as tt

Encode = Callable[[str], list[int]]


def pre_tokenizer(pre: str) -> Any:
    """The `tokenizers` object of a pre-tokenizer by its llama.cpp name."""
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    return Tokenizer.from_str(json.dumps({**empty, "pre_tokenizer": pre_tokenizer_of(pre)})).pre_tokenizer


def byte_level(folder: Path, pre: str) -> Path:
    return tt.byte_level(folder, pre_tokenizer(pre), ignore_merges=pre in ("llama-bpe", "tekken"))


_KEPT = {"remove_extra_whitespaces": False}
_PLAIN = {**_KEPT, "byte_fallback": True, "normalization_rule_name": "identity"}
KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    **{f"byte-level BPE as {pre}": (partial(byte_level, pre=pre), "gpt2") for pre in SPLITS},
    "BPE with byte fallback and ranked merges": (tt.raw_bpe, "gpt2"),
    "SentencePiece BPE": (lambda f: tt.sentencepiece(f, model_type="bpe", **_PLAIN), "llama"),
    "SentencePiece BPE without a prefix": (
        lambda f: tt.sentencepiece(f, model_type="bpe", add_dummy_prefix=False, **_PLAIN),
        "llama",
    ),
    "unigram": (lambda f: tt.sentencepiece(f), "t5"),
    "unigram, lower-casing as rinna's": (lambda f: tt.sentencepiece(f, lower=True, small_map=True), "t5"),
    "unigram with byte fallback": (lambda f: tt.sentencepiece(f, **_PLAIN), "t5"),
    "unigram with byte fallback, no prefix": (lambda f: tt.sentencepiece(f, add_dummy_prefix=False, **_PLAIN), "t5"),
    "unigram with byte fallback and NFKC": (lambda f: tt.sentencepiece(f, byte_fallback=True, small_map=True), "t5"),
    "unigram with byte fallback, NFKC, all spaces, own symbols": (
        lambda f: tt.sentencepiece(
            f, byte_fallback=True, small_map=True, user_defined_symbols=["\n", "\u3000", "<own>"], **_KEPT
        ),
        "t5",
    ),
    "unigram with byte fallback, lower-casing": (
        lambda f: tt.sentencepiece(f, byte_fallback=True, lower=True, small_map=True),
        "t5",
    ),
    "fast unigram as llm-jp's": (lambda f: tt.fast_unigram(f, "llm-jp"), "t5"),
    "fast unigram as XLM-R's": (lambda f: tt.fast_unigram(f, "xlm-r"), "t5"),
    "WordPiece": (lambda f: tt.word_piece(f), "bert"),
    "WordPiece with case": (lambda f: tt.word_piece(f, lower=False), "bert"),
    "WordPiece with accents": (lambda f: tt.word_piece(f, strip_accents=False), "bert"),
}

# What people write, with the characters at which tokenizers part; and anything at all.
_PIECES = ["'s", "'LL", "  ", "\n\n", "\r\n", "the ", "<own>", "[MASK", "会議室", "ｶﾞ", "e\u0301", "\u3000", "012",
           "👨‍👩‍👧"]  # fmt: skip
_WRITTEN = st.lists(
    st.one_of(
        st.sampled_from(_PIECES),
        st.sampled_from("abcXYZ019.,'’\"-_/ \n\t（）、。漢字𠮷𩸽龘かながカナｱ０１Ａｂéñüß½①😀👍🏽…—"),
    ),
    max_size=25,
).map("".join)
_ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=25)
# The kinds whose source applies its character map by graphemes, or knows an older Unicode, promise less: what is
# left out here is what `VocabularySource.caveats` says.
_NO_MARKS = _ANY.map(lambda text: "".join(c for c in text if unicodedata.category(c)[0] != "M" and c != "\x85"))


def text_of(name: str) -> st.SearchStrategy[str]:
    if name.startswith("WordPiece"):
        return _WRITTEN
    if name == "fast unigram as XLM-R's":
        return st.one_of(_WRITTEN, _NO_MARKS)
    return st.one_of(_WRITTEN, _ANY)


def is_embedder(name: str) -> bool:
    return name.startswith("WordPiece") or name == "fast unigram as XLM-R's"


@pytest.fixture(scope="module")
def pairs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], tuple[VocabularySource, Encode, Encode, Any]]]:
    """(source, its encoder, llama.cpp's, llama.cpp's handle) of a kind, made once."""
    made: dict[str, tuple[VocabularySource, Encode, Encode, Any]] = {}
    with ExitStack() as stack:

        def get(name: str) -> tuple[VocabularySource, Encode, Encode, Any]:
            if name not in made:
                folder = KINDS[name][0](tmp_path_factory.mktemp("tokenizer") / "source")
                source, found, model = stack.enter_context(tt.both(folder, embedder=is_embedder(name)))
                made[name] = (source, source.encoder(), found, model)
            return made[name]

        yield get


@pytest.mark.parametrize("name", KINDS)
def test_the_ids_of_mixed_text_and_special_tokens_are_equal(name: str, pairs: Any) -> None:
    source, expected, found, _ = pairs(name)
    assert source.vocabulary.model == KINDS[name][1]
    assert set(source.lines) & set(MIXED_LINES)
    assert differences(source.all_lines(), expected, found) == []


@pytest.mark.parametrize("name", KINDS)
def test_the_ids_of_any_text_are_equal(name: str, pairs: Any) -> None:
    _, expected, found, _ = pairs(name)

    @given(text_of(name))
    @settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @example("😀\n\t𠮷 ｶﾞ　０")
    def check(text: str) -> None:
        assert found(text) == expected(text)

    check()


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith(("byte-level", "BPE with", "fast"))])
def test_a_tokenizer_cut_down_to_some_lines_gives_the_ids_of_the_whole_one(name: str, pairs: Any) -> None:
    source, expected, _, _ = pairs(name)
    lines = source.all_lines()
    assert source.ids_of(lines) == [expected(line) for line in lines]

    @given(st.lists(text_of(name), max_size=3))
    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(texts: list[str]) -> None:
        assert source.ids_of(texts) == [expected(text) for text in texts]

    check()


def test_a_cut_down_tokenizer_has_only_the_pieces_that_its_lines_touch(tmp_path: Path) -> None:
    folder = tt.byte_level(tmp_path / "x", pre_tokenizer("gpt-2"))
    fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    smaller, old_ids = cut_down(fast, ["the office"], folder)
    assert len(old_ids) == len(smaller["model"]["vocab"]) < 60 < len(fast["model"]["vocab"])
    assert all(fast["model"]["vocab"][piece] == old_ids[id_] for piece, id_ in smaller["model"]["vocab"].items())


_LOSSLESS = (
    "BPE with byte fallback and ranked merges",
    "SentencePiece BPE",
    "unigram with byte fallback",
    "unigram with byte fallback, no prefix",
    "fast unigram as llm-jp's",
)


@pytest.mark.parametrize("name", _LOSSLESS)
def test_newlines_emoji_and_rare_kanji_survive_there_and_back(name: str, pairs: Any) -> None:
    source, expected, found, model = pairs(name)
    unknown = source.vocabulary.specials.get("unk")
    for text in ("一行目\n\t二行目", "😀👍🏽👨‍👩‍👧", "𠮷野家の𩸽、龘靁", "Привет مرحبا ไทย"):
        ids = found(text)
        assert unknown not in ids
        assert ids == expected(text)
        decoded = b"".join(token_bytes(model, id_) for id_ in ids).decode("utf-8")
        assert decoded.removeprefix(" ") == text


# --- pre-tokenizers by their regex


@pytest.mark.parametrize("pre", SPLITS)
def test_a_pre_tokenizer_is_named_by_its_regexes_alone(pre: str) -> None:
    step = pre_tokenizer_of(pre)
    flat = step.get("pretokenizers", [step])
    ignore = pre in ("llama-bpe", "tekken")
    assert pre_name(flat, ignore) == pre
    spelt = json.loads(json.dumps(flat).replace(r"\\r", r"\r").replace(r"\\n", r"\n"))  # as real line ends in the regex
    assert pre_name(spelt, ignore) == pre


def test_digits_one_by_one_are_the_same_as_a_split_at_numbers() -> None:
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False}
    assert pre_name([split, {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}], False) == "smollm"
    assert canonical("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|x") == canonical(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|x"
    )


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.Whitespace()],
        [pre_tokenizers.Split(" ", "merged_with_previous"), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        [pre_tokenizers.ByteLevel(add_prefix_space=True)],
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    ],
    ids=["no bytes", "another split", "a prefix space", "whole numbers"],
)
def test_a_pre_tokenizer_the_runtime_does_not_have_is_refused(steps: list[Any], tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.train_from_iterator(tt.LINES[:20])
    with pytest.raises(UnsupportedError):
        read_vocabulary(tt.save(tmp_path / "x", tokenizer, eos_token="a"), {})


# --- added tokens, what surrounds a text, chat templates


def test_added_tokens_are_found_in_text_as_the_source_finds_them(tmp_path: Path) -> None:
    folder = tt.byte_level(tmp_path / "x", pre_tokenizer("gpt-2"))
    fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    size = len(fast["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fast["added_tokens"] += [
        {"id": size, "content": "<tool>", "special": True, **flags},
        {"id": size + 1, "content": "東京タワー", "special": False, **flags},
    ]
    tt.save(folder, fast, eos_token="<|endoftext|>")
    with tt.both(folder) as (source, found, _):
        expected = source.encoder()
        for text in ("<tool>x", "東京タワーと東京", "a <tool> 東京タワー\n"):
            assert found(text) == expected(text)
        assert size + 1 in found("東京タワー")
        assert size in found("<tool>")


def test_an_embedder_gets_its_special_tokens_around_the_text_and_a_decoder_only_the_first(tmp_path: Path) -> None:
    folder = tt.fast_unigram(tmp_path / "x", "xlm-r")
    embedder = read_vocabulary(folder, {}, embedder=True).vocabulary
    decoder = read_vocabulary(folder, {}).vocabulary
    assert (embedder.add_bos, embedder.add_eos) == (True, True)
    assert (decoder.add_bos, decoder.add_eos) == (True, False)
    with tt.both(folder, embedder=True) as (source, found, _):
        ids = found("会議室")
        assert [source.vocabulary.tokens[i] for i in (ids[0], ids[-1])] == ["<s>", "</s>"]
        assert any("<mask>" in caveat for caveat in source.caveats)


@pytest.mark.parametrize("name", ["chatml", "gemma"])
def test_a_conversation_has_the_ids_of_transformers_with_one_bos(name: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = tt.fast_unigram(tmp_path / "x", "llm-jp")
    fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    size = len(fast["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    markers = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    fast["added_tokens"] += [{"id": size + i, "content": t, "special": True, **flags} for i, t in enumerate(markers)]
    tt.save(folder, fast, eos_token="</s>", bos_token="<s>", unk_token="<unk>", chat_template=TEMPLATES[name])
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    messages: list[Message] = [
        {"role": "user", "content": "こんにちは 😀"}, {"role": "assistant", "content": "Hi.\n\nはい"},
    ]  # fmt: skip
    with tt.both(folder) as (source, found, _):
        vocabulary = source.vocabulary
        assert conversation(vocabulary) in source.all_lines()
        assert differences(source.all_lines(), source.encoder(), found) == []
        text = render(str(vocabulary.chat_template), messages, bos_token="<s>", eos_token="</s>")
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found(text) == ids
        assert ids.count(vocabulary.specials["bos"]) == (1 if name == "gemma" else 0)


# --- what is not equal stops, what is damaged is named


def test_the_first_lines_that_differ_are_shown(tmp_path: Path) -> None:
    folder = tt.byte_level(tmp_path / "x", pre_tokenizer("gpt-2"))
    other = tt.byte_level(tmp_path / "y", pre_tokenizer("qwen2"))
    gguf = tt.write_vocabulary(tmp_path / "x.gguf", read_vocabulary(folder, {}))
    expected = read_vocabulary(other, {}).encoder()
    with pytest.raises(VerificationError) as caught:
        prove_equal(gguf, expected)
    assert "lines" in caught.value.what
    assert caught.value.found.count("source ids") == 3
    assert prove_equal(gguf, read_vocabulary(folder, {}).encoder()) == len(MIXED_LINES)


def test_a_word_piece_that_the_runtime_reads_otherwise_is_found(tmp_path: Path) -> None:
    folder = tt.word_piece(tmp_path / "x")
    fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    fast["model"]["max_input_chars_per_word"] = 5  # longer words are unknown to the source, the runtime cuts them
    tt.save(folder, fast, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    source = read_vocabulary(folder, {}, embedder=True)
    gguf = tt.write_vocabulary(tmp_path / "x.gguf", source)
    with pytest.raises(VerificationError, match="differs from its source on"):
        prove_equal(gguf, source.encoder(), lines=source.all_lines(), add_special=True)


def _with(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tt.word_piece(folder)
        fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        change(fast)
        return tt.save(folder, fast, cls_token="[CLS]", sep_token="[SEP]")

    return make


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (_with(lambda f: f.update(pre_tokenizer={"type": "Whitespace"})), "as BERT does"),
        (_with(lambda f: f["normalizer"].update(handle_chinese_chars=False)), "Chinese"),
        (_with(lambda f: f["model"].update(type="WordLevel")), "not supported"),
        (_with(lambda f: f.update(post_processor=None)), "around a text"),
        (lambda f: tt.byte_level(f, pre_tokenizer("gpt-2"), normalizer=normalizers.NFKC()), "NFKC"),
        (lambda f: tt.sentencepiece(f, model_type="bpe", byte_fallback=True, small_map=True), "character map"),
        (lambda f: tt.sentencepiece(f, model_type="char"), "kind 4"),
    ],
)
def test_a_tokenizer_that_changes_text_as_the_runtime_cannot_is_refused(
    make: Callable[[Path], Path], match: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "x")
    with pytest.raises(UnsupportedError, match=match):
        read_vocabulary(folder, {}, embedder=(folder / "tokenizer.json").exists())


def test_a_tokenizer_that_needs_a_dictionary_is_refused(tmp_path: Path) -> None:
    folder = tt.word_piece(tmp_path / "x")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(UnsupportedError, match="dictionary"):
        read_vocabulary(folder, {}, embedder=True)


_PATHS = st.sampled_from(
    [("model",), ("model", "vocab"), ("model", "merges"), ("model", "unk_id"), ("added_tokens",), ("normalizer",),
     ("pre_tokenizer",), ("post_processor",), ("added_tokens", 0), ("added_tokens", 0, "id"), ("model", "type"),
     ("post_processor", "single"), ("normalizer", "precompiled_charsmap"), ("pre_tokenizer", "pretokenizers")]
)  # fmt: skip
_VALUES = st.one_of(
    st.none(), st.integers(-3, 1 << 40), st.text(max_size=5), st.just([]), st.just({}), st.just([[]]),
    st.just({"type": "Sequence"}), st.just([{"id": 1 << 40, "content": "x"}]), st.just({"type": "BPE", "vocab": 1}),
)  # fmt: skip


@pytest.mark.parametrize("name", ["byte-level BPE as gpt-2", "fast unigram as XLM-R's", "WordPiece"])
def test_a_damaged_tokenizer_json_is_an_error_of_ours(name: str, tmp_path: Path) -> None:
    folder = KINDS[name][0](tmp_path / "x")
    whole = (folder / "tokenizer.json").read_text("utf-8")
    outcomes = set()

    @given(_PATHS, _VALUES)
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(path: tuple[Any, ...], value: Any) -> None:
        fast = json.loads(whole)
        place = fast
        for step in path[:-1]:
            place = place[step] if not isinstance(place, dict) or step in place else {}
        if isinstance(place, dict) or (isinstance(place, list) and place):
            place[path[-1]] = value
        (folder / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
        try:
            source = read_vocabulary(folder, {}, embedder=is_embedder(name))
            source.vocabulary.to_metadata()
            outcomes.add("read")
        except SlmError:
            outcomes.add("refused")

    check()
    assert outcomes == {"read", "refused"}


def test_a_vocabulary_of_absurd_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    folder = KINDS["fast unigram as XLM-R's"][0](tmp_path / "x")
    fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    fast["added_tokens"][0]["id"] = 1 << 40
    tt.save(folder, fast, eos_token="</s>")
    with pytest.raises(DamagedFileError, match="claims"):
        read_vocabulary(folder, {})


def test_the_vocabulary_of_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    from convert.vocabulary.base.vocab import from_metadata

    folder = tt.sentencepiece(tmp_path / "x", **_PLAIN)
    written = read_vocabulary(folder, {}).vocabulary
    back = from_metadata(read_gguf(tt.write_vocabulary(tmp_path / "x.gguf", read_vocabulary(folder, {}))).metadata)
    assert (back.tokens, back.types, back.charsmap) == (written.tokens, written.types, written.charsmap)


def test_decoders_are_no_part_of_the_comparison(tmp_path: Path) -> None:
    folder = tt.byte_level(tmp_path / "x", pre_tokenizer("gpt-2"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.decoder = decoders.WordPiece()
    tt.save(folder, tokenizer, eos_token="<|endoftext|>")
    with tt.both(folder) as (source, found, _):
        assert differences(source.lines, source.encoder(), found) == []
