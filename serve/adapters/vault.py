"""Private copies of adapter files: what was checked is what is loaded, whatever happens to the original meanwhile.

A file that is written over while it is mapped into memory ends the process (SIGBUS), and one that changes between
its checks and its loading makes the checks worthless. It knows nothing of what is in the files.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

from slm.artifacts import require_file
from slm.errors import InputError, ResourceError


class Vault:
    """A folder of copies for this process alone; `close` removes it."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="slm-adapters-"))
        self._numbers = itertools.count()

    def copy(self, path: Path) -> Path:
        """A copy of the file as it is now. Raises InputError when it is being written, ResourceError on a full disk."""
        require_file(path)
        target = self._folder / f"{next(self._numbers)}.gguf"
        try:
            before = _state(path)
            with path.open("rb") as source, target.open("xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            if _state(path) != before or target.stat().st_size != before[0]:
                raise InputError(f"'{path}' is being written", hint="Try again when it is complete.")
        except OSError as error:
            target.unlink(missing_ok=True)
            raise ResourceError(
                f"cannot copy '{path}' to {self._folder}", found=error.strerror or str(error),
                hint="Make room there, or name another folder in TMPDIR.",
            ) from error  # fmt: skip
        except InputError:
            target.unlink(missing_ok=True)
            raise
        return target

    def close(self) -> None:
        """Remove every copy."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _state(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino
