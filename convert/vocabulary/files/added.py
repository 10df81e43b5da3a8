"""The tokens that the small JSON files beside a vocabulary add to it or call special, as plain data.

It knows nothing of the kinds of vocabularies. Files: `tokenizer_config.json` (`added_tokens_decoder` and the named
tokens), `special_tokens_map.json` and `added_tokens.json`, as transformers writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.vocabulary.base.proof import Encode
from convert.vocabulary.files.tokenizer_json import MAX_TOKENS, content
from slm.artifacts import read_json
from slm.errors import DamagedFileError

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def read_settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` over `special_tokens_map.json`; each may be absent. Raises DamagedFileError."""
    paths = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    return {key: value for path in paths if path.exists() for key, value in read_json(path).items()}


def special_tokens(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{token: its flags} of every token that the settings name, in the order in which transformers adds them."""
    listed = [settings.get(name) for name in _NAMES]
    for name in _LISTS:
        value = settings.get(name)
        listed += list(value) if isinstance(value, list) else []
    return {text: value if isinstance(value, dict) else {} for value in listed if (text := content(value))}


def added_tokens(folder: Path, settings: Mapping[str, Any], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """`added_tokens` of a tokenizer.json: [{id, content, special, lstrip, ...}], sorted by id.

    ids: of the vocabulary itself. A named special token without an id gets the next free one, as in transformers;
    the embedding usually has no row for it. Raises DamagedFileError.
    """
    specials = special_tokens(settings)
    found: dict[str, dict[str, Any]] = {}

    def add(id_: int, text: str, flags: Mapping[str, Any], special: bool) -> None:
        own = {flag: bool(flags.get(flag)) for flag in _FLAGS}
        found[text] = {"id": id_, "content": text, **own, "special": special}

    path = folder / "added_tokens.json"
    for text, id_ in (read_json(path) if path.exists() else {}).items():
        add(int(id_), text, specials.get(text, {}), text in specials)
    for id_, token in (settings.get("added_tokens_decoder") or {}).items():
        add(int(id_), token["content"], token, bool(token.get("special")) or token["content"] in specials)
    free = 1 + max([*ids.values(), *(token["id"] for token in found.values())], default=-1)
    for text, flags in specials.items():
        if text not in found:
            id_ = ids.get(text, free)
            free += id_ == free
            add(id_, text, flags, True)
    for text, token in found.items():
        if not 0 <= token["id"] < MAX_TOKENS or ids.get(text, token["id"]) != token["id"]:
            raise DamagedFileError(f"'{folder}' gives the token {text!r} an impossible id", found=str(token["id"]))
    return sorted(found.values(), key=lambda token: int(token["id"]))


def splitting(ids: Mapping[str, int], encode: Encode) -> Encode:
    """`encode` for the text between added tokens, which are found in the raw text first, the longest at each place."""
    if not ids:
        return encode
    pattern = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) + ")")

    def split(text: str) -> list[int]:
        found: list[int] = []
        for part in pattern.split(text):
            if part:
                found += [ids[part]] if part in ids else encode(part)
        return found

    return split
