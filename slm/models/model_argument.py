"""What the argument MODEL of a command means: a path, or the name of a model. It knows nothing of what is done with it.

A path is what has a separator, or really is a model: a file, or a folder with a model's files in it. Every other word
is a name of the catalog; a folder that only happens to have that name does not stand in its way.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from slm.errors import InputError, MissingFileError, UnknownNameError
from slm.models.catalog import CATALOG, entry_of, find_pulled, is_hub_id, model_path
from slm.paths import at_home
from slm.terminal.console import note

# Any of these makes a folder a checkpoint, an adapter or a tokenizer.
_SIGNS = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "*.safetensors", "*.model")


def model_argument(text: str) -> Path:
    """The file or folder that MODEL means. Raises MissingFileError or UnknownNameError, saying what was tried."""
    path = at_home(text)
    if not text.strip():
        raise InputError("MODEL is empty", hint="Give a GGUF file, a checkpoint folder or a name of: slm models")
    if path.is_file() or is_model_folder(path):
        _note_namesake(text, path)
        return path
    if _is_spelled_as_path(text):
        if path.is_dir():
            return path  # whoever reads it says what it lacks
        if not is_hub_id(text):
            raise MissingFileError(
                f"there is no file or folder '{text}'", hint="Names of models, for which no path is needed: slm models"
            )
    beside = f"the folder '{text}' here is no model: it has no config.json" if path.is_dir() else ""
    try:
        return model_path(text)
    except UnknownNameError as error:
        if beside:
            return path  # a folder after all, whose reader says what it lacks
        raise UnknownNameError(
            "model", text, CATALOG,
            hint="No file or folder of that name is here either; a hub repository is written owner/name.",
        ) from error  # fmt: skip
    except MissingFileError as error:
        raise MissingFileError(error.what, found=beside or error.found, hint=error.hint) from error


def name_of_model(text: str) -> str:
    """What a MODEL that is there is called: its name in the catalog or on the hub, its folder's or its file's.

    Unlike the name of a file in the caches it stays the same when the model's content changes.
    """
    path = at_home(text)
    if path.is_file():
        return path.stem
    if not (is_model_folder(path) or (path.is_dir() and _is_spelled_as_path(text))):
        with suppress(UnknownNameError):
            return entry_of(text).name
    return (path.resolve() if path.name in ("", "..") else path).name


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a checkpoint, an adapter or a tokenizer, as far as its files' names tell."""
    return path.is_dir() and any(next(path.glob(sign), None) is not None for sign in _SIGNS)


def _is_spelled_as_path(text: str) -> bool:
    separators = {os.sep, os.altsep or os.sep, "/"}
    return any(mark in text for mark in separators) or text.startswith(("~", ".")) or text.endswith(".gguf")


def _note_namesake(text: str, path: Path) -> None:
    """Say so where a name could mean a pulled model as well as what lies here."""
    if text in CATALOG and (pulled := find_pulled(text)) is not None:
        note(f"'{text}' means the one in {path.resolve().parent}; the pulled model of that name is {pulled.path}")
