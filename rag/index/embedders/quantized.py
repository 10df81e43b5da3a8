"""An embedding model in a GGUF file, as `slm convert` makes it, run by llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rag.index.embedders.base import Identity, Vectors, normalised
from rag.index.embedders.encoder import GgufEncoder
from rag.index.embedders.nano import E5_PASSAGE, E5_QUERY
from slm.artifacts import sha256_file
from slm.errors import UnsupportedError
from slm.native.llama import library, model_meta, tokenize
from slm.weights.gguf_reader import read_gguf

# No chunk is longer, so that more would only cost memory.
_LONGEST = 512


class QuantizedEncoder:
    """A GGUF file of an encoder with its own tokenizer.

    The file says nothing of prefixes: E5 models, told by the name in the file or the file's own, get E5's. A longer
    text is cut at its end. Raises UnsupportedError for a model that makes text.
    """

    def __init__(self, name: str, file: Path) -> None:
        read_gguf(file)  # llama.cpp may abort the process on a damaged one
        self._encoder = GgufEncoder(file, _LONGEST)
        lib, model = library(), self._encoder.model
        kind = model_meta(model, "general.architecture")
        pools = model_meta(model, f"{kind}.pooling_type") not in (None, "0")
        if not pools and model_meta(model, f"{kind}.attention.causal") != "false":
            raise UnsupportedError(
                f"the model '{name}' is no embedder", found=f"{kind}, which makes text and names no way of pooling"
            )
        titles = (model_meta(model, "general.name") or "", file.name)
        prefixes = (E5_QUERY, E5_PASSAGE) if any("e5" in title.lower() for title in titles) else ("", "")
        longest = min(_LONGEST, int(lib.llama_model_n_ctx_train(model)))
        dimension = int(lib.llama_model_n_embd_out(model))
        self.identity = Identity(name, sha256_file(file)[:16], *prefixes, dimension, longest)

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._encoded(self.identity.query_prefix, texts)

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._encoded(self.identity.passage_prefix, texts)

    def count_tokens(self, text: str) -> int:
        return len(self._tokens(self.identity.passage_prefix + text))

    def _tokens(self, text: str) -> list[int]:
        return tokenize(self._encoder.model, text.replace("\0", " "), add_special=True, parse_special=False)

    def _encoded(self, prefix: str, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.identity.dimension), dtype=np.float32)
        longest, cut = self.identity.max_tokens, []
        for text in texts:
            tokens = self._tokens(prefix + text)
            cut.append(tokens if len(tokens) <= longest else [*tokens[: longest - 1], tokens[-1]])
        return normalised(self._encoder.embedded(cut))
