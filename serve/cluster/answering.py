"""What a replica does with what it is asked: adapters first, then the engine, whose events are told as they come.

The first event is told at once, and the last; what comes between waits a moment for more, as each telling costs Ray
several milliseconds of processor time, on this machine and on two others. It knows nothing of Ray or of HTTP.
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

_MOST_TELLINGS = 60  # a second, of up to six requests together; of more, one each in the longest pause
_LONGEST_PAUSE_S = 0.1  # what a reader of words does not mind


class _StaleError(Exception):
    """An adapter's file is another by now."""


class Answering:
    """An engine at work for others. file_of: where this machine has an adapter, by its source; may raise SlmError."""

    def __init__(self, engine: Engine, file_of: Callable[[str], Path]) -> None:
        self._engine, self._file_of, self._running = engine, file_of, 0
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
        heard = _Heard()

        def sink(event: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed when the replica is being stopped
                loop.call_soon_threadsafe(heard.take, event)

        try:
            ticket = await begun(partial(self._begun, ask, run, sink))
        except SlmError as error:
            yield Telling((error,), True)
            return
        self._running += 1
        try:
            pause_s, last = 0.0, False
            while not last:
                ready = await heard.next(pause_s)
                last = heard.ended.is_set()
                yield Telling(ready, last)
                pause_s = min(_LONGEST_PAUSE_S, self._running / _MOST_TELLINGS)
        finally:
            self._running -= 1
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


class _Heard:
    """Events of one request that have not been told yet. `ended`: the last one is among them, or was."""

    def __init__(self) -> None:
        self._events: list[Any] = []
        self._some, self.ended = asyncio.Event(), asyncio.Event()

    def take(self, event: Any) -> None:
        """One more, on the loop's thread. Text goes on with the text before it: one piece is sent on as one."""
        if isinstance(event, str) and self._events and isinstance(self._events[-1], str):
            self._events[-1] += event
        else:
            self._events.append(event)
        self._some.set()
        if not isinstance(event, str | Scored):
            self.ended.set()

    async def next(self, pause_s: float) -> tuple[Any, ...]:
        """Those that are there so many seconds from now, at least one; sooner where the last one comes."""
        if pause_s:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ended.wait(), pause_s)
        await self._some.wait()
        self._some.clear()
        events, self._events = tuple(self._events), []
        return events
