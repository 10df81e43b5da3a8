"""Reads a checkpoint's tokenizer files into a GgufVocabulary, with the source tokenizer to prove it against.

It knows nothing of weights, and leaves each kind of tokenizer to its own module: byte-level BPE, SentencePiece BPE,
SentencePiece unigram, WordPiece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.source.malformed import fast_tokenizer_of, load_fast_tokenizer
from convert.vocabulary.base.pre_tokenizers import pre_name
from convert.vocabulary.base.proof import Encode, VocabularySource, hf_encode
from convert.vocabulary.base.swallowing import all_swallow
from convert.vocabulary.base.vocab import CONTROL, NORMAL, USER_DEFINED, GgufVocabulary
from convert.vocabulary.files.added import read_settings, special_tokens
from convert.vocabulary.files.cut_down import can_cut, ids_of_lines
from convert.vocabulary.files.slow_files import default_specials, fast_form, find_slow_file, named_class
from convert.vocabulary.files.tokenizer_json import around, content, model_type, steps
from convert.vocabulary.kinds import sentencepiece_bpe, unigram
from convert.vocabulary.kinds.byte_level import byte_level
from convert.vocabulary.kinds.wordpiece import word_piece
from convert.vocabulary.model_file import from_model_file
from slm.artifacts import read_json
from slm.errors import DamagedFileError, MissingFileError, UnsupportedError

__all__ = ["VocabularySource", "chat_template", "pre_name", "read_vocabulary"]

_SPECIALS = ("bos", "eos", "unk", "sep", "pad", "mask")
_SPM_FILES = ("spiece.model", "tokenizer.model")


def read_vocabulary(folder: Path, config: Mapping[str, Any], *, embedder: bool = False) -> VocabularySource:
    """The tokenizer of a checkpoint folder.

    embedder: the special tokens around a text are part of the model's input, and compared as well. Raises
    MissingFileError, DamagedFileError or UnsupportedError.
    """
    settings = read_settings(folder)
    _refuse_word_splitters(folder, settings, config)
    models = [folder / name for name in _SPM_FILES if (folder / name).exists()]
    try:
        if (folder / "tokenizer.json").exists():
            path = folder / "tokenizer.json"
            fast = read_json(path)
            if models and model_type(fast) == "Unigram" and not isinstance(fast["model"].get("unk_id"), int):
                # The model file is the original; the fast form of a unigram loses its unknown id in some versions.
                lower = any(step["type"] == "Lowercase" for step in steps(fast.get("normalizer"), "normalizers"))
                source = from_model_file(models[0], settings, named_class(settings, config), lower, embedder)
            else:
                source = _from_fast(path, fast, embedder, lambda: load_fast_tokenizer(path))
        elif models:
            source = from_model_file(models[0], settings, named_class(settings, config), False, embedder)
        elif (file := find_slow_file(folder)) is not None:
            settings = {**default_specials(file, settings, config), **settings}
            fast = fast_form(file, settings, config)
            source = _from_fast(file, fast, embedder, lambda: fast_tokenizer_of(fast, file))
        else:
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:10])
            raise MissingFileError(
                f"'{folder}' has no tokenizer (tokenizer.json, {', '.join(_SPM_FILES)}, vocab.txt, vocab.json)",
                found=found,
            )
        _special_ids(source.vocabulary, folder, settings, config, embedder)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
        raise DamagedFileError(f"the tokenizer of '{folder}' is not as its kind must be: {error!r}") from error
    source.vocabulary.chat_template = chat_template(folder, settings)
    return source


def _refuse_word_splitters(folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a tokenizer that cuts words with a dictionary before it looks pieces up.

    MeCab's, Sudachi's and Juman++'s dictionaries are no part of `tokenizer.json` nor of GGUF.
    """
    splitter = settings.get("word_tokenizer_type")
    if named_class(settings, config) == "BertJapaneseTokenizer" or splitter in ("mecab", "sudachi", "jumanpp"):
        raise UnsupportedError(
            f"the tokenizer of '{folder}' cuts Japanese words with a dictionary ({splitter or 'mecab'}), "
            "the runtime has none",
            hint="Choose a model with a SentencePiece or BPE tokenizer, for example multilingual-e5 or ruri-v3.",
        )


def chat_template(folder: Path, settings: Mapping[str, Any] | None = None) -> str | None:
    """The folder's chat template: `chat_template.jinja`, else the one in tokenizer_config.json (the `default` one)."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if settings is None:
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {}
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None


def _special_ids(
    vocabulary: GgufVocabulary, folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any], embedder: bool
) -> None:
    """Fill `specials`, explicitly: the runtime's assumptions about absent ones are wrong for most vocabularies."""
    ids = {token: id_ for id_, token in enumerate(vocabulary.tokens)}
    for name in _SPECIALS:
        if embedder and name in vocabulary.specials:
            continue
        token = content(settings.get(f"{name}_token"))
        id_ = ids.get(token) if token is not None else None
        if id_ is None:
            number = config.get(f"{name}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            id_ = number if isinstance(number, int) and 0 <= number < len(ids) else None
        if id_ is not None:
            vocabulary.specials[name] = id_
            if name != "unk" and vocabulary.types[id_] in (NORMAL, USER_DEFINED):
                vocabulary.types[id_] = CONTROL
    for token in special_tokens({**settings, "unk_token": None}):
        id_ = ids.get(token)
        if id_ is not None and vocabulary.types[id_] in (NORMAL, USER_DEFINED):
            vocabulary.types[id_] = CONTROL
    if "eos" not in vocabulary.specials:
        raise DamagedFileError(
            f"'{folder}' names no end-of-text token",
            hint="Set eos_token in tokenizer_config.json to one of its tokens.",
        )
    for name in ("bos", "pad"):
        vocabulary.specials.setdefault(name, vocabulary.specials["eos"])


def _from_fast(path: Path, fast: Mapping[str, Any], embedder: bool, tokenizer: Callable[[], Any]) -> VocabularySource:
    """The vocabulary by the content of a `tokenizer.json`; `tokenizer` loads the source's own."""
    kind = model_type(fast)
    splitters = [step["type"] for step in steps(fast.get("pre_tokenizer"), "pretokenizers")]
    if kind == "BPE" and "ByteLevel" in splitters:
        source = byte_level(fast)
    elif kind == "BPE" and fast["model"].get("byte_fallback"):
        source = sentencepiece_bpe.from_tokenizer_json(fast)
    elif kind == "Unigram":
        source = unigram.from_tokenizer_json(fast)
    elif kind == "WordPiece":
        source = word_piece(fast)
    else:
        raise UnsupportedError(
            f"the tokenizer of '{path.parent}' is of a kind that is not supported (model {kind})",
            hint="Supported: byte-level BPE, SentencePiece BPE with byte fallback, SentencePiece unigram, WordPiece.",
        )

    def load() -> Encode:
        loaded = tokenizer()
        loaded.no_truncation()
        loaded.no_padding()
        return hf_encode(loaded, add_special=embedder)

    source.encoder, source.add_special = load, embedder
    source.vocabulary.swallowing = all_swallow(source.vocabulary.tokens, fast.get("added_tokens") or [])
    if can_cut(fast):
        source.ids_of = lambda lines: ids_of_lines(fast, lines, add_special=embedder, path=path)
    _surroundings(source, fast, embedder)
    _leave_out_stripping(source, fast)
    return source


def _surroundings(source: VocabularySource, fast: Mapping[str, Any], embedder: bool) -> None:
    """The special tokens before and after a text, by the post-processor."""
    before, after = around(fast.get("post_processor"))
    vocabulary = source.vocabulary
    vocabulary.add_bos = bool(before)
    # An end-of-text token after every prompt would end a causal model's answer before it begins.
    vocabulary.add_eos = embedder and bool(after)
    if not embedder:
        return
    if len(before) > 1 or len(after) > 1 or (vocabulary.model == "bert" and not (before and after)):
        raise UnsupportedError(
            "the tokenizer puts special tokens around a text in a way the runtime does not",
            found=f"before: {before or 'none'}, after: {after or 'none'}",
        )
    for name, tokens in (("bos", before), ("eos", after), ("sep", after)):
        if tokens:
            vocabulary.specials[name] = vocabulary.tokens.index(tokens[0])


def _leave_out_stripping(source: VocabularySource, fast: Mapping[str, Any]) -> None:
    """Special tokens that swallow the white space before them, as masks do: only texts that name them differ."""
    swallowing = [token for token in fast.get("added_tokens") or [] if token.get("special") and token.get("lstrip")]
    ids = {int(token["id"]) for token in swallowing}
    if ids:
        source.special_ids = [id_ for id_ in source.special_ids if id_ not in ids]
        names = ", ".join(token["content"] for token in swallowing[:4])
        source.caveats.append(f"{names}: white space before it is kept by the runtime and dropped by the tokenizer")
