"""Tiny causal bases whose vocabulary has what a reader needs: a token each for yes, no and a new line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny_checkpoints, tiny_families

FAMILIES = ["gemma3", "gemma2", "llama"]  # SentencePiece BPE with BOS, the same under capped logits, byte-level BPE


@pytest.fixture(scope="session")
def causal_bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny checkpoint of a family, made when it is first asked for."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tiny_checkpoints, "CORPUS", [*tiny_checkpoints.CORPUS, *["yes", "no"] * 50])
                made[family] = tiny_families.MAKE[family](tmp_path_factory.mktemp("reader") / family)
        return made[family]

    return get
