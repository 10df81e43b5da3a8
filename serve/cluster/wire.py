"""What an entrance and a replica say to each other. It knows nothing of Ray, of HTTP or of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Deed = Literal["chat", "complete", "embed", "tokenize", "detokenize"]


@dataclass(frozen=True)
class NeededAdapter:
    """An adapter of a request: the hash of its content, and where its file or PEFT folder is."""

    content: str
    source: str


@dataclass(frozen=True)
class Ask:
    """What a replica is to do: a method of `serve.engine.engine.Engine` and its arguments.

    Adapters are called by the hash of their content, so that two machines never mean two things by one name.
    """

    deed: Deed
    arguments: Mapping[str, Any]
    adapters: tuple[NeededAdapter, ...] = field(default=())

    @property
    def warm(self) -> str:
        """The adapter by which a replica is chosen, "" for the base."""
        return self.adapters[0].content if self.adapters else ""


@dataclass(frozen=True)
class Telling:
    """Events of an answer, in order; last: the answer ends with them. stale: an adapter's file is another by now."""

    events: tuple[Any, ...]
    last: bool
    stale: str = ""
