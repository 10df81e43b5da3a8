"""Where things are kept on this machine. It knows nothing of what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import platformdirs


def at_home(path: str) -> Path:
    """A path in which ~ and ~NAME are a user's own folder, where there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 Path's own raises RuntimeError for a ~NAME of nobody


def resolved(path: Path | str) -> Path:
    """A path without symbolic links, as far as they lead somewhere; a link to itself stays in it."""
    return Path(os.path.realpath(path))  # Path's own raises RuntimeError for a circle of links before Python 3.13


def own_name(path: Path | str) -> Path:
    """A path by its own last name, be that a link, in a folder without links."""
    path = Path(path)
    return resolved(path.parent) / path.name


def composed(name: str) -> str:
    """A name as it is compared: in Unicode's composed form (NFC). macOS writes the same name in pieces."""
    if name.isascii():
        return name
    from unicodedata import normalize  # a start without such names does not wait for its tables

    return normalize("NFC", name)


def on_disk(path: Path | str) -> Path:
    """A path as the disk spells it: names that differ in Unicode's form alone are the same (macOS writes é in pieces).

    What is not there under any spelling stays as it is.
    """
    path = Path(path)
    if os.path.lexists(path) or path.parent == path:
        return path
    parent = on_disk(path.parent)
    if path.name.isascii():
        return parent / path.name
    try:
        names = _names_in(parent, parent.stat().st_mtime_ns)
    except OSError:
        return path
    return parent / names.get(composed(path.name), path.name)


@lru_cache(maxsize=16)  # many documents of one folder are asked for
def _names_in(folder: Path, changed: int) -> Mapping[str, str]:
    """Each name in a folder by its composed form (NFC). changed: when names in it changed last."""
    return {composed(path.name): path.name for path in folder.iterdir()}


def config_file() -> Path:
    """The TOML file with the user's defaults (XDG; `SLM_CONFIG` overrides it)."""
    named = os.environ.get("SLM_CONFIG")
    return at_home(named) if named else Path(platformdirs.user_config_dir("slm")) / "config.toml"


def home() -> Path:
    """The folder for models and other data (`SLM_HOME` overrides the platform's data folder)."""
    named = os.environ.get("SLM_HOME")
    return at_home(named) if named else Path(platformdirs.user_data_dir("slm"))


def models_dir() -> Path:
    """The folder with one sub-folder for each pulled model."""
    return home() / "models"


def indexes_dir() -> Path:
    """Where indexes that have a name are kept."""
    return home() / "indexes"


def named_indexes() -> list[str]:
    """The names that are taken there, whole indexes or not."""
    folder = indexes_dir()
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def elsewhere(path: Path) -> str:
    """How to choose another place for a file that is kept where the program chose; "" for one the user named."""
    here = home().absolute()
    if path.is_absolute() and (path.is_relative_to(here) or (here.is_relative_to(path) and not path.exists())):
        return "Models and other data are kept there; SLM_HOME=FOLDER chooses another place."
    if path.is_absolute() and path.is_relative_to(config_file().absolute()):
        return "SLM_CONFIG=FILE names another configuration file."
    return ""
