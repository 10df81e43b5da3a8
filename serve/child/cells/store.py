"""KV cells of sequences that had to leave their context, kept for a request that begins with the same tokens.

The key of an entry is (model, adapters' content and scales, tokens). Entries live in memory within a budget, the
least recently used go first; with a folder they go to disk instead of being lost, and a later process finds them.
It knows nothing of llama.cpp: a state is bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.child.cells.placement import common_prefix
from slm.artifacts import new_file
from slm.errors import SlmError
from slm.terminal.console import note

# Below this many tokens reading them again is about as fast as keeping them.
SMALLEST = 64
_MAGIC, _VERSION = b"SLMPREFX", 1
CellBytes = bytes | memoryview
_HEAD = struct.Struct("<8sII")  # magic, version, length of the JSON header that follows


@dataclass(frozen=True)
class Entry:
    """The state of one sequence: the tokens it holds and llama.cpp's bytes for them."""

    tokens: list[int]
    state: CellBytes


class PrefixStore:
    """States by (key, tokens). Thread-safe.

    model: identity of the model's content and of whatever else shapes a state (cache types). budget: bytes in memory.
    folder: where entries go that leave memory (None: they are dropped), at most `disk_budget` bytes there.
    """

    def __init__(self, model: str, *, budget: int, folder: Path | None = None, disk_budget: int = 1 << 30) -> None:
        self._model, self._budget, self._folder, self._disk_budget = model, budget, folder, disk_budget
        self._entries: OrderedDict[tuple[str, tuple[int, ...]], CellBytes] = OrderedDict()
        self._on_disk: OrderedDict[tuple[str, tuple[int, ...]], Path] = OrderedDict()
        self.used = 0
        self._lock = threading.RLock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.kv"), key=lambda file: file.stat().st_mtime):
                if head := _read_head(path, model):
                    self._on_disk[head] = path

    def longest(self, key: str, prompt: Sequence[int]) -> int:
        """How many leading tokens of the prompt the best entry of this key shares."""
        with self._lock:
            wanted = tuple(prompt)
            return max((common_prefix(tokens, wanted) for tokens in self._of(key)), default=0)

    def take(self, key: str, prompt: Sequence[int]) -> Entry | None:
        """The entry that shares the most leading tokens with the prompt; it stays in the store as most recently used.

        None when there is none, or its file turns out to be gone or damaged.
        """
        with self._lock:
            wanted = tuple(prompt)
            best = max(self._of(key), key=lambda tokens: common_prefix(tokens, wanted), default=None)
            if best is None:
                return None
            if (key, best) in self._entries:
                self._entries.move_to_end((key, best))
                return Entry(list(best), self._entries[key, best])
            path = self._on_disk.pop((key, best))
            state = _read_state(path)
            if state is None:
                path.unlink(missing_ok=True)
                return None
            self._on_disk[key, best] = path
            return Entry(list(best), state)

    def wants(self, key: str, tokens: Sequence[int]) -> bool:
        """Whether a sequence is worth keeping: long enough, and no entry holds its beginning already."""
        with self._lock:
            wanted = self._budget > 0 or self._folder is not None
            return wanted and len(tokens) >= SMALLEST and self.longest(key, tokens) < len(tokens)

    def put(self, key: str, tokens: Sequence[int], state: CellBytes) -> None:
        """Keep a state; entries that are only its beginning go, then the least recently used until it fits."""
        with self._lock:
            whole = tuple(tokens)
            for shorter in [other for other in self._of(key) if common_prefix(other, whole) == len(other)]:
                self._forget(key, shorter)
            if len(state) > self._budget:  # it would drive out everything else and still not stay
                self._to_disk(key, whole, state)
                return
            self._entries[key, whole] = state
            self.used += len(state)
            self._shrink(self._budget)

    def flush(self) -> None:
        """Put everything on disk, where there is a folder."""
        with self._lock:
            self._shrink(0)

    def _shrink(self, budget: int) -> None:
        while self.used > budget:
            (old_key, old_tokens), old_state = self._entries.popitem(last=False)
            self.used -= len(old_state)
            self._to_disk(old_key, old_tokens, old_state)

    def _of(self, key: str) -> Iterator[tuple[int, ...]]:
        for other, tokens in [*self._entries, *self._on_disk]:
            if other == key:
                yield tokens

    def _forget(self, key: str, tokens: tuple[int, ...]) -> None:
        self.used -= len(self._entries.pop((key, tokens), b""))
        if path := self._on_disk.pop((key, tokens), None):
            path.unlink(missing_ok=True)

    def _to_disk(self, key: str, tokens: tuple[int, ...], state: CellBytes) -> None:
        if self._folder is None or len(state) > self._disk_budget:
            return
        head = json.dumps(
            {"model": self._model, "key": key, "tokens": tokens, "sha256": hashlib.sha256(state).hexdigest()}
        ).encode()
        path = self._folder / f"{hashlib.sha256(head).hexdigest()[:32]}.kv"
        try:
            self._write(path, head, state)
        except SlmError as error:
            note(f"a conversation's cells are not kept on disk: {error.what}")
            return
        self._on_disk[key, tokens] = path
        while sum(file.stat().st_size for file in self._on_disk.values() if file.exists()) > self._disk_budget:
            _, oldest = self._on_disk.popitem(last=False)
            oldest.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, head: bytes, state: CellBytes) -> None:
        with new_file(path) as temporary:
            temporary.write_bytes(_HEAD.pack(_MAGIC, _VERSION, len(head)) + head + state)
        path.chmod(0o600)


def _read_head(path: Path, model: str) -> tuple[str, tuple[int, ...]] | None:
    """(key, tokens) of a file of ours for this model; None for any other."""
    try:
        with path.open("rb") as file:
            magic, version, length = _HEAD.unpack(file.read(_HEAD.size))
            if magic != _MAGIC or version != _VERSION or length > path.stat().st_size:
                return None
            head = json.loads(file.read(length))
        if head["model"] != model:
            return None
        return str(head["key"]), tuple(int(token) for token in head["tokens"])
    except (OSError, struct.error, ValueError, KeyError, TypeError):
        return None


def _read_state(path: Path) -> bytes | None:
    """The state in a file, if its hash is right: llama.cpp is never given bytes it did not write."""
    try:
        raw = path.read_bytes()
        _, _, length = _HEAD.unpack_from(raw)
        head = json.loads(raw[_HEAD.size : _HEAD.size + length])
        state = raw[_HEAD.size + length :]
        return state if hashlib.sha256(state).hexdigest() == head["sha256"] else None
    except (OSError, struct.error, ValueError, KeyError, TypeError):
        return None
