"""Long texts as windows that fit a model's context, read piece by piece. It knows nothing of models or tokenizers.

Every token of a text but the first is predicted exactly once; without a BOS even the first of a window has the last
token of the window before in front of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from slm.errors import InputError
from slm.terminal.text_file import text_lines

# Characters that are in memory at a time. A piece ends where a line does, so few texts are split elsewhere than whole.
_PIECE = 1 << 18


@dataclass(frozen=True)
class Window:
    """Token ids for one forward pass; those from `first` on are predicted, the ones before are their context."""

    ids: list[int]
    first: int

    @property
    def predicted(self) -> int:
        return len(self.ids) - self.first


def pieces(path: Path, size: int = _PIECE) -> Iterator[str]:
    """The text of a file in pieces of about `size` characters, without white space at its beginning and end.

    A piece ends at the last line break before the limit, and the white space behind it begins the next one. Raises
    DamagedFileError when the file is no text, InputError when it holds nothing.
    """
    rest, found = "", False
    for more in chain(_parts(path, size), [""]):
        rest += more
        if not found:
            rest = rest.lstrip()
        cut = rest.rfind("\n") if more else len(rest)
        text = rest[: cut if cut > 0 else len(rest)].rstrip()
        if text and (more == "" or len(rest) >= size):
            yield text
            rest, found = rest[len(text) :], True
    if not found:
        raise InputError(f"'{path}' is empty: there is nothing to measure")


def _parts(path: Path, size: int) -> Iterator[str]:
    """The text in parts of about `size` characters."""
    part = ""
    for line in text_lines(path):
        part += line
        if len(part) >= size:
            yield part
            part = ""
    if part:
        yield part


def windows(parts: Iterable[list[int]], bos: list[int], context: int, stride: int = 0) -> Iterator[Window]:
    """The token ids of one text, which come in parts, as windows of at most `context` tokens.

    bos: what stands before every window ([]: nothing). stride: tokens that a window predicts, so that the others are
    more context (0: as many as fit). Raises InputError when that many do not fit.
    """
    room = context - len(bos)
    step = stride or max(1, room - (not bos))
    overlap = room - step
    if not 0 < step <= room - (not bos):
        raise InputError(
            f"a window of {context} tokens cannot predict {step} of them", hint=f"Choose --stride from 1 to {room - 1}."
        )
    before: list[int] = []
    waiting: list[int] = []

    def window(new: list[int]) -> Iterator[Window]:
        ids = bos + before + new
        first = max(1, len(ids) - len(new))
        before[:] = (before + new)[len(before) + len(new) - overlap :] if overlap else []
        if len(ids) > first:
            yield Window(ids, first)

    for part in parts:
        waiting += part
        whole = len(waiting) // step * step
        for start in range(0, whole, step):
            yield from window(waiting[start : start + step])
        waiting = waiting[whole:]
    if waiting:
        yield from window(waiting)
