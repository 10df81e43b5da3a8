"""Where data is kept: whether it may be written and read, and whether the disk has room.

A place is tried by making a file in it that is gone at once: what the rights say is not what a read-only disk does.
"""

from __future__ import annotations

import errno
import getpass
import os
import shlex
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from slm import paths
from slm.doctor.check import Check, amount
from slm.models import caches

_NEEDED_BYTES = 3 * 10**9
_ELSEWHERE = "SLM_HOME=FOLDER chooses another place"


def place_checks() -> list[Check]:
    """The data folder with what is in it, and the disk below."""
    home = paths.home()
    if wrong := _blocked(home):
        return [Check("data folder", False, *wrong)]
    checks = [Check("data folder", True, str(home) if home.is_dir() else f"{home}, made when it is needed")]
    for name in ("models", "indexes", caches.CHECKPOINTS, caches.EXPORTS, caches.STATES, caches.PEERS):
        folder = home / name
        if (folder.exists() or folder.is_symlink()) and (wrong := _blocked(folder)):
            checks.append(Check(f"folder {name}", False, *wrong))
    if (sessions := home / "sessions.sqlite").exists():
        checks.append(_sessions(sessions))
    free = shutil.disk_usage(_existing(home)).free
    fix = f"slm doctor --clean removes what can be made again; {_ELSEWHERE}"
    found = f"{amount(free)} free for {home}"
    checks.append(Check("disk", free > _NEEDED_BYTES, found, "" if free > _NEEDED_BYTES else fix))
    return checks


def _sessions(file: Path) -> Check:
    """Whether the conversations of `slm chat` can be read. It changes nothing in the file."""
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            ((count,),) = database.execute("SELECT count(*) FROM session")
            ((wrong,),) = database.execute("PRAGMA quick_check(1)")
    except sqlite3.OperationalError as error:
        return Check("sessions", None, f"'{file}' cannot be read now: {error}")  # another process may be at it
    except sqlite3.DatabaseError as error:
        wrong = str(error)
    if wrong == "ok":
        return Check("sessions", True, f"{count:,}, {amount(file.stat().st_size)}")
    quoted = shlex.quote(str(file))
    found = f"'{file}' is damaged: {wrong}; without it slm chat begins anew"
    return Check("sessions", False, found, f"mv {quoted} {quoted}.away")


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _blocked(folder: Path) -> tuple[str, str] | None:
    """(what is wrong, what to do) where a folder of ours cannot be used."""
    if folder.is_symlink() and not folder.exists():
        return f"'{folder}' is a link to nowhere", f"rm {shlex.quote(str(folder))}, or {_ELSEWHERE}"
    place = _existing(folder)
    if not place.is_dir():
        quoted = shlex.quote(str(place))
        return f"'{place}' is a file where a folder is needed", f"mv {quoted} {quoted}.away, or {_ELSEWHERE}"
    try:
        next(place.iterdir(), None)
        Path(tempfile.mkdtemp(prefix=".slm-doctor.", dir=place)).rmdir()
    except OSError as error:
        if error.errno == errno.EROFS:
            return f"'{place}' lies on a disk that is mounted to be read only", _ELSEWHERE
        user = shlex.quote(getpass.getuser()) if hasattr(os, "getuid") else "$USER"
        mend = f"sudo chown -R {user} {shlex.quote(str(place))}, or {_ELSEWHERE}" if place == folder else _ELSEWHERE
        return f"'{place}' cannot be written: {error.strerror}", mend
    return None
