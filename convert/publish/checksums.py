"""SHA256SUMS of a folder, in the form that `sha256sum -c` reads: written, and checked again before it goes anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slm.artifacts import sha256_file
from slm.errors import DamagedFileError, MissingFileError

SUMS = "SHA256SUMS"
# The card is for people to go on writing.
_LEFT_OUT = ("README.md", SUMS)


def _summed(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name not in _LEFT_OUT and not name.startswith((".git/", ".cache/")))


def sums_of(folder: Path) -> dict[str, str]:
    """SHA-256 of all files under `folder` but its card, by name."""
    return {name: sha256_file(folder / name) for name in _summed(folder)}


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write SHA256SUMS."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    (folder / SUMS).write_text(text, encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Raise DamagedFileError that names what is changed, missing or new since the sums were written."""
    path = folder / SUMS
    if not path.is_file():
        raise MissingFileError(f"'{folder}' has no {SUMS}", hint="Make it with: slm export DIR --model MODEL")
    wanted = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        wanted[name] = digest
    there = set(_summed(folder))
    found = {
        "missing": sorted(set(wanted) - there),
        "new": sorted(there - set(wanted)),
        "changed": [name for name in sorted(there & set(wanted)) if sha256_file(folder / name) != wanted[name]],
    }
    if any(found.values()):
        said = "; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names)
        raise DamagedFileError(
            f"'{folder}' is not as it was exported", found=said, hint="Export it again; only README.md may be changed."
        )
