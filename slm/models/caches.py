"""The caches in the data folder: what was made of something else and can be made again.

A cache's name holds a hash of its source; everything else that shapes its content (the converter's version, the base
of an adapter) is part of the name or of the manifest, so that nothing stale is ever used. It knows nothing of how
they are made.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from slm import paths
from slm.artifacts import MANIFEST, read_manifest
from slm.errors import SlmError

CHECKPOINTS, EXPORTS, STATES, PEERS = "checkpoints", "exports", "states", "peers"
# An export's name as `export_file` makes it; what writers with a version of their own made is never stale by this.
_EXPORT = re.compile(r".+-[0-9a-f]{16}-(?P<converter>[0-9a-f]{12})\.(q8_0|adapter)\.gguf")
_WHAT = {
    CHECKPOINTS: "GGUF models and adapters restored for training and conversion",
    EXPORTS: "GGUF files made of checkpoint and adapter folders",
    STATES: "states of frozen layers",
    PEERS: "environments of other engines (slm bench engine)",
}


@dataclass(frozen=True)
class Cache:
    """One kind of cache: where it is, what is in it, how many things and bytes."""

    folder: Path
    what: str
    entries: int
    size_bytes: int


def key_of(*parts: str) -> str:
    """A hash of everything that shapes a cached file, short enough for a name."""
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def checkpoint_folder(name: str, source: str) -> Path:
    """Where the checkpoint restored from the source (a hash) is kept: the same place for every converter, because
    adapters name it as their base."""
    return paths.home() / CHECKPOINTS / f"{name}-{source[:12]}"


def is_made_by(folder: Path, converter: str) -> bool:
    """Whether a cached folder is whole and was made by this converter."""
    try:
        return (folder / MANIFEST).exists() and read_manifest(folder).get("converter") == converter
    except SlmError:
        return False


def export_file(name: str, source: str, converter: str, ending: str) -> Path:
    """Where the GGUF file made of the source by this converter is kept."""
    return paths.home() / EXPORTS / f"{name}-{source[:16]}-{converter}{ending}"


def drop_of_other_converters(file: Path, converter: str) -> None:
    """Remove what other converters made of the same source as the export `file`; nothing refers to it any more."""
    stem, _, ending = file.name.partition(f"-{converter}")
    for other in file.parent.glob("*" + ending):
        if other != file and other.name.startswith(stem + "-"):
            other.unlink(missing_ok=True)


def measured_file() -> Path:
    """Where is kept what was measured of this machine."""
    return paths.home() / "measured.json"


def stale(converter: str) -> list[tuple[Path, int]]:
    """(path, bytes) of what another converter made: it is never used again, or made anew when it is asked for."""
    exports, checkpoints = paths.home() / EXPORTS, paths.home() / CHECKPOINTS
    old: list[Path] = []
    for path in sorted(exports.iterdir()) if exports.is_dir() else ():
        name = _EXPORT.fullmatch(path.name)
        if name and name["converter"] != converter:
            old.append(path)
    for path in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else ():
        if path.is_dir() and not path.name.startswith(".") and not is_made_by(path, converter):
            old.append(path)
    return [(path, _size_of(path)) for path in old]


def _size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def found() -> list[Cache]:
    """Every kind of cache in the data folder, also the empty ones."""
    caches = []
    for name, what in _WHAT.items():
        folder = paths.home() / name
        entries = list(folder.iterdir()) if folder.is_dir() else []
        caches.append(Cache(folder, what, len(entries), _size_of(folder) if entries else 0))
    return caches


def clean() -> list[Cache]:
    """Remove every cache; returns what there was. What is in use keeps working until its process ends."""
    caches = [cache for cache in found() if cache.entries]
    for cache in caches:
        shutil.rmtree(cache.folder)
    measured_file().unlink(missing_ok=True)
    return caches
