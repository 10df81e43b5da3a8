"""A vocabulary as GGUF keeps it: tokens, types, scores or merges, special ids. It knows nothing of where it came from.

Keys: llama.cpp, src/llama-arch.cpp (`tokenizer.ggml.*`); token types: include/llama.h, `llama_token_type`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from convert.vocabulary.base.charsmap import read_charsmap
from convert.vocabulary.base.swallowing import swallows
from slm.errors import DamagedFileError, MismatchError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Our field -> GGUF key of the special ids.
SPECIAL_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # spelt so in the format
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
# What llama.cpp assumes when a key is absent (src/llama-vocab.cpp, `llama_vocab::impl::load`).
_ABSENT: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
}


@dataclass
class GgufVocabulary:
    """`model` is gpt2 (byte-level BPE), llama (SentencePiece BPE), t5 (SentencePiece unigram) or bert (WordPiece).

    `specials` maps bos, eos, unk, sep, pad, mask to ids. `scores` is there for llama and t5, `merges` for gpt2.
    """

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    specials: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    lower_case: bool = False  # a key for bert; for t5 there is none, so it is folded into the charsmap
    strip_accents: bool = False  # bert only
    chat_template: str | None = None
    ends: list[int] = field(default_factory=list)  # beside eos (`convert.vocabulary.files.ends`)
    swallowing: bool = False  # special tokens take the white space after them (`convert.vocabulary.base.swallowing`)

    def fitted(self, rows: int) -> GgufVocabulary:
        """The same vocabulary with exactly as many tokens as the embedding has rows.

        Spare rows get unused `[PAD<id>]` tokens; added tokens beyond the last row have no embedding and go.
        Raises MismatchError when ordinary tokens lie beyond it.
        """
        if len(self.tokens) > rows and any(t in (NORMAL, BYTE) for t in self.types[rows:]):
            raise MismatchError(f"the tokenizer has {len(self.tokens):,} tokens, the embedding only {rows:,} rows")
        spare = range(len(self.tokens), rows)
        self.tokens = self.tokens[:rows] + [f"[PAD{i}]" for i in spare]
        self.types = self.types[:rows] + [UNUSED] * len(spare)
        if self.scores:
            self.scores = self.scores[:rows] + [-10_000.0] * len(spare)
        self.specials = {name: id_ for name, id_ in self.specials.items() if id_ < rows}
        self.ends = [id_ for id_ in self.ends if id_ < rows]
        return self

    def check(self) -> None:
        """Raise DamagedFileError for what llama.cpp would abort on."""
        if len(set(self.tokens)) != len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise DamagedFileError(f"the vocabulary has the token {twice!r} twice")
        if "" in self.tokens:
            raise DamagedFileError(f"the vocabulary has an empty token, id {self.tokens.index('')}")
        if len(self.types) != len(self.tokens) or (self.scores and len(self.scores) != len(self.tokens)):
            raise DamagedFileError("the vocabulary's tokens, types and scores are not equally many")
        if self.charsmap:
            _check_charsmap(self.charsmap)
        if self.model == "llama":
            # llama.cpp ends the process on a byte that no token stands for (src/llama-vocab.cpp, `byte_to_token`).
            known = set(self.tokens)
            absent = [byte for byte in range(1, 256) if f"<0x{byte:02X}>" not in known and chr(byte) not in known]
            if BYTE not in self.types or absent:
                raise DamagedFileError(
                    "the SentencePiece vocabulary has no tokens for some bytes, which the runtime needs",
                    found=", ".join(f"{byte:#04x}" for byte in absent[:8]) or "no tokens of the byte type",
                )

    def to_metadata(self) -> dict[str, Any]:
        """GGUF key-values; every special id the runtime would otherwise assume is written."""
        self.check()
        metadata: dict[str, Any] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": np.array(self.types, dtype=np.int32),
        }
        if self.model == "gpt2":
            metadata["tokenizer.ggml.merges"] = self.merges
        elif self.model == "bert":
            metadata["tokenizer.ggml.normalizer.lowercase"] = self.lower_case
            metadata["tokenizer.ggml.normalizer.strip_accents"] = self.strip_accents
        else:
            metadata["tokenizer.ggml.scores"] = np.array(self.scores, dtype=np.float32)
        for name, key in SPECIAL_KEYS.items():
            if name in self.specials:
                metadata[key] = self.specials[name]
        metadata["tokenizer.ggml.add_bos_token"] = self.add_bos
        metadata["tokenizer.ggml.add_eos_token"] = self.add_eos
        metadata["tokenizer.ggml.add_space_prefix"] = self.add_space_prefix
        if self.model == "t5":
            metadata["tokenizer.ggml.remove_extra_whitespaces"] = self.remove_extra_whitespaces
            if self.charsmap:
                metadata["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(self.charsmap, dtype=np.uint8)
        if self.chat_template:
            metadata["tokenizer.chat_template"] = self.chat_template
        return metadata


@lru_cache(maxsize=4)
def _check_charsmap(charsmap: bytes) -> None:
    """Raise DamagedFileError for a character map that ends llama.cpp's process; about a second for nmt_nfkc's."""
    read_charsmap(charsmap)


def from_metadata(metadata: Mapping[str, Any]) -> GgufVocabulary:
    """The vocabulary of a GGUF file, with llama.cpp's assumptions filled in. Raises DamagedFileError."""
    model = str(metadata.get("tokenizer.ggml.model", ""))
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise DamagedFileError("the GGUF file has no vocabulary")
    types = metadata.get("tokenizer.ggml.token_type")
    scores = metadata.get("tokenizer.ggml.scores")
    # Booleans' defaults differ by kind: src/llama-vocab.cpp, after the pre-tokenizer's name.
    spm, llama3 = model == "llama", str(metadata.get("tokenizer.ggml.pre")) in ("llama3", "llama-v3", "llama-bpe")
    specials = dict(_ABSENT.get(model, {}))
    for name, key in SPECIAL_KEYS.items():
        if key in metadata:
            specials[name] = int(metadata[key])
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
    template = metadata.get("tokenizer.chat_template")
    vocabulary = GgufVocabulary(
        model=model,
        tokens=tokens,
        types=[NORMAL] * len(tokens) if types is None else [int(t) for t in types],
        scores=[] if scores is None else [float(s) for s in scores],
        merges=list(metadata.get("tokenizer.ggml.merges", [])),
        pre=str(metadata.get("tokenizer.ggml.pre", "default")),
        specials={name: id_ for name, id_ in specials.items() if id_ < len(tokens)},
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", spm or llama3)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", model == "t5")),
        add_space_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", spm)),
        remove_extra_whitespaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)),
        charsmap=b"" if charsmap is None else np.asarray(charsmap).astype(np.uint8).tobytes(),
        chat_template=template if isinstance(template, str) and template else None,
        swallowing=swallows(str(metadata.get("general.name", ""))),
    )
    vocabulary.check()
    return vocabulary
