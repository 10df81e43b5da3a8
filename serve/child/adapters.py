"""The adapters that are open: loaded once for their content, freed once they were unloaded or replaced and no request
uses them. An idle one stays.

It knows them by the hash of their content, and nothing of contexts, threads or locks: whoever calls it holds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from slm.errors import EngineError

# llama.cpp's handles with their scales.
Handles = list[tuple[Any, float]]


def key_of(adapters: Sequence[tuple[str, float]]) -> str:
    """The identity of a set of (content hash, scale): the same set gives the same key, whatever the order."""
    return "+".join(sorted(f"{content}@{scale:g}" for content, scale in adapters))


def contents_of(key: str) -> list[tuple[str, float]]:
    """The (content hash, scale) pairs of a key."""
    return [(part.rpartition("@")[0], float(part.rpartition("@")[2])) for part in key.split("+") if part]


@dataclass
class _Open:
    handle: Any
    stack: ExitStack
    retired: bool = False


class OpenAdapters:
    """Adapters by the hash of their content."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}

    @property
    def contents(self) -> tuple[str, ...]:
        """What is open, in the order of the hashes."""
        return tuple(sorted(self._open))

    def load(self, content: str, open_adapter: Callable[[ExitStack], Any]) -> None:
        """Open an adapter unless it is open; one that was retired is not any more."""
        if known := self._open.get(content):
            known.retired = False
            return
        with ExitStack() as stack:
            handle = open_adapter(stack)
            self._open[content] = _Open(handle, stack.pop_all())

    def retire(self, content: str) -> None:
        """From now on it may be freed as soon as it is unused."""
        if content in self._open:
            self._open[content].retired = True

    def unused(self, keys: Iterable[str]) -> list[str]:
        """The retired ones that are in none of the sets `keys`."""
        used = {content for key in keys for content, _ in contents_of(key)}
        return [content for content, adapter in self._open.items() if adapter.retired and content not in used]

    def free(self, content: str) -> None:
        """Close one; no context may hold it."""
        self._open.pop(content).stack.close()

    def of(self, key: str) -> Handles:
        """The handles of a set with their scales. Raises EngineError when one of them is not open."""
        pairs = contents_of(key)
        if any(content not in self._open for content, _ in pairs):
            raise EngineError("the adapter of this request is not loaded")
        return [(self._open[content].handle, scale) for content, scale in pairs]
