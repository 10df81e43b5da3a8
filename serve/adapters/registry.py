"""Which files are sound, and which adapters are known: vetting before native code sees a file, and the registry.

It knows nothing of the child process, of requests or of HTTP.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from serve.adapters.vault import Vault
from slm.artifacts import sha256_file
from slm.chat.prompt import template_name_for
from slm.chat.segments import marker_like
from slm.chat.turn_end import END_TOKENS
from slm.errors import DamagedFileError, InputError, MismatchError, SlmError, UnknownNameError, UnsupportedError
from slm.paths import composed
from slm.weights.gguf_reader import GgufFile, read_gguf
from slm.weights.identity import FINGERPRINT, WEIGHTS, belong, other_weights, tensors_hash, text_of, trained_on

RESERVED = ("auto", "base")
# "en", "ja_lora", "fr-sft": a language code alone or with a suffix that names the method.
_CODED = re.compile(r"([a-z]{2})(?:[_-](?:lora|sft|adapter|chat|instruct))?", re.IGNORECASE)
_SPELLED = {"english": "en", "japanese": "ja", "german": "de", "french": "fr", "spanish": "es", "chinese": "zh",
            "korean": "ko", "italian": "it", "portuguese": "pt"}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """What the parent keeps of the model file: identity, shapes of its weights, and what a prompt needs.

    name: what clients are told that the model is called.
    """

    path: Path
    name: str
    architecture: str
    fingerprint: str | None
    weights: str | None
    shapes: dict[str, tuple[int, ...]]
    template: str | None
    template_name: str
    bos: str
    eos: str
    trained_context: int
    marker_like: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call it: its name, and its file's."""
        return (self.name, self.path.stem)

    def is_base_of(self, adapter: GgufFile) -> bool:
        """Whether an adapter was trained on these weights, or nothing says that it was not."""
        known = set(filter(None, (self.fingerprint, self.weights)))
        return belong(trained_on(adapter.metadata), known, lambda: self.tensors)

    @cached_property
    def tensors(self) -> str:
        """Hash of the tensors; read once, for adapters of a file that names no fingerprint."""
        return tensors_hash(read_gguf(self.path))

    @cached_property
    def content(self) -> str:
        """Hash of the file; read once, when it is asked for."""
        return sha256_file(self.path)


@dataclass(frozen=True)
class Adapter:
    """One loaded adapter: where it came from, the file that was checked, and the hash of that, which is its identity
    for the engine and the KV cache."""

    name: str
    path: Path
    file: Path
    content: str
    language: str | None
    template: str | None
    scale: float


def vet_base(path: Path, name: str = "") -> Base:
    """Read a model file's header. name: what the model is called, "" for the file's name.

    Raises InputError kinds for what is not a sound language model.
    """
    file = read_gguf(path)
    if file.is_adapter:
        raise InputError(f"'{path}' is an adapter, not a model", hint="Give its base as MODEL and it with --adapter.")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not isinstance(tokens, list) or not file.tensors:
        raise DamagedFileError(
            f"'{path}' is GGUF, but not a language model with a vocabulary", hint="Look with: slm inspect FILE"
        )
    template = file.metadata.get("tokenizer.chat_template")
    return Base(
        path=path,
        name=path.stem if name in ("", "auto") else name,  # auto asks for a choice by language
        architecture=architecture,
        fingerprint=text_of(file.metadata, FINGERPRINT),
        weights=text_of(file.metadata, WEIGHTS),
        shapes={name: info.shape for name, info in file.tensors.items()},
        template=template if isinstance(template, str) else None,
        template_name=template_name_for(set(tokens)),
        bos=_token(file, tokens, "bos"),
        eos=_token(file, tokens, "eos"),
        trained_context=int(file.metadata.get(f"{architecture}.context_length", 0)),
        ends=_ends(file.metadata.get(END_TOKENS), len(tokens)),
        marker_like=marker_like(tokens),
    )


def vet_adapter(name: str, path: Path, base: Base, *, scale: float = 1.0, vault: Vault | None = None) -> Adapter:
    """Read an adapter file and check that it belongs to `base`: architecture, fingerprint, every shape, finite values.

    vault: the file is copied there first, and the copy is what is checked and to be loaded. Raises InputError kinds
    (not there, damaged, not an adapter, bad name), MismatchError (another base) or ResourceError (no room for a copy).
    """
    name = composed(name)
    check_name(name, base)
    if path.is_dir():
        raise InputError(
            f"'{path}' is a folder; the engine loads adapters as GGUF files",
            hint=f"Convert it first: slm convert {path} -o {path.name}.gguf",
        )
    file = vault.copy(path) if vault else path
    try:
        return _vetted(name, path, file, base, scale)
    except SlmError as error:
        if vault:
            file.unlink()
            error.what = error.what.replace(str(file), str(path))
        raise


def _vetted(name: str, path: Path, copy: Path, base: Base, scale: float) -> Adapter:
    file = read_gguf(copy)
    if not file.is_adapter or file.metadata.get("adapter.type") != "lora":
        raise InputError(f"'{path}' is not a LoRA adapter", hint="Look with: slm inspect FILE")
    alpha = file.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):  # llama.cpp aborts on another type
        raise DamagedFileError(f"'{path}' has an adapter.lora.alpha that is not a number", found=repr(alpha)[:40])
    if file.architecture != base.architecture:
        raise MismatchError(
            f"the adapter '{path}' is for architecture '{file.architecture}', the model is '{base.architecture}'"
        )
    if "adapter.alora.invocation_tokens" in file.metadata:
        raise UnsupportedError(
            f"'{path}' is an activated LoRA (aLoRA): it acts from certain tokens on, this engine would always apply it",
            hint="Serve it with --engine llama-server.",
        )
    if not base.is_base_of(file):
        raise other_weights(path, base.path, trained_on(file.metadata), base.fingerprint or base.tensors)
    _check_shapes(file, base)
    return Adapter(
        name=name,
        path=path.resolve(),
        file=copy.resolve(),
        content=sha256_file(copy),
        language=text_of(file.metadata, "slm.lang") or language_of_name(name),
        template=text_of(file.metadata, "tokenizer.chat_template"),
        scale=scale,
    )


def check_name(name: str, base: Base) -> None:
    """Raise InputError for a name that cannot be told from the base or from 'auto', or that is not a plain word."""
    if name in (*RESERVED, *base.names) or not re.fullmatch(r"[\w.:@+-]{1,64}", name):
        raise InputError(
            f"'{name}' cannot be an adapter's name",
            hint=f"Use letters, digits, '_' and '-', and none of: {', '.join(dict.fromkeys((*RESERVED, *base.names)))}",
        )


def language_of_name(name: str) -> str | None:
    """The language an adapter's name says it is for ('ja', 'en_lora', 'japanese'), or None."""
    if name.lower() in _SPELLED:
        return _SPELLED[name.lower()]
    match = _CODED.fullmatch(name)
    return match.group(1).lower() if match else None


class Registry:
    """The adapters by name, in the order they were loaded. Not thread-safe: the engine holds its lock around it."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._adapters: dict[str, Adapter] = {}

    def all(self) -> list[Adapter]:
        return list(self._adapters.values())

    def put(self, adapter: Adapter) -> None:
        self._adapters[adapter.name] = adapter

    def get(self, name: str) -> Adapter:
        """The adapter called `name`, in any of Unicode's forms. Raises UnknownNameError with the names that exist."""
        known = composed(name)
        if known not in self._adapters:
            raise UnknownNameError("model or adapter", name, [*RESERVED, self.base.name, *self._adapters])
        return self._adapters[known]

    def remove(self, name: str) -> Adapter:
        adapter = self.get(name)
        del self._adapters[adapter.name]
        return adapter

    def uses(self, content: str) -> bool:
        """Whether any name stands for this content."""
        return any(adapter.content == content for adapter in self._adapters.values())


def _ends(listed: Any, size: int) -> tuple[int, ...]:
    """Ids of the tokens that end an answer, as the file's own key lists them."""
    ids = listed.tolist() if isinstance(listed, np.ndarray) else []
    return tuple(id for id in ids if isinstance(id, int) and 0 <= id < size)


def _token(file: GgufFile, tokens: list[str], kind: str) -> str:
    id = file.metadata.get(f"tokenizer.ggml.{kind}_token_id")
    return str(tokens[id]) if isinstance(id, int) and 0 <= id < len(tokens) else ""


def _check_shapes(file: GgufFile, base: Base) -> None:
    """llama.cpp's own shape rules (llama-adapter.cpp), checked before it sees the file."""
    pairs: dict[str, dict[str, Any]] = {}
    for tensor, info in file.tensors.items():
        name, _, part = tensor.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            raise DamagedFileError(f"'{file.path}' holds the tensor '{tensor[:80]}', which is no part of a LoRA")
        pairs.setdefault(name, {})[part] = info
    if not pairs:
        raise DamagedFileError(f"'{file.path}' holds no tensors")
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise DamagedFileError(f"'{file.path}' holds only one half of the adapter for '{name[:80]}'")
        a, b = pair["lora_a"].shape, pair["lora_b"].shape
        weight = base.shapes.get(name)
        if weight is None or len(weight) != 2 or len(a) != 2 or len(b) != 2:
            raise MismatchError(f"the adapter '{file.path}' changes '{name[:80]}', which is no matrix of the model")
        embedding = name.endswith("token_embd.weight")
        if embedding and "output.weight" not in base.shapes:
            # The head is the same tensor, and llama.cpp would abort on multiplying it with the embedding's pair.
            raise MismatchError(
                f"the adapter '{file.path}' changes the token embedding, which is the model's head as well",
                hint="Merge the adapter into its base instead: slm merge",
            )
        # The token embedding's pair is stored the other way round, because it is looked up by row.
        shape, same_rank = ((a[0], b[0]), a[1] == b[1]) if embedding else ((b[0], a[1]), a[0] == b[1])
        fits = shape == weight and same_rank
        if not fits:
            raise MismatchError(
                f"the adapter '{file.path}' does not fit the model at '{name[:80]}'",
                found=f"A {a}, B {b}, weight {weight}",
                hint="Load it with the model it was trained on.",
            )
    for tensor in file.tensors:
        if not np.isfinite(file.dequantized(tensor)).all():
            raise DamagedFileError(f"'{file.path}' is damaged: '{tensor[:80]}' holds values that are not numbers")
