"""What a replica does with what it is asked: adapters first, then the engine, whose events are told as they come.

Events that are there at the same moment are told together. It knows nothing of Ray or of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from serve.cluster.warm import WarmAdapters
from serve.cluster.wire import Ask, ChatAsked, CompletionAsked, NeededAdapter, Run, Telling, TextAsked, TokensAsked
from serve.engine.engine import Engine
from serve.engine.events import Ticket
from serve.server.respond import begun
from slm.errors import EngineError, MismatchError, SlmError
from slm.joints import Scored
from slm.terminal.console import note


class _StaleError(Exception):
    """An adapter's file is another by now."""


class Answering:
    """An engine at work for others. file_of: where this machine has an adapter, by its source; may raise SlmError."""

    def __init__(self, engine: Engine, file_of: Callable[[str], Path]) -> None:
        self._engine, self._file_of = engine, file_of
        self.warm = WarmAdapters(self._load, engine.unload_adapter)

    async def told(self, ask: Ask) -> AsyncGenerator[Telling, None]:
        """Do what is asked; closing the generator ends it, in the middle of a step if need be."""
        with ExitStack() as stack:
            for adapter in ask.adapters:
                try:
                    await asyncio.to_thread(stack.enter_context, self.warm.using(adapter))
                except _StaleError:
                    yield Telling((), True, stale=adapter.content)
                    return
                except SlmError as error:
                    yield Telling((error,), True)
                    return
            if isinstance(ask.deed, TokensAsked | TextAsked):
                yield await asyncio.to_thread(self._told_at_once, ask.deed)
                return
            async with aclosing(self._computed(ask, ask.deed)) as parts:
                async for told in parts:
                    yield told

    def keep(self, adapter: NeededAdapter) -> None:
        """Hold an adapter for good. Raises EngineError, MismatchError where its file is another than is asked for."""
        try:
            self.warm.keep(adapter)
        except _StaleError:
            raise MismatchError(
                "an adapter is another file on another machine", found=adapter.source,
                hint="Give every machine the same files.",
            ) from None  # fmt: skip

    def _told_at_once(self, deed: TokensAsked | TextAsked) -> Telling:
        engine = self._engine
        try:
            if isinstance(deed, TokensAsked):
                return Telling((engine.tokenize(deed.text, add_special=deed.add_special),), True)
            return Telling((engine.detokenize(deed.tokens),), True)
        except SlmError as error:
            return Telling((error,), True)

    async def _computed(self, ask: Ask, run: Run) -> AsyncGenerator[Telling, None]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Any] = asyncio.Queue()

        def sink(event: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed when the replica is being stopped
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            ticket = await begun(partial(self._begun, ask, run, sink))
        except SlmError as error:
            yield Telling((error,), True)
            return
        try:
            last = False
            while not last:
                ready = [await events.get()]
                while not events.empty():
                    ready.append(events.get_nowait())
                last = not isinstance(ready[-1], str | Scored)
                yield Telling(tuple(ready), last)
        finally:
            ticket.cancel()

    def _begun(self, ask: Ask, run: Run, sink: Callable[[Any], None]) -> Ticket:
        engine = self._engine
        if isinstance(run, ChatAsked):
            return engine.begin_chat(
                run.messages, sink, adapter=ask.adapter, lora=ask.lora,
                template=run.template, sampling=run.sampling, fit=run.fit,
            )  # fmt: skip
        if isinstance(run, CompletionAsked):
            return engine.begin_complete(
                run.text, sink, adapter=ask.adapter, lora=ask.lora, sampling=run.sampling, fit=run.fit
            )
        return engine.begin_embed(run.texts, sink, first=run.first)

    def _load(self, adapter: NeededAdapter) -> None:
        """Raises _StaleError when the file has other content than was asked for, EngineError when it cannot be had."""
        try:
            loaded = self._engine.load_adapter(adapter.content, self._file_of(adapter.source))
        except SlmError as error:  # for whoever asks it is no fault of theirs
            note(f"an adapter cannot be loaded: {error}")
            raise EngineError("a machine cannot load the adapter", found=str(error)) from error
        if loaded.content != adapter.content:
            self._engine.unload_adapter(adapter.content)
            raise _StaleError
