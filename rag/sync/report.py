"""What a sync did: every page is counted once. It knows nothing of how it was done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ShowProgress = Callable[[str, float, float], None]
"""Is told what is being done, how much of it, and of how much."""


@dataclass
class Report:
    """One source's counts.

    skipped, gone: (source or title, reason). unread: how many of the skipped were not read at all. partial: whether
    something beside pages was not read. notes: what is worth knowing. error: why the source could not be brought into
    step, "" when it was.
    """

    name: str
    added: int = 0
    changed: int = 0
    same: int = 0
    unread: int = 0
    gone: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    partial: bool = False
    error: str = ""

    def skip(self, what: str, reason: str, *, unread: bool = True) -> None:
        """Count a page that is not in the index as it is; unread: it could not be read (else it holds no text)."""
        self.skipped.append((what, reason))
        self.unread += unread

    @property
    def complete(self) -> bool:
        """Whether everything of the source was read."""
        return not (self.error or self.unread or self.partial)

    @property
    def line(self) -> str:
        """The counts for people."""
        text = (
            f"{self.name}: {self.added} added, {self.changed} changed, {self.same} same, {len(self.gone)} gone, "
            f"{len(self.skipped)} skipped"
        )
        return text + (f"; {self.error}" if self.error else "")

    def as_dict(self) -> dict[str, Any]:
        """The counts and reasons for programs."""
        return {
            "source": self.name, "added": self.added, "changed": self.changed, "same": self.same,
            "gone": len(self.gone), "skipped": len(self.skipped), "unread": self.unread, "error": self.error or None,
            "notes": self.notes,
            "gone_documents": [{"source": source, "reason": reason} for source, reason in self.gone],
            "skipped_documents": [{"source": source, "reason": reason} for source, reason in self.skipped],
        }  # fmt: skip
