"""How a model is run, as one value, and what is said of it. It knows nothing of the engine that takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve.child.schedule import LONGEST_DRAFT
from slm.terminal.console import note


@dataclass(frozen=True)
class EngineOptions:
    """How the model is run.

    threads: cores in all (0: physical ones). context: tokens of one prompt with its answer. parallel: requests at
    once for one adapter. hot: llama.cpp contexts at most; more adapters than that share them in turns. draft: tokens
    that are tried at once where an answer repeats what its prompt or itself said (0: none). cache_bytes: memory
    for the cells of conversations that left their context; cache_folder: where they go beyond it.
    """

    threads: int = 0
    context: int = 4096
    parallel: int = 8
    hot: int = 3
    draft: int = LONGEST_DRAFT
    cache_bytes: int = 256 << 20
    cache_folder: Path | None = None


def tell_of_context(tokens: int, asked: int) -> None:
    """A note where a model's context is shorter than what was asked for."""
    if tokens < asked:
        note(f"the model was trained for {tokens:,} tokens; the context is that long")
