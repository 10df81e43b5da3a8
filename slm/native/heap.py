"""What glibc's malloc does with freed blocks. It knows nothing of what they hold."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping

_NAME = "GLIBC_TUNABLES"
# https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
_WHOLE = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
_MENDED = (2, 38)  # its memalign looks for a free block that is aligned already


def whole_blocks(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process whose malloc puts every freed block together with its free neighbours at once.

    torch asks for aligned blocks. glibc cuts a few bytes off the front of each and keeps them apart when they are
    freed, so the hole is too small for the next tensor of the same size: a training step left a quarter of the memory
    unused that way. Unchanged for other C libraries, glibc from 2.38 on, and where the user has set tunables.
    """
    name, version = platform.libc_ver()
    old = name == "glibc" and tuple(map(int, version.split(".")[:2])) < _MENDED
    return {**environment, _NAME: _WHOLE} if old and _NAME not in environment else dict(environment)


def without_whole_blocks(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what `whole_blocks` sets."""
    return {name: value for name, value in environment.items() if (name, value) != (_NAME, _WHOLE)}


def restart_with_whole_blocks() -> None:
    """Begin this program again in that environment (malloc reads it only at the start); return if it is there."""
    wanted = whole_blocks(os.environ)
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def give_back() -> None:
    """Return what was freed to the system, so that resident memory is memory in use; glibc only.

    https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
