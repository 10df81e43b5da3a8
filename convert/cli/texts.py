"""LANG=VALUE options, as several commands take them. It knows nothing of what the texts are for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click


def pair(given: str, option: str, what: str) -> tuple[str, str]:
    """(language, value) of a LANG=value option. Raises click.BadParameter."""
    lang, sign, value = given.partition("=")
    if not sign or not lang or not value:
        raise click.BadParameter(f"'{given}' is not LANG={what}", param_hint=option)
    return lang, value


def text_file_of_each(given: Iterable[str], option: str = "--text") -> dict[str, Path]:
    """{language: file}; the last one of a language counts."""
    return {lang: Path(path) for lang, path in (pair(text, option, "FILE") for text in given)}


def text_files_of_each(given: Iterable[str], option: str = "--text") -> dict[str, list[Path]]:
    """{language: files} of an option that may be repeated for one language."""
    files: dict[str, list[Path]] = {}
    for lang, path in (pair(text, option, "FILE") for text in given):
        files.setdefault(lang, []).append(Path(path))
    return files
