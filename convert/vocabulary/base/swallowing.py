"""Special tokens that swallow the white space after them: Phi-3's, which llama.cpp knows by the model's name alone.

It knows nothing of files. Rule: src/llama-vocab.cpp, `llama_vocab::impl::load`, where the name has "phi-3" or "phi3".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_NAME = re.compile(r"phi-?3", re.IGNORECASE)
KEEPING = frozenset({"<unk>", "<s>", "<|endoftext|>"})  # special tokens that swallow nothing even then
_OWN = KEEPING | {"</s>"}  # a file so named whose vocabulary lacks one of these is refused


def swallows(name: str) -> bool:
    """Whether llama.cpp lets the special tokens of a model of this name swallow white space."""
    return bool(_NAME.search(name))


def all_swallow(tokens: Collection[str], added: Iterable[Mapping[str, Any]]) -> bool:
    """Whether `added` (of tokenizer.json) lets its special tokens swallow white space just as llama.cpp does then."""
    others = [bool(token.get("rstrip")) for token in added if token.get("content") not in _OWN]
    return set(tokens) >= _OWN and bool(others) and all(others)


def name_for(name: str, swallowing: bool) -> str:
    """The name under which llama.cpp does so, or does not: "phi-3" is in it, or is not."""
    if swallowing:
        return name if swallows(name) else f"Phi-3 {name}"
    return _NAME.sub("Phi 3", name)
