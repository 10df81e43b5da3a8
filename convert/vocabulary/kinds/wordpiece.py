"""WordPiece of a `tokenizer.json` (BERT) -> GgufVocabulary of llama.cpp's kind `bert`. It knows nothing of files.

llama.cpp writes pieces that begin a word with ▁ and those inside a word bare, cleans the text as BERT's normalizer
does, and takes the longest piece each time (src/llama-vocab.cpp, `llm_tokenizer_wpm_session`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unicodedata import category

from convert.vocabulary.base.proof import MIXED_LINES, VocabularySource
from convert.vocabulary.base.vocab import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, GgufVocabulary
from convert.vocabulary.files.tokenizer_json import steps, token_table
from convert.vocabulary.kinds.byte_level import added_ids
from slm.errors import UnsupportedError


def _stripped_otherwise(c: str) -> bool:
    """Of a Hangul syllable the runtime keeps only the first letter; spacing vowel signs it takes for accents."""
    return "\uac00" <= c <= "\ud7a3" or category(c) == "Mc"


def word_piece(fast: Mapping[str, Any]) -> VocabularySource:
    """Vocabulary and caveats of a WordPiece tokenizer; the caller adds the encoder.

    Raises UnsupportedError for a normalizer or pre-tokenizer other than BERT's (Japanese BERTs cut words with MeCab).
    """
    model = fast["model"]
    prefix = model.get("continuing_subword_prefix", "##")
    normalizers = steps(fast.get("normalizer"), "normalizers")
    splitters = [step["type"] for step in steps(fast.get("pre_tokenizer"), "pretokenizers")]
    if [step["type"] for step in normalizers] != ["BertNormalizer"] or splitters != ["BertPreTokenizer"]:
        found = ", ".join([*(step["type"] for step in normalizers), *splitters]) or "none"
        raise UnsupportedError(
            "the WordPiece tokenizer does not clean and split text as BERT does, which is all the runtime can",
            found=found,
        )
    options = normalizers[0]
    if not options.get("clean_text", True) or not options.get("handle_chinese_chars", True):
        raise UnsupportedError("the tokenizer keeps control characters or Chinese words whole, the runtime does not")
    tokens, types = token_table(fast, model["vocab"])
    for id_, token in enumerate(tokens):
        if token == model.get("unk_token", "[UNK]"):
            types[id_] = UNKNOWN
        elif types[id_] not in (CONTROL, USER_DEFINED, UNUSED):
            tokens[id_] = token[len(prefix) :] if token.startswith(prefix) and token != prefix else "▁" + token
    vocabulary = GgufVocabulary("bert", tokens, types)
    vocabulary.lower_case = bool(options.get("lowercase", True))
    accents = options.get("strip_accents")
    vocabulary.strip_accents = vocabulary.lower_case if accents is None else bool(accents)
    source = VocabularySource(vocabulary, lambda: lambda _: [], special_ids=added_ids(vocabulary))
    if vocabulary.strip_accents:
        source.lines = ["".join(c for c in line if not _stripped_otherwise(c)) for line in MIXED_LINES]
        source.caveats.append("the runtime strips accents otherwise in Hangul and the scripts of India")
    longest = int(model.get("max_input_chars_per_word", 100))
    source.caveats.append(f"words of more than {longest} characters, unknown to the tokenizer, are cut by the runtime")
    return source
