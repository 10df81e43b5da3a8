"""What the results of this converter depend on besides their source: its own code and the libraries it reads with."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import version

from slm.native.process import ROOT

_LIBRARIES = ("gguf", "llama-cpp-python", "numpy", "tokenizers")


@lru_cache(maxsize=1)
def converter_version() -> str:
    """A short hash of this converter; files made by another one may differ.

    It is taken of the sources themselves: a number would have to be thought of at every change.
    """
    digest = hashlib.sha256()
    for package in ("convert", "slm"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    for name in _LIBRARIES:
        digest.update(f"{name} {version(name)}\0".encode())
    return digest.hexdigest()[:12]
