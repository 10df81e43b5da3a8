"""The English and Japanese text that quantization is measured on when the user gives none. It knows no tokenizer.

It belongs to the package, and `data/` is never read instead: figures must not depend on the folder a command is run
in, and `data/en.txt` and `data/ja.txt` are what the quick start trains on, so a model trained there would flatter
itself. Both texts say much the same things (prose, a recipe, instructions, dialogue, figures, a contract), written
for this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from slm.errors import InputError
from slm.terminal.text_file import read_text

LANGUAGES = ("en", "ja")


def sample_texts() -> dict[str, str]:
    """{language: text} of the package."""
    folder = files("convert.quality") / "texts"
    return {lang: (folder / f"{lang}.txt").read_text(encoding="utf-8") for lang in LANGUAGES}


def read_texts(paths: Mapping[str, Path] | None) -> dict[str, str]:
    """{language: text} of the user's files, or the package's own when there are none.

    Raises MissingFileError, DamagedFileError (not text) or InputError (no text).
    """
    if not paths:
        return sample_texts()
    texts = {}
    for lang, path in paths.items():
        text = read_text(path)
        if not text.strip():
            raise InputError(f"'{path}' has no text")
        texts[lang] = text
    return texts
