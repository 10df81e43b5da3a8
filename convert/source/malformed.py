"""Names the file when data from outside breaks code that trusts its shape. It knows nothing of any format.

A configuration has hundreds of fields that may each be a list where a number belongs. Readers check what they rely on;
whatever they overlook becomes an error that names the file instead of a traceback.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm.errors import DamagedFileError

_PROVOKED = (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError, RecursionError, struct.error)
_LARGEST_FLOAT = 3.4e38  # GGUF keeps float32


@contextmanager
def reading(what: str) -> Iterator[None]:
    """While reading `what` from outside: wrong types, values and shapes are a DamagedFileError."""
    try:
        yield
    except _PROVOKED as error:
        raise DamagedFileError(
            f"{what} is not as its kind must be", found=f"{type(error).__name__}: {str(error)[:160]}"
        ) from error


def check_values(metadata: Mapping[str, Any], what: str) -> None:
    """Raise DamagedFileError for a number that GGUF cannot hold or that no model has."""
    for key, value in metadata.items():
        if isinstance(value, int) and not -(1 << 31) <= value < 1 << 32:
            raise DamagedFileError(f"{what} has an impossible value for {key}", found=str(value)[:40])
        if isinstance(value, float) and not (math.isfinite(value) and abs(value) < _LARGEST_FLOAT):
            raise DamagedFileError(f"{what} has an impossible value for {key}", found=str(value))


def load_fast_tokenizer(path: Path) -> Any:
    """`tokenizers.Tokenizer` of a tokenizer.json; the library raises bare Exceptions. Raises DamagedFileError."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library's only kind
        raise DamagedFileError(f"'{path}' is not a tokenizer that can be loaded", found=str(error)[:200]) from error


def fast_tokenizer_of(fast: Mapping[str, Any], path: Path) -> Any:
    """`tokenizers.Tokenizer` of the content of a tokenizer.json, made from `path`. Raises DamagedFileError."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(fast))
    except Exception as error:  # the library's only kind
        raise DamagedFileError(f"'{path}' is not a tokenizer that can be loaded", found=str(error)[:200]) from error


def load_sentencepiece(path: Path) -> Any:
    """`SentencePieceProcessor` of a model file; the library raises RuntimeError. Raises DamagedFileError."""
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise DamagedFileError(
            f"'{path}' is not a SentencePiece model that can be loaded", found=str(error)[:200]
        ) from error
