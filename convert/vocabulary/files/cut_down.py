"""A `tokenizer.json` cut down to what a few given lines can touch: the same ids for less memory and time.

It knows nothing of GGUF. The `tokenizers` library takes 400 MB and seconds for 262,144 pieces and 514,000 merges, of
which a few thousand can occur in the lines of a proof. BPE joins neighbours into pieces, and unigram's search walks
over pieces, that stand in the text as the normalizer and the pre-tokenizer leave it; a piece that does not stand there
takes no part. So everything else of the tokenizer stays as it is, and the ids are translated back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.source.malformed import fast_tokenizer_of, reading
from convert.vocabulary.base.proof import hf_encode
from convert.vocabulary.files.tokenizer_json import byte_of, model_type

_START = 3  # characters by which most pieces are seen not to occur
_EMPTY = {"type": "BPE", "vocab": {}, "merges": []}


def can_cut(fast: Mapping[str, Any]) -> bool:
    """Whether the tokenizer is of a kind that can be cut down."""
    return model_type(fast) in ("BPE", "Unigram")


def ids_of_lines(fast: Mapping[str, Any], lines: Sequence[str], *, add_special: bool, path: Path) -> list[list[int]]:
    """The tokenizer's ids of each line. path: where it comes from, for errors. Raises DamagedFileError."""
    with reading(f"'{path}'"):
        smaller, old_ids = cut_down(fast, lines, path)
    encode = hf_encode(fast_tokenizer_of(smaller, path), add_special=add_special)
    return [[old_ids[id_] for id_ in encode(line)] for line in lines]


def cut_down(fast: Mapping[str, Any], lines: Iterable[str], path: Path) -> tuple[dict[str, Any], list[int]]:
    """(the smaller tokenizer.json, the old id of each of its ids)."""
    model, added = fast["model"], fast.get("added_tokens") or []
    haystack = "\0".join(_words(fast, lines, path))
    starts = {haystack[at : at + size] for size in range(1, _START + 1) for at in range(len(haystack))}
    always = {str(token["content"]) for token in added}

    def occurs(piece: str) -> bool:
        return (piece[:_START] in starts and piece in haystack) or piece in always or byte_of(piece) is not None

    if isinstance(model["vocab"], dict):
        ids = {piece: id_ for piece, id_ in model["vocab"].items() if occurs(piece) or piece == model.get("unk_token")}
    else:
        worst = min(range(len(model["vocab"])), key=lambda id_: float(model["vocab"][id_][1]))  # scores unknown ones
        kept = {model["unk_id"], worst}
        ids = {piece: id_ for id_, (piece, _) in enumerate(model["vocab"]) if id_ in kept or occurs(piece)}
    ids.update((str(token["content"]), int(token["id"])) for token in added)
    pieces = sorted(ids, key=ids.__getitem__)
    new = {piece: id_ for id_, piece in enumerate(pieces)}
    smaller = dict(model)
    if isinstance(model["vocab"], dict):
        smaller["vocab"] = new
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        smaller["merges"] = [
            [left, right] for left, right in pairs if left + right in new and left in new and right in new
        ]
    else:
        size = len(model["vocab"])
        smaller["vocab"] = [model["vocab"][ids[piece]] if ids[piece] < size else [piece, 0.0] for piece in pieces]
        smaller["unk_id"] = pieces.index(model["vocab"][model["unk_id"]][0])
    return {
        **fast,
        "truncation": None,
        "padding": None,
        "model": smaller,
        "added_tokens": [{**token, "id": new[token["content"]]} for token in added],
        "post_processor": _renumbered(fast.get("post_processor"), new),
    }, [ids[piece] for piece in pieces]


def _words(fast: Mapping[str, Any], lines: Iterable[str], path: Path) -> set[str]:
    """The lines as the model gets them, whole and between added tokens."""
    without = {**fast, "model": _EMPTY, "added_tokens": [], "post_processor": None, "decoder": None}
    tokenizer = fast_tokenizer_of(without, path)
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    contents = sorted((token["content"] for token in fast.get("added_tokens") or []), key=len, reverse=True)
    between = re.compile("|".join(map(re.escape, contents)) or r"(?!)")
    words: set[str] = set()
    for line in lines:
        for part in {line, *between.split(line)}:
            text = part if normalizer is None else normalizer.normalize_str(part)
            words |= {text} if splitter is None else {word for word, _ in splitter.pre_tokenize_str(text)}
    return words


def _renumbered(post: Any, new: Mapping[str, int]) -> Any:
    """A post-processor with the new ids of the tokens it adds."""
    if not post:
        return post
    if post["type"] == "Sequence":
        return {**post, "processors": [_renumbered(inner, new) for inner in post["processors"]]}
    if post["type"] in ("BertProcessing", "RobertaProcessing"):
        return {**post, **{name: [post[name][0], new[post[name][0]]] for name in ("cls", "sep")}}
    if post["type"] == "TemplateProcessing":
        used = post["special_tokens"]
        return {**post, "special_tokens": {
            name: {**token, "ids": [new[text] for text in token["tokens"]]} for name, token in used.items()
        }}  # fmt: skip
    return post
