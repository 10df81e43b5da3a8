"""Byte-level BPE of a `tokenizer.json` -> GgufVocabulary of llama.cpp's kind `gpt2`. It knows nothing of files."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from convert.vocabulary.base.pre_tokenizers import pre_name
from convert.vocabulary.base.proof import MIXED_LINES, VocabularySource
from convert.vocabulary.base.vocab import CONTROL, USER_DEFINED, GgufVocabulary
from convert.vocabulary.files.tokenizer_json import steps, token_table
from slm.errors import UnsupportedError


def added_ids(vocabulary: GgufVocabulary) -> list[int]:
    """The ids of added tokens, special or not."""
    return [i for i, t in enumerate(vocabulary.types) if t in (CONTROL, USER_DEFINED)]


def refuse_affixes(model: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for BPE with marks inside words or at their ends, which the runtime does not make."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(f"the tokenizer marks pieces with '{model[name]}' ({name}), the runtime does not")


def byte_level(fast: Mapping[str, Any]) -> VocabularySource:
    """Vocabulary and caveats of a byte-level BPE; the caller adds the encoder.

    Raises UnsupportedError for a pre-tokenizer or normalizer that the runtime does not have.
    """
    model = fast["model"]
    refuse_affixes(model)
    pre = pre_name(steps(fast.get("pre_tokenizer"), "pretokenizers"), bool(model.get("ignore_merges")))
    vocabulary = GgufVocabulary("gpt2", *token_table(fast, model["vocab"]), pre=pre)
    vocabulary.merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    source = VocabularySource(vocabulary, lambda: lambda _: [], special_ids=added_ids(vocabulary))
    normalizers = [step["type"] for step in steps(fast.get("normalizer"), "normalizers")]
    if normalizers == ["NFC"]:
        source.lines = [unicodedata.normalize("NFC", line) for line in MIXED_LINES]
        source.caveats.append("the runtime does not compose characters (NFC): decomposed accents get other ids")
    elif normalizers:
        raise UnsupportedError(f"the tokenizer normalizes text ({', '.join(normalizers)}), which the runtime does not")
    return source
