"""SentencePiece BPE -> GgufVocabulary of llama.cpp's kind `llama`, or of its byte-fallback BPE where merges have ranks.

It knows nothing of unigram models. Sources: `tokenizer.json` (BPE with byte fallback) and `tokenizer.model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.source.malformed import load_sentencepiece
from convert.vocabulary.base.charsmap import read_charsmap
from convert.vocabulary.base.pre_tokenizers import RANKED_PRE
from convert.vocabulary.base.proof import MIXED_LINES, Encode, VocabularySource
from convert.vocabulary.base.vocab import BYTE, NORMAL, UNKNOWN, USER_DEFINED, GgufVocabulary
from convert.vocabulary.files.sentencepiece_file import SentencePieceModel
from convert.vocabulary.files.tokenizer_json import byte_of, is_space_rule, space_prefix, steps, token_table
from convert.vocabulary.kinds.byte_level import added_ids, refuse_affixes
from slm.errors import UnsupportedError


def from_tokenizer_json(fast: Mapping[str, Any]) -> VocabularySource:
    """Vocabulary and caveats of a BPE with byte fallback; the caller adds the encoder.

    llama.cpp's `llama` kind joins any two neighbours whose union is a token, the best score first, as SentencePiece
    does. The `tokenizers` library joins only listed pairs; for a converted SentencePiece model all pairs are listed,
    so both are one. A vocabulary that the library trained itself lists one pair a token: it keeps its merges.
    """
    model = fast["model"]
    refuse_affixes(model)
    _refuse_normalizers(fast)
    vocabulary = GgufVocabulary("llama", *token_table(fast, model["vocab"]))
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    unknown = model.get("unk_token")
    for id_, token in enumerate(vocabulary.tokens):
        kind = vocabulary.types[id_]
        if byte_of(token) is not None and kind == NORMAL:
            vocabulary.types[id_] = BYTE
        elif token == unknown:
            vocabulary.types[id_] = UNKNOWN
            vocabulary.specials["unk"] = id_
        elif kind == USER_DEFINED:
            # Added tokens are looked for in the raw text, where a space is a space.
            vocabulary.tokens[id_] = token.replace("▁", " ")
    scheme = space_prefix(fast)
    vocabulary.add_space_prefix = scheme != "never"
    if scheme == "never" and len(ranks) == len(model["merges"]):
        vocabulary.model, vocabulary.pre = "gpt2", RANKED_PRE
        vocabulary.merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    else:
        unreached = -float(len(model["merges"]) + 1)
        vocabulary.scores = [-float(ranks[t]) if t in ranks else unreached for t in vocabulary.tokens]
    source = VocabularySource(vocabulary, lambda: lambda _: [], special_ids=added_ids(vocabulary))
    if scheme == "first":
        source.special_ids = []
        source.caveats.append("after a special token the runtime puts a space that the tokenizer does not put")
    return source


def _refuse_normalizers(fast: Mapping[str, Any]) -> None:
    for step in steps(fast.get("normalizer"), "normalizers"):
        if step["type"] != "Prepend" and not is_space_rule(step):
            raise UnsupportedError(
                f"the tokenizer's normalizer '{step['type']}' is not supported for a SentencePiece BPE model"
            )


def from_model_file(path: Path, model: SentencePieceModel, lower: bool) -> VocabularySource:
    """Vocabulary and encoder of a `tokenizer.model` of kind BPE.

    Raises UnsupportedError when it changes the text before it looks pieces up: the runtime's `llama` kind does not.
    A character map that leaves ordinary text alone is let through with a caveat.
    """
    if lower:
        raise UnsupportedError(f"'{path}' is a SentencePiece BPE model that lower-cases; the runtime does not")
    mapping = read_charsmap(model.charsmap)
    changed = {c: mapping[c] for line in MIXED_LINES for c in line if mapping.get(c, c) != c}
    if changed:
        shown = ", ".join(f"{c!r} to {to!r}" for c, to in list(changed.items())[:4])
        raise UnsupportedError(
            f"'{path}' is a SentencePiece BPE model that normalizes text with a character map; the runtime does not",
            found=f"it turns {shown}",
        )
    if model.remove_extra_whitespaces:
        raise UnsupportedError(
            f"'{path}' is a SentencePiece BPE model that drops spaces (remove_extra_whitespaces); the runtime does not"
        )
    vocabulary = GgufVocabulary("llama", list(model.pieces), list(model.types), list(model.scores))
    vocabulary.specials = {name: id_ for name, id_ in model.ids.items() if 0 <= id_ < len(model.pieces)}
    vocabulary.add_space_prefix = model.add_dummy_prefix

    def load() -> Encode:
        processor = load_sentencepiece(path)
        return lambda text: list(processor.encode(text))

    source = VocabularySource(vocabulary, load)
    if mapping:
        source.caveats.append(f"{len(mapping):,} rare characters that the tokenizer rewrites first get other ids")
    return source
