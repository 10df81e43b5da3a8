"""GgufVocabulary -> `tokenizer.json` and `tokenizer_config.json`, as the `tokenizers` library reads them.

It knows nothing of GGUF files and needs no `tokenizers`; whether the result is right is for
`convert.vocabulary.base.proof` to say.
"""

from __future__ import annotations

from typing import Any

from convert.vocabulary.base.pre_tokenizers import RANKED_PRE, byte_level_step, ignores_merges, pre_tokenizer_of
from convert.vocabulary.base.swallowing import KEEPING
from convert.vocabulary.base.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, GgufVocabulary
from slm.errors import UnsupportedError

__all__ = ["merges_from_scores", "pre_tokenizer_of", "tokenizer_config", "tokenizer_json"]


def merges_from_scores(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE vocabulary, best first.

    SentencePiece joins the neighbours whose union has the highest score; `tokenizers` wants ranked pairs. So each
    normal piece contributes each of its splits into two pieces, ranked by the piece's score (equal scores: by the
    ids of the parts). About 3 s for Gemma's 262,144 tokens.
    """
    ids = {t: i for i, (t, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)) if kind == NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    get = ids.get
    for token, id_ in ids.items():
        score = -vocabulary.scores[id_]
        for cut in range(1, len(token)):
            left = get(token[:cut])
            if left is None:
                continue
            right = get(token[cut:])
            if right is not None:
                ranked.append((score, left, right, token[:cut], token[cut:]))
    ranked.sort()
    return [(left, right) for _, _, _, left, right in ranked]


def _ranked(vocabulary: GgufVocabulary) -> list[Any]:
    return [merge.split(" ", 1) if merge[0] != " " else merge for merge in vocabulary.merges]


def _added_tokens(vocabulary: GgufVocabulary) -> list[dict[str, Any]]:
    return [
        {
            "id": id_,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": vocabulary.swallowing and token not in KEEPING,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for id_, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]


def _post_processor(vocabulary: GgufVocabulary) -> dict[str, Any] | None:
    before = [vocabulary.specials["bos"]] if vocabulary.add_bos and "bos" in vocabulary.specials else []
    after = [vocabulary.specials["eos"]] if vocabulary.add_eos and "eos" in vocabulary.specials else []
    if not before and not after:
        return None

    def special(id_: int, type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": vocabulary.tokens[id_], "type_id": type_id}}

    def part(name: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": type_id}}
        return [*(special(i, type_id) for i in before), text, *(special(i, type_id) for i in after)]

    used = {
        vocabulary.tokens[i]: {"id": vocabulary.tokens[i], "ids": [i], "tokens": [vocabulary.tokens[i]]}
        for i in {*before, *after}
    }
    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": part("A", 0) + part("B", 1),
        "special_tokens": used,
    }


def tokenizer_json(vocabulary: GgufVocabulary) -> dict[str, Any]:
    """The content of `tokenizer.json`. Raises UnsupportedError (unigram, unknown pre-tokenizer)."""
    ids = {token: id_ for id_, token in enumerate(vocabulary.tokens)}
    bpe: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
    }
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    if vocabulary.model == "gpt2" and vocabulary.pre != RANKED_PRE:
        pre_tokenizer = pre_tokenizer_of(vocabulary.pre)
        bpe["ignore_merges"] = ignores_merges(vocabulary.pre)
        bpe["merges"] = _ranked(vocabulary)
        normalizer = {"type": "NFC"} if vocabulary.pre == "qwen2" else None
        decoder: dict[str, Any] = byte_level_step(True)
    elif vocabulary.model in ("llama", "gpt2"):
        if BYTE not in vocabulary.types or not (vocabulary.scores or vocabulary.merges):
            raise UnsupportedError("the SentencePiece vocabulary has no scores or no byte tokens")
        unknown = vocabulary.specials.get("unk")
        bpe.update(byte_fallback=True, fuse_unk=True)
        bpe["merges"] = _ranked(vocabulary) if vocabulary.merges else merges_from_scores(vocabulary)
        bpe["unk_token"] = None if unknown is None else vocabulary.tokens[unknown]
        space: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
        steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
        normalizer = space
        if vocabulary.add_space_prefix:
            normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}
            steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        decoder = {"type": "Sequence", "decoders": steps}
    else:
        raise UnsupportedError(
            f"a '{vocabulary.model}' vocabulary is not restored", hint="Supported: gpt2 (byte-level BPE), llama."
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _post_processor(vocabulary),
        "decoder": decoder,
        "model": bpe,
    }


def tokenizer_config(vocabulary: GgufVocabulary, context_length: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`: the generic fast tokenizer, so that tokenizer.json is taken literally."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
    }
    for name, id_ in vocabulary.specials.items():
        config[f"{name}_token"] = vocabulary.tokens[id_]
    if "pad_token" not in config and "eos_token" in config:
        config["pad_token"] = config["eos_token"]  # training needs one; labels there are masked anyway
    return config
