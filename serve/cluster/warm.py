"""Which adapters a replica holds: Ray forgets the one that nobody has asked for longest, and it is unloaded when no
request needs it any more.

Ray does that whether or not somebody computes with the adapter. It knows nothing of Ray, of files or of the engine
beyond the two functions it is handed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.cluster.wire import NeededAdapter


class WarmAdapters:
    """Adapters by content. load and unload are called at most once in turns for each. Thread-safe."""

    def __init__(self, load: Callable[[NeededAdapter], None], unload: Callable[[str], None]) -> None:
        self._load, self._unload = load, unload
        self._lock = threading.Lock()
        self._loaded: set[str] = set()
        self._kept: set[str] = set()
        self._users: Counter[str] = Counter()

    def keep(self, adapter: NeededAdapter) -> None:
        """Load it, and hold it until `drop`. Raises what `load` raises."""
        with self._lock:
            self._kept.add(adapter.content)
            self._ensure(adapter)

    def drop(self, content: str) -> None:
        """Nobody keeps it any more: unload it when no request needs it."""
        with self._lock:
            self._kept.discard(content)
            self._settle(content)

    @contextmanager
    def using(self, adapter: NeededAdapter) -> Iterator[None]:
        """It is there until the end of the block. Raises what `load` raises."""
        with self._lock:
            self._users[adapter.content] += 1
            try:
                self._ensure(adapter)
            except BaseException:
                self._users[adapter.content] -= 1
                raise
        try:
            yield
        finally:
            with self._lock:
                self._users[adapter.content] -= 1
                self._settle(adapter.content)

    def _ensure(self, adapter: NeededAdapter) -> None:
        if adapter.content not in self._loaded:
            try:
                self._load(adapter)
            except BaseException:
                self._kept.discard(adapter.content)
                raise
            self._loaded.add(adapter.content)

    def _settle(self, content: str) -> None:
        if content in self._loaded and content not in self._kept and self._users[content] <= 0:
            self._loaded.discard(content)
            del self._users[content]
            self._unload(content)
