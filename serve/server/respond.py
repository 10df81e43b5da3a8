"""One request's runs in the engine, from their start to the answer: whole, or as server-sent events (SSE), which a
comment keeps alive while nothing comes.

A client that goes away at any moment cancels them all. It knows nothing of what was asked, nor of the engine beyond
the call that begins a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serve.engine.events import Event, Sink, Ticket
from serve.server.api.answer.writer import Writer
from serve.server.api.errors import Json
from slm.errors import SlmError
from slm.joints import Finish

_T = TypeVar("_T")
Begin = Callable[[Sink], Ticket]
_Numbered = tuple[int, Event]
# How long a stream's first event is waited for, so that an error which comes before it has an HTTP status of its own:
# what the engine refuses, it refuses within a step. Then the stream begins, whatever comes.
PATIENCE_S = 1.0
# A proxy cuts off what is silent, many of them after 60 s; a comment, which every reader of events skips, is a sign of
# life (https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes recommends about 15 s).
PULSE_S = 10.0
_COMMENT = ": keep-alive\n\n"
# nginx and those like it collect an answer before they pass it on unless they are told; others may compress it.
_STREAM_HEADERS = {"cache-control": "no-cache, no-store, no-transform", "x-accel-buffering": "no"}


class Runs:
    """Runs of the engine whose events come together in one queue; use it on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Numbered | None] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._pulse: asyncio.TimerHandle | None = None

    async def start(self, begins: Sequence[Begin]) -> None:
        """Begin them all. When one cannot begin, the others are cancelled and its error is raised."""
        try:
            for number, begin in enumerate(begins):
                self._tickets.append(await begun(partial(begin, self._sink(number))))
        except BaseException:
            self.cancel()
            raise

    def beat(self, after_s: float) -> None:
        """From then on `events` yields None at every pulse."""
        self._pulse = self._loop.call_later(after_s, self._beat)

    def cancel(self) -> None:
        """End what is still under way."""
        if self._pulse:
            self._pulse.cancel()
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Any] | None]:
        """(number of the run, text or Finish), or None, until every run has ended. Raises the first SlmError."""
        left = len(self._tickets)
        while left:
            numbered = await self._events.get()
            if numbered is None:
                yield None
                continue
            number, event = numbered
            if isinstance(event, SlmError):
                self.cancel()
                raise event
            left -= isinstance(event, Finish)
            yield number, event

    def _beat(self) -> None:
        self._events.put_nowait(None)
        self.beat(PULSE_S)

    def _sink(self, number: int) -> Sink:
        def sink(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed when the server is being stopped
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return sink


async def begun(begin: Callable[[], Ticket]) -> Ticket:
    """The ticket of a run begun in a thread; if nobody waits for it any more, it is cancelled when it comes."""

    def forget(done: asyncio.Future[Ticket]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().cancel()

    work = asyncio.ensure_future(asyncio.to_thread(begin))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(forget)
        raise


async def respond(
    request: Request, begins: Sequence[Begin], writer: Writer, *, stream: bool, headers: dict[str, str]
) -> Response:
    """Start the runs and answer with what the writer makes of them."""
    runs = Runs()
    await runs.start(begins)
    events = runs.events()

    async def collect() -> None:
        async for numbered in events:
            if numbered:
                for _ in await _taken(writer, *numbered):
                    pass

    try:
        if stream:
            runs.beat(PATIENCE_S)
            first = await unless_left(request, _next(events))  # an error before the start has its own status
            return _EventStream(_stream(first, events, writer), runs, headers)
        await unless_left(request, collect())
    except BaseException:
        runs.cancel()
        raise
    return Json(writer.whole(), headers=headers)


async def _next(events: AsyncIterator[_T]) -> _T:
    return await anext(events)


class _EventStream(StreamingResponse):
    """Server-sent events of one request, which is cancelled when the client goes away at any moment."""

    def __init__(self, events: AsyncIterator[str], runs: Runs, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**headers, **_STREAM_HEADERS})
        self._runs = runs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._runs.cancel()


async def unless_left(request: Request, wanted: Coroutine[Any, Any, _T]) -> _T:
    """The result of `wanted`, which is cancelled if the client closes the connection first."""
    work = asyncio.create_task(wanted)
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HTTPException(499, "the client closed the connection")
        return work.result()
    finally:
        work.cancel()
        left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    first: tuple[int, Any] | None, events: AsyncIterator[tuple[int, Any] | None], writer: Writer
) -> AsyncIterator[str]:
    """The events of one answer, comments where it is silent; an error after the start is an event of its own."""
    silent = True
    for value in writer.opening():
        silent = False
        yield writer.frame(value)
    try:
        numbered = first
        while True:
            if numbered is None:
                if silent:
                    yield _COMMENT
                silent = True
            else:
                for value in await _taken(writer, *numbered):
                    silent = False
                    yield writer.frame(value)
            try:
                numbered = await anext(events)
            except StopAsyncIteration:
                break
        for value in writer.closing():
            yield writer.frame(value)
    except SlmError as error:
        for value in writer.failed(error):
            yield writer.frame(value)
    yield writer.tail


async def _taken(writer: Writer, number: int, event: Any) -> Iterator[dict[str, Any]]:
    if isinstance(event, Finish):
        await writer.before_end()
    return writer.take(number, event)
