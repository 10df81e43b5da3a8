"""Sets of words that a module names, written as one text. It knows nothing of what the words mean."""

from __future__ import annotations


def names(text: str) -> frozenset[str]:
    """The words of a text, each once."""
    return frozenset(text.split())
