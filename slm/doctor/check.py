"""One line of the doctor's report. It knows nothing of what is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from slm.errors import SlmError


@dataclass(frozen=True)
class Check:
    """`ok` is None where nothing is wrong or right; `fix` is what mends it, or what would be better."""

    name: str
    ok: bool | None
    found: str
    fix: str = ""


def guarded(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """What `look` finds; if it cannot look, that is the fault, and the rest of the report is not lost."""
    try:
        return look()
    except SlmError as error:
        found = f"{error.what} (found: {error.found})" if error.found else error.what
        return [Check(name, False, found, error.hint)]
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        return [Check(name, False, f"{where}{error.strerror or error}", "Look at that file or folder: ls -ld PATH")]


def amount(size_bytes: int) -> str:
    """A size for people: 1.5 GB, 12 MB, 0.3 MB."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:,.1f} GB"
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e6:.1f} MB"
