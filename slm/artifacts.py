"""Files and folders that are whole or absent, and the manifests that say so.

It knows nothing of what an artifact means; `kind` and the other fields of a manifest belong to the rooms.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm.errors import DamagedFileError, InputError, MissingFileError, ResourceError
from slm.paths import elsewhere, resolved

MANIFEST = "manifest.json"
# What a killed process leaves of writing `of`: tempfile's names.
HALF = re.compile(r"\.(?P<of>.+)\.[a-z0-9_]{8}\.(part|old)")
# numpy's own words for an array that was written in part; it keeps the system's reason to itself (numpy/_core/src/
# multiarray/convert.c), and a regular file is written in part where the disk is full.
_SHORT = re.compile(r"\d+ requested and \d+ written")
_BLOCK = 1 << 20
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Before anything is written also: a file where a folder is needed, nowhere at all, a name that no file can have.
_NO_PLACE = (*_REFUSED, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG)


def require_file(path: Path | str, *, hint: str = "") -> Path:
    """Return the path of an existing file. Raises MissingFileError or InputError (a folder)."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"'{path}' is a folder where a file is needed", hint=hint)
    if not path.exists():
        raise MissingFileError(f"there is no file '{path}'", hint=hint)
    return path


def require_folder(path: Path | str, *, hint: str = "") -> Path:
    """Return the path of an existing folder. Raises MissingFileError or InputError (a file)."""
    path = Path(path)
    if path.is_file():
        raise InputError(f"'{path}' is a file where a folder is needed", hint=hint)
    if not path.exists():
        raise MissingFileError(f"there is no folder '{path}'", hint=hint)
    return path


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise ResourceError unless the file system of `folder` has `needed_bytes` free."""
    existing = resolved(folder)
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ResourceError(
            f"no disk space for {_size(needed_bytes)} in '{folder}'",
            found=f"{_size(free)} free",
            hint="Free some space or choose another output with -o.",
        )


def _size(size_bytes: int) -> str:
    """Megabytes, or kilobytes where those would be a digit or none."""
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes >= 10e6 else f"{size_bytes / 1e3:,.0f} kB"


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_files(paths: list[Path]) -> str:
    """One SHA-256 over the names and contents of several files, independent of their order."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode() + b"\0" + sha256_file(path).encode())
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; it takes the final name only when the block ends well."""
    import tempfile

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise _disk_error(error, path, _NO_PLACE) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _fsync(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path | str, kind: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (temporary sibling folder, manifest to fill); both become `path` when the block ends well.

    The manifest is written last. An existing folder is replaced only if it is empty or is an
    artifact of ours (has a manifest of the same kind); anything else is an InputError.
    """
    import tempfile

    path = Path(path)
    require_replaceable(path, kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise _disk_error(error, path, _NO_PLACE) from error
    manifest: dict[str, Any] = {"kind": kind}
    try:
        yield temporary, manifest
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        (temporary / MANIFEST).write_bytes(manifest_bytes(manifest))
        _fsync(temporary / MANIFEST)
        temporary.chmod(0o755)
        _swap(temporary, path)
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as it is written."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()


def require_replaceable(path: Path, kind: str) -> None:
    """Raise InputError unless `new_folder` may write there: nothing, an empty folder, or a `kind` of ours."""
    if path.is_file():
        raise InputError(f"'{path}' is a file; the output must be a folder", hint="Choose another output with -o.")
    if not path.is_dir() or {p.name for p in path.iterdir()} <= {".gitkeep"}:
        return
    if not (path / MANIFEST).exists() or read_manifest(path).get("kind") != kind:
        raise InputError(
            f"'{path}' already holds something that is not a {kind} of ours; it is left untouched",
            hint="Choose another output with -o, or remove that folder yourself.",
        )


def remove_leftovers(path: Path) -> None:
    """Remove what a killed process left of writing the artifact `path`; only while nobody else writes it."""
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        half = HALF.fullmatch(entry.name)
        if half and half["of"] == path.name:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _swap(temporary: Path, path: Path) -> None:
    import tempfile

    if not path.exists():
        os.replace(temporary, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    os.replace(path, old / "was")
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def is_disk_full(error: OSError) -> bool:
    """Whether the system has no space left, or the user's share of it is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and bool(_SHORT.fullmatch(str(error))))


def _disk_error(error: OSError, path: Path, refused: tuple[int, ...] = _REFUSED) -> Exception:
    if is_disk_full(error):
        return ResourceError(
            f"no disk space left while writing '{path}'",
            hint="Nothing was left behind; free some space and run it again.",
        )
    if error.errno in refused:
        hint = elsewhere(path.absolute()) or "Choose another output with -o."
        return ResourceError(f"cannot write '{path}': {error.strerror}", hint=hint)
    return error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DamagedFileError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"'{path}' is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"'{path}' is not a JSON object")
    return value


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact folder. Raises MissingFileError (incomplete) or DamagedFileError."""
    path = folder / MANIFEST
    if not path.exists():
        raise MissingFileError(f"'{folder}' has no {MANIFEST}: it is not complete, or not one of ours")
    return read_json(path)
