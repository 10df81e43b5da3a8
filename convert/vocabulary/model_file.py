"""A SentencePiece model file (`spiece.model`, `tokenizer.model`) under its tokenizer class -> Vocabulary and encoder.

It leaves unigram and BPE to their modules, and knows what only the class says: which special tokens are found in the
raw text, and which are put around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.vocabulary.base.proof import Encode, VocabularySource
from convert.vocabulary.base.vocab import CONTROL, UNKNOWN, UNUSED, USER_DEFINED
from convert.vocabulary.files.added import added_tokens, splitting
from convert.vocabulary.files.sentencepiece_file import BPE, UNIGRAM, read_sentencepiece
from convert.vocabulary.kinds import sentencepiece_bpe, unigram
from slm.errors import UnsupportedError

# Classes whose ids are those of the model file; others shift them, or change the text in Python first.
_CLASSES = ("", "T5Tokenizer", "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizer")


def from_model_file(
    path: Path, settings: Mapping[str, Any], tokenizer_class: str, lower: bool, embedder: bool
) -> VocabularySource:
    """settings: of tokenizer_config.json. lower: text is lower-cased first, as `do_lower_case` says as well.

    Raises DamagedFileError, or UnsupportedError for a class or a model that changes text as the runtime does not.
    """
    if tokenizer_class not in _CLASSES:
        raise UnsupportedError(
            f"the tokenizer class {tokenizer_class} changes what '{path}' says, in Python code",
            hint="Save a tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
        )
    model = read_sentencepiece(path)
    lower = lower or bool(settings.get("do_lower_case"))
    if model.space_is_suffix or not model.escape_whitespaces:
        raise UnsupportedError(f"'{path}' treats white space in a way the runtime does not")
    if model.kind == UNIGRAM:
        source = unigram.from_model_file(path, model, lower)
    elif model.kind == BPE:
        source = sentencepiece_bpe.from_model_file(path, model, lower)
    else:
        raise UnsupportedError(
            f"'{path}' is a SentencePiece model of kind {model.kind}", hint="Supported: unigram, BPE."
        )
    ids = {piece: id_ for id_, piece in enumerate(model.pieces)}
    _add_tokens(source, added_tokens(path.parent, settings, ids))
    # T5's class ends a text with </s>, Llama's begins one with <s>, unless told otherwise.
    t5 = tokenizer_class == "T5Tokenizer" or (model.kind == UNIGRAM and not tokenizer_class)
    source.vocabulary.add_bos = bool(settings.get("add_bos_token", not t5))
    if embedder:
        source.vocabulary.add_eos = bool(settings.get("add_eos_token", t5))
        _surround(source)
    if model.add_dummy_prefix and settings.get("legacy") is False:
        source.special_ids = []
        source.caveats.append("after a special token the runtime puts a space that the tokenizer does not put")
    return source


def _add_tokens(source: VocabularySource, added: list[dict[str, Any]]) -> None:
    """Put tokens that are found in the raw text into the vocabulary and before the encoder."""
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


def _surround(source: VocabularySource) -> None:
    """Have the encoder put the special tokens around a text, as the vocabulary says."""
    vocabulary, load = source.vocabulary, source.encoder

    def surrounding() -> Encode:
        encode = load()
        before = [vocabulary.specials["bos"]] if vocabulary.add_bos else []
        after = [vocabulary.specials["eos"]] if vocabulary.add_eos else []
        return lambda text: [*before, *encode(text), *after]

    source.encoder, source.add_special = surrounding, True
