"""A folder whose adapters are loaded: what is put there comes, what changes is replaced, what is removed goes.

A GGUF file is loaded as it is, a PEFT adapter folder is converted first, by a function that the roof hands in. It
knows nothing of HTTP, and of the engine only how to load and unload.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slm.errors import SlmError
from slm.paths import composed
from slm.terminal.console import note
from slm.weights.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

# What makes a folder a PEFT adapter; the weights are written before or after the settings, so both must be there.
# Pickled weights are not read, and whoever put them there is told so by their conversion.
_PEFT = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_PICKLED = (ADAPTER_CONFIG, "adapter_model.bin")
Signature = tuple[tuple[str, int, int], ...]


class Loader(Protocol):
    """The part of the engine that is used here."""

    def load_adapter(self, name: str, path: Path) -> object: ...

    def unload_adapter(self, name: str) -> None: ...


@dataclass(frozen=True)
class Found:
    """One adapter in the folder; `signature` changes when its files do (name, size, time of change)."""

    path: Path
    signature: Signature


def scan(folder: Path) -> dict[str, Found]:
    """The adapters of a folder by name: `ja.gguf` and the PEFT folder `ja/` are both called ja; the file wins."""
    found: dict[str, Found] = {}
    for path in sorted(folder.iterdir(), key=lambda entry: entry.is_file()):
        if path.name.startswith("."):
            continue
        files = next((f for f in (_PEFT, _PICKLED) if all((path / name).is_file() for name in f)), ())
        if files:
            found[composed(path.name)] = Found(path, _signature([path / name for name in files]))
        elif path.is_file() and path.suffix.lower() == ".gguf":
            found[composed(path.stem)] = Found(path, _signature([path]))
    return found


def changes(before: Mapping[str, Found], now: Mapping[str, Found]) -> tuple[list[str], list[str]]:
    """(names to load or to replace, names to unload)."""
    return (
        [name for name, found in now.items() if before.get(name) != found],
        [name for name in before if name not in now],
    )


class WatchedFolder:
    """Keeps an engine's adapters equal to a folder's.

    convert(folder) gives the GGUF file of a PEFT adapter folder. A name that was loaded otherwise (`taken`) is left
    alone. What cannot be loaded is said once, and tried again when it changes.
    """

    def __init__(
        self, folder: Path, engine: Loader, convert: Callable[[Path], Path], *, taken: frozenset[str] = frozenset()
    ) -> None:
        self.folder, self._engine, self._convert, self._taken = folder, engine, convert, taken
        self._seen: dict[str, Found] = {}
        self._loaded: set[str] = set()

    def update(self) -> None:
        """Look at the folder now and load, replace or unload what has changed."""
        now = {name: found for name, found in scan(self.folder).items() if name not in self._taken}
        load, unload = changes(self._seen, now)
        for name in unload:
            self._drop(name)
        for name in load:
            path = now[name].path
            try:
                self._engine.load_adapter(name, self._convert(path) if path.is_dir() else path)
            except SlmError as error:
                note(f"the adapter '{name}' in {self.folder} is not loaded: {error}")
                continue
            note(f"the adapter '{name}' {'is replaced' if name in self._loaded else 'is loaded'}")
            self._loaded.add(name)
        self._seen = now

    def _drop(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.discard(name)
            try:
                self._engine.unload_adapter(name)
            except SlmError as error:  # somebody unloaded it by hand
                note(error.what)
                return
            note(f"the adapter '{name}' is unloaded: it is gone from {self.folder}")


@contextmanager
def watching(watched: WatchedFolder, *, polling: bool = False) -> Iterator[None]:
    """Load what is in the folder, then follow its changes on a thread until the end of the block.

    polling: look at the folder again and again, since the system does not tell of changes that another machine makes.
    """
    from watchfiles import watch

    watched.update()
    end = threading.Event()

    def follow() -> None:
        for _ in watch(
            watched.folder, stop_event=end, debounce=800, rust_timeout=500, force_polling=polling or None,
        ):  # fmt: skip
            try:
                watched.update()
            except OSError as error:
                note(f"cannot look into {watched.folder}: {error}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(2.0)


def _signature(files: list[Path]) -> Signature:
    rows = []
    for file in files:
        try:
            state = file.stat()
        except FileNotFoundError:
            continue
        rows.append((file.name, state.st_size, state.st_mtime_ns))
    return tuple(rows)
