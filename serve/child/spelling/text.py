"""Text as it streams: whole characters only, and never a part of a mark that may still turn out to be one.

It knows nothing of tokens, of models or of HTTP.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` could be the beginning of `mark`, which is not all of it."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


class TextStream:
    """Turns token bytes into text that can be shown: whole characters only, and never a part of a stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes, *, may_stop: bool = True) -> str:
        """Text that became certain with these bytes; sets `stopped` when a stop string was met (it is not shown).

        may_stop: whether a stop string may begin in them.
        """
        text = self._decoder.decode(piece)
        return self._release(text, last=False) if may_stop else text

    def flush(self) -> str:
        """The rest at the end of the answer; an incomplete character becomes U+FFFD."""
        return self._release(self._decoder.decode(b"", True), last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        hold = 0 if last else max((overlap(self._held, stop) for stop in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - hold], self._held[len(self._held) - hold :]
        return shown
