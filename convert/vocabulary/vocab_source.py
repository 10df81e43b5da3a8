"""Reads a checkpoint's tokenizer files into a Vocabulary, with the source tokenizer to prove it against.

It knows nothing of weights, and leaves each kind of tokenizer to its own module: byte-level BPE, SentencePiece BPE,
SentencePiece unigram, WordPiece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.malformed import fast_tokenizer_of, load_fast_tokenizer
from convert.vocabulary import sentencepiece_bpe, unigram
from convert.vocabulary.added import added_tokens, read_settings, special_tokens, splitting
from convert.vocabulary.byte_level import byte_level
from convert.vocabulary.pre_tokenizers import pre_name
from convert.vocabulary.proof import Encode, Source, hf_encode
from convert.vocabulary.sentencepiece_model import BPE, UNIGRAM, read_sentencepiece
from convert.vocabulary.slow_files import class_of, default_specials, fast_form, find_slow_file
from convert.vocabulary.tokenizer_json import around, content, model_type, read_json, steps
from convert.vocabulary.vocab import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary
from convert.vocabulary.wordpiece import word_piece
from slm.errors import DamagedFileError, MissingFileError, UnsupportedError

__all__ = ["Source", "chat_template", "pre_name", "read_json", "read_vocabulary"]

_SPECIALS = ("bos", "eos", "unk", "sep", "pad", "mask")
_SPM_FILES = ("spiece.model", "tokenizer.model")
# Classes whose ids are those of the model file; others shift them, or change the text in Python first.
_SPM_CLASSES = ("", "T5Tokenizer", "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizer")


def read_vocabulary(folder: Path, config: Mapping[str, Any], *, embedder: bool = False) -> Source:
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
                source = _from_model_file(models[0], settings, lower)
            else:
                source = _from_fast(path, fast, embedder, lambda: load_fast_tokenizer(path))
        elif models:
            if class_of(settings, config) not in _SPM_CLASSES:
                raise UnsupportedError(
                    f"the tokenizer class {class_of(settings, config)} changes what '{models[0]}' says, in Python code",
                    hint="Save a tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
                )
            source = _from_model_file(models[0], settings, False)
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
    if class_of(settings, config) == "BertJapaneseTokenizer" or splitter in ("mecab", "sudachi", "jumanpp"):
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
    vocabulary: Vocabulary, folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any], embedder: bool
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


def _from_fast(path: Path, fast: Mapping[str, Any], embedder: bool, tokenizer: Callable[[], Any]) -> Source:
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
    _surroundings(source, fast, embedder)
    _leave_out_stripping(source, fast)
    return source


def _surroundings(source: Source, fast: Mapping[str, Any], embedder: bool) -> None:
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


def _leave_out_stripping(source: Source, fast: Mapping[str, Any]) -> None:
    """Special tokens that swallow the white space before them, as masks do: only texts that name them differ."""
    swallowing = [token for token in fast.get("added_tokens") or [] if token.get("special") and token.get("lstrip")]
    ids = {int(token["id"]) for token in swallowing}
    if ids:
        source.special_ids = [id_ for id_ in source.special_ids if id_ not in ids]
        names = ", ".join(token["content"] for token in swallowing[:4])
        source.caveats.append(f"{names}: white space before it is kept by the runtime and dropped by the tokenizer")


def _from_model_file(path: Path, settings: Mapping[str, Any], lower: bool) -> Source:
    model = read_sentencepiece(path)
    lower = lower or bool(settings.get("do_lower_case"))
    if model.space_is_suffix or not model.escape_whitespaces:
        raise UnsupportedError(f"'{path}' treats white space in a way the runtime does not")
    if model.kind == UNIGRAM:
        source = unigram.from_model_file(path, model, lower)
    elif model.kind == BPE:
        source = sentencepiece_bpe.from_model_file(path, model, settings, lower)
    else:
        raise UnsupportedError(
            f"'{path}' is a SentencePiece model of kind {model.kind}", hint="Supported: unigram, BPE."
        )
    ids = {piece: id_ for id_, piece in enumerate(model.pieces)}
    _add_tokens(source, added_tokens(path.parent, settings, ids))
    if model.add_dummy_prefix and settings.get("legacy") is False:
        source.special_ids = []
        source.caveats.append("after a special token the runtime puts a space that the tokenizer does not put")
    return source


def _add_tokens(source: Source, added: list[dict[str, Any]]) -> None:
    """Put tokens that are found in the raw text into a model file's vocabulary and before its encoder."""
    vocabulary, load = source.vocabulary, source.encoder
    for token in added:
        id_ = int(token["id"])
        spare = range(len(vocabulary.tokens), id_ + 1)
        vocabulary.tokens += [f"[PAD{i}]" for i in spare]
        vocabulary.types += [UNUSED] * len(spare)
        vocabulary.scores += [0.0] * len(spare)
        vocabulary.tokens[id_] = token["content"]
        if vocabulary.types[id_] != UNKNOWN:
            vocabulary.types[id_] = CONTROL if token["special"] else USER_DEFINED
    ids = {str(token["content"]): int(token["id"]) for token in added}
    source.encoder = lambda: splitting(ids, load())
    source.special_ids = list(ids.values())
