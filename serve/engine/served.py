"""What the server asks of an engine, wherever its model is computed. It knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from serve.adapters.registry import RESERVED, Adapter, Base
from serve.child.messages import Embeddings, Stats
from serve.engine.events import Sink, Ticket
from serve.engine.options import EngineOptions
from serve.engine.prompting import TemplateOptions
from serve.engine.router import Route, route
from slm.errors import InputError, SlmError, UnknownNameError
from slm.joints import Message, SamplingOptions
from slm.paths import composed

Lora = Sequence[tuple[str, float]]


class Observed(Protocol):
    """What the metrics ask of an engine."""

    @property
    def restarts(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    def adapters(self) -> list[Adapter]: ...
    def stats(self) -> Stats: ...


class ServedEngine(Observed, Protocol):
    """A model with adapters by name; `serve.engine.engine.Engine` says what each of these does and raises."""

    default_adapter: str | None
    options: EngineOptions
    context: int
    base: Base

    def begin_chat(
        self,
        messages: Sequence[Message],
        sink: Sink,
        *,
        adapter: str | None = None,
        lora: Lora | None = None,
        template: TemplateOptions = ...,
        sampling: SamplingOptions,
        fit: bool = False,
    ) -> Ticket: ...

    def begin_complete(
        self,
        text: str | Sequence[int],
        sink: Sink,
        *,
        adapter: str | None = None,
        lora: Lora | None = None,
        sampling: SamplingOptions,
        fit: bool = False,
    ) -> Ticket: ...

    def begin_embed(
        self, texts: Sequence[str | Sequence[int]], sink: Callable[[Embeddings | SlmError], None], *, first: int = 0
    ) -> Ticket: ...

    def route(self, wanted: str | None, messages: Sequence[Message], *, lora: Lora | None = None) -> Route: ...
    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int]) -> str: ...
    def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> Adapter: ...
    def unload_adapter(self, name: str) -> None: ...


def way_of(engine: ServedEngine, wanted: str | None, messages: Sequence[Message], lora: Lora | None) -> Route:
    """Which adapter a conversation goes to, and why; `lora` decides where it is given. Raises UnknownNameError."""
    loaded = engine.adapters()
    if wanted:  # a client on macOS may send a name in pieces (NFD); those of adapters are whole
        wanted = composed(wanted)
        if wanted in map(composed, engine.base.names):
            wanted = engine.base.name
    if lora is None:
        known = {adapter.name: adapter.language for adapter in loaded}
        return route(wanted, messages, known, base=engine.base.name, default=engine.default_adapter)
    names = [name for name, scale in lora if scale]
    if len(set(names)) < len(names):
        raise InputError("lora: an adapter is named twice")
    there = [adapter.name for adapter in loaded]
    for name in names:
        if name not in there:
            raise UnknownNameError("model or adapter", name, [*RESERVED, engine.base.name, *there])
    return Route("+".join(names) or None, "named in the request with scales")
