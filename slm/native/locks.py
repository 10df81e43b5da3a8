"""Locks on open files, which the system gives back when their process ends, however it ends."""

from __future__ import annotations

import sys
from typing import IO, Any

from slm.errors import ResourceError


def take_lock(file: IO[Any], refused: ResourceError) -> None:
    """Hold the file's lock until it is closed. Raises `refused` where another process holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise refused from error
