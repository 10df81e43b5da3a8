"""Which files of this machine a client of the server may name. It reads none of them, and knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slm.errors import InputError


def allowed_file(path: str, folders: Sequence[Path]) -> Path:
    """The resolved path, if it lies in one of the (resolved) folders and is a file or a folder.

    Raises InputError. Links are followed first, so that none leads out; what lies elsewhere is not looked at.
    """
    refused = InputError(
        f"adapters may not be loaded from '{path[:200]}'",
        hint="Start the server with --adapters-dir naming the folder that holds them.",
    )
    try:
        resolved = Path(path).resolve()
        if not any(resolved.is_relative_to(folder) for folder in folders):
            raise refused
        if resolved.exists() and not (resolved.is_file() or resolved.is_dir()):
            raise refused  # a pipe or a device: reading it might never end
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a name too long, links in a circle
        raise refused from error
    return resolved
