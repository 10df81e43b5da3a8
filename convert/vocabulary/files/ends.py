"""The tokens that end an answer beside the end-of-text token: which a checkpoint has, and where GGUF keeps them.

llama.cpp stops at its end-of-text, end-of-turn and end-of-message tokens and at some that it knows by their text
(src/llama-vocab.cpp, `special_eog_ids`); a name that it does not know needs one of its keys. All of them stand in a
key of ours as well, for our engine and for the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.vocabulary.base.vocab import CONTROL, USER_DEFINED, GgufVocabulary
from slm.artifacts import read_json
from slm.chat.turn_end import END_TOKENS, turn_end

EOT, EOM = "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"
# Those that llama.cpp stops at whatever the keys say.
_KNOWN = frozenset(
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "<|eom_id|>",
     "< EOT >", "_<EOT>", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<eos>"]
)  # fmt: skip


def end_ids(folder: Path, config: Mapping[str, Any], vocabulary: GgufVocabulary) -> list[int]:
    """Ids of a checkpoint's end tokens beside eos: the chat template's, then generation_config.json's and config's."""
    path = folder / "generation_config.json"
    listed = [template_end(vocabulary), *_ids(read_json(path) if path.exists() else {}), *_ids(config)]
    eos, size = vocabulary.specials.get("eos"), len(vocabulary.tokens)
    return [id_ for id_ in dict.fromkeys(listed) if id_ is not None and id_ != eos and 0 <= id_ < size]


def template_end(vocabulary: GgufVocabulary) -> int | None:
    """The special token that the vocabulary's chat template puts behind an answer; None where it has none."""
    if not vocabulary.chat_template:
        return None
    ids = {t: i for i, t in enumerate(vocabulary.tokens) if vocabulary.types[i] in (CONTROL, USER_DEFINED)}
    named = {name: vocabulary.tokens[id_] for name, id_ in vocabulary.specials.items() if name in ("bos", "eos")}
    marker = turn_end(vocabulary.chat_template, ids, bos_token=named.get("bos", ""), eos_token=named.get("eos", ""))
    return None if marker is None else ids[marker]


def ends_to_metadata(vocabulary: GgufVocabulary) -> dict[str, Any]:
    """GGUF key-values for `vocabulary.ends`: llama.cpp's for the turn's end and for what it does not know by name."""
    ends = vocabulary.ends
    if not ends:
        return {}
    own = template_end(vocabulary)
    unknown = [id_ for id_ in ends if vocabulary.tokens[id_] not in _KNOWN]
    slots = list(dict.fromkeys([own, *unknown] if own in ends else unknown))
    keys = {key: id_ for key, id_ in zip((EOT, EOM), slots, strict=False) if id_ is not None}
    return {**keys, END_TOKENS: np.array(ends, dtype=np.uint32)}


def ends_from_metadata(metadata: Mapping[str, Any], size: int) -> list[int]:
    """Ids of the end tokens beside eos that a GGUF file's key-values name; those out of range are left out."""
    listed = metadata.get(END_TOKENS)
    ids = [metadata.get(EOT), metadata.get(EOM), *([] if listed is None else np.atleast_1d(listed).tolist())]
    return [id_ for id_ in dict.fromkeys(ids) if isinstance(id_, int) and 0 <= id_ < size]


def _ids(settings: Mapping[str, Any]) -> list[int]:
    value = settings.get("eos_token_id")
    return [id_ for id_ in (value if isinstance(value, list) else [value]) if type(id_) is int]
