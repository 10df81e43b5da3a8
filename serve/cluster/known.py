"""The adapters that an entrance knows by name: checked against the model's header, computed with on the replicas.

It knows nothing of Ray.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from serve.adapters.registry import Adapter, Base, Registry, vet_adapter
from serve.adapters.vault import Vault
from serve.cluster.wire import NeededAdapter
from slm.errors import MismatchError


class KnownAdapters:
    """Implements `serve.adapters.watch.Loader`. convert(folder): the GGUF of a PEFT adapter folder. Thread-safe."""

    def __init__(self, base: Base, convert: Callable[[Path], Path]) -> None:
        self.base = base
        self._convert = convert
        self._vault = Vault()
        self._lock = threading.Lock()
        self._registry = Registry(base)

    def load_adapter(self, name: str, path: Path) -> Adapter:
        """Take an adapter's file or folder under a name, or in place of what had it. Raises as `vet_adapter`."""
        file = self._convert(path) if path.is_dir() else path
        adapter = vet_adapter(name, file, self.base, vault=self._vault)
        adapter.file.unlink()  # each replica checks and keeps a copy of its own
        adapter = replace(adapter, path=path.resolve())
        with self._lock:
            self._registry.put(adapter)
        return adapter

    def unload_adapter(self, name: str) -> None:
        """Forget it. Raises UnknownNameError."""
        with self._lock:
            self._registry.remove(name)

    def all(self) -> list[Adapter]:
        """In the order they were loaded."""
        with self._lock:
            return self._registry.all()

    def needed(self, name: str) -> NeededAdapter:
        """What a replica has to be told of it. Raises UnknownNameError."""
        with self._lock:
            adapter = self._registry.get(name)
            return NeededAdapter(adapter.content, str(adapter.path))

    def look_again(self, content: str) -> None:
        """Read the file of that content again, which is another by now. Raises MismatchError when nothing changed:
        then the machines see different files."""
        with self._lock:
            stale = [adapter for adapter in self._registry.all() if adapter.content == content]
        for adapter in stale:
            if self.load_adapter(adapter.name, adapter.path).content == content:
                raise MismatchError(
                    f"the adapter '{adapter.name}' is another file on another machine",
                    found=str(adapter.path),
                    hint="Give every machine the same folder of adapters.",
                )

    def close(self) -> None:
        """Remove what was copied."""
        self._vault.close()
