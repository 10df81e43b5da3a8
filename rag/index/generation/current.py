"""Which generation of an index is in use, and the right to change that.

INDEX/CURRENT names the folder in use. A change writes another one beside it and then replaces CURRENT in one step, so
that a crash leaves the old one in use. It knows nothing of what a generation holds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rag.index.names import CURRENT
from slm.artifacts import new_file, remove_leftovers
from slm.errors import InputError, ResourceError
from slm.native.locks import take_lock

_LOCK = ".lock"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the right to change the index; the system gives it back when a process dies. Raises ResourceError."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / _LOCK).open("a+b") as file:
        take_lock(
            file,
            ResourceError(
                f"another process is changing the index '{path}'", hint="Wait until it is done and run this again."
            ),
        )
        yield


@contextmanager
def told_of_memory(path: Path) -> Iterator[None]:
    """Too little memory becomes a ResourceError."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            f"not enough memory to change the index '{path}'; it was not changed",
            hint="Close other programs, or make several smaller indexes.",
        ) from error


def require_free(path: Path) -> None:
    """Raise InputError where no index can be made: a file, or a folder of something else."""
    if path.is_file():
        raise InputError(f"'{path}' is a file; an index is a folder")
    if path.is_dir() and any(not p.name.startswith((".", "gen-")) for p in path.iterdir()):
        raise InputError(f"'{path}' already holds something that is not an index", hint="Choose another name.")


def next_folder(path: Path, used: Path | None) -> Path:
    """Where the next generation goes: after the one in use, or after all when it is not known which one that is.

    What a killed process left of writing it is removed.
    """
    names = [used.name] if used else [folder.name for folder in path.glob("gen-*")]
    number = 1 + max((int(name[4:]) for name in names if name[4:].isdecimal()), default=0)
    folder = path / f"gen-{number}"
    remove_leftovers(folder)
    remove_leftovers(path / CURRENT)
    if (path / CURRENT).is_dir():  # damage, which no file could take the place of
        shutil.rmtree(path / CURRENT)
    return folder


def make_current(folder: Path) -> None:
    """Put a generation that is complete into use, and remove the others. Raises ResourceError."""
    with new_file(folder.parent / CURRENT) as pointer:
        pointer.write_text(folder.name + "\n", encoding="utf-8")
    drop_others(folder)


def drop_others(folder: Path) -> None:
    """Remove all generations but this one, also those of a process that was killed before it could.

    Readers hold what they need of an old one in memory or mapped; a system that keeps files in use from being removed
    (Windows) leaves them to the next change.
    """
    for other in folder.parent.glob("gen-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
