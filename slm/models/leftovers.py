"""What broken-off work left in the data folder: interrupted downloads, and outputs that nobody finished.

What was written to a short while ago may belong to a process that is still at it: it is told, and never removed. It
knows nothing of what is shown.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slm import paths
from slm.artifacts import HALF
from slm.models import caches
from slm.models.catalog import name_of_folder

_STAGE = re.compile(r"\.(?P<folder>.+)\.download")
_SCRATCH = re.compile(r"\.download\.\w{8}")  # of slm.models.packages, by tempfile
_UNDER_WAY_S = 600.0


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nobody finished. model: what `slm pull` goes on with, "" where nothing goes on.

    under_way: it was written to within the last ten minutes.
    """

    path: Path
    what: str
    model: str
    size_bytes: int
    under_way: bool


def leftovers(now: float | None = None) -> list[Leftover]:
    """Everything unfinished in the data folder, downloads first. now: seconds since 1970."""
    now = time.time() if now is None else now
    found = [_leftover(path, now) for path in _hidden(paths.models_dir())]
    for name in ("", caches.CHECKPOINTS, caches.EXPORTS, caches.STATES, caches.PEERS):
        found += [_leftover(path, now) for path in _hidden(paths.home() / name) if HALF.fullmatch(path.name)]
    return [one for one in found if one is not None]


def remove_leftovers_found(found: list[Leftover]) -> list[Leftover]:
    """Remove those that nobody is at; returns them. Raises OSError for one that cannot be removed."""
    idle = [one for one in found if not one.under_way]
    for one in idle:
        shutil.rmtree(one.path) if one.path.is_dir() and not one.path.is_symlink() else one.path.unlink(missing_ok=True)
    return idle


def _hidden(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.name.startswith("."))


def _leftover(path: Path, now: float) -> Leftover | None:
    stage, half = _STAGE.fullmatch(path.name), HALF.fullmatch(path.name)
    if stage:
        what, model = "interrupted download", name_of_folder(stage["folder"])
    elif _SCRATCH.fullmatch(path.name):
        what, model = "interrupted download of packages", ""
    elif half:
        what, model = f"unfinished '{half['of']}'", ""
    else:
        return None
    files = [path, *(path.rglob("*") if path.is_dir() else ())]
    size = newest = 0.0
    for file in files:
        try:
            told = file.lstat()
        except OSError:  # its process has just removed it
            continue
        newest = max(newest, told.st_mtime)
        size += told.st_size if file.is_file() else 0
    return Leftover(path, what, model, int(size), now - newest < _UNDER_WAY_S)
